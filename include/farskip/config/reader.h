// SPDX-License-Identifier: Apache-2.0
#pragma once
// Typed reading of a map that collects every mistake instead of stopping at the first.
//
//   ErrorList errors;
//   Reader reader(tree, errors);
//   const auto hidden = reader.integer("hidden_size", {.min = 1});          // required
//   const auto theta = reader.real("rope_theta", {.min = 0}, 10000.0);      // with a default
//   const auto rank = reader.optional_integer("q_lora_rank", {.min = 1});   // absent or null: nothing
//   reader.require_value("attention_bias", false, "biases are not built");  // absent is fine, true is not
//   reader.ignore("transformers_version");
//   reader.also_called("num_experts", {"num_local_experts"});               // one setting, two names
//   Reader rope = reader.section("rope_scaling");
//   …
//   rope.finish();                                                          // unknown keys are mistakes
//   reader.finish();
//   errors.throw_if_any();
//
// After a mistake a reader returns the default, or some value of the allowed range, so that reading goes on;
// such a value must not reach work, hence throw_if_any() before the result is used, and sound() before a
// check that compares several keys.

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

#include "farskip/config/choice.h"
#include "farskip/config/scalar.h"
#include "farskip/config/tree.h"

namespace farskip {

struct ListSize {
  std::size_t min = 0;
  std::size_t max = std::numeric_limits<std::size_t>::max();
};

class Reader {
 public:
  /// Reads `map`; `path` is its own path, empty for the root. A node that is no map is a mistake, after which
  /// its keys are not missed. `map` and `errors` must outlive the reader.
  Reader(const ConfigNode& map, ErrorList& errors, std::string path = "");

  // Three forms of each: required; with a default (null is a mistake); optional (absent and null are
  // nothing). Integers are read as the type of the field that takes them, `reader.integer<int>(…)`, so that a
  // number which the field cannot hold is out of range, and no cast cuts it later.
  template <std::signed_integral T = std::int64_t>
  T integer(std::string_view key, IntegerRange range = {}) {
    range = within<T>(range);
    return static_cast<T>(read_integer(key, range, "required", Absent::required)
                              .value_or(std::clamp<std::int64_t>(1, range.min, range.max)));
  }
  template <std::signed_integral T = std::int64_t>
  T integer(std::string_view key, IntegerRange range, std::type_identity_t<T> fallback) {
    return static_cast<T>(
        read_integer(key, within<T>(range), std::to_string(fallback), Absent::fallback).value_or(fallback));
  }
  template <std::signed_integral T = std::int64_t>
  std::optional<T> optional_integer(std::string_view key, IntegerRange range = {}) {
    return narrow<T>(read_integer(key, within<T>(range), "-", Absent::optional));
  }
  /// A number, or the word `automatic` for "none given".
  template <std::signed_integral T = std::int64_t>
  std::optional<T> integer_or(std::string_view automatic, std::string_view key, IntegerRange range,
                              std::type_identity_t<T> fallback) {
    return narrow<T>(read_integer_or(automatic, key, within<T>(range), fallback));
  }

  double real(std::string_view key, RealRange range = {});
  double real(std::string_view key, RealRange range, double fallback);
  std::optional<double> optional_real(std::string_view key, RealRange range = {});

  bool boolean(std::string_view key);
  bool boolean(std::string_view key, bool fallback);
  std::optional<bool> optional_boolean(std::string_view key);

  /// Text of at least one character, without control characters.
  std::string string(std::string_view key);
  std::string string(std::string_view key, const std::string& fallback);
  std::optional<std::string> optional_string(std::string_view key);

  /// The path of a file or folder: a string that no shell would have to expand (parse_path).
  std::optional<std::string> optional_path(std::string_view key);
  std::vector<std::string> paths(std::string_view key, ListSize size = {});

  template <class E, std::size_t N>
  E choice(std::string_view key, const Choice<E> (&table)[N]) {
    return find_choice(table, choose(key, list_names(table), {}, false)).value_or(table[0].value);
  }
  template <class E, std::size_t N>
  E choice(std::string_view key, const Choice<E> (&table)[N], E fallback) {
    return find_choice(table, choose(key, list_names(table), name_of(table, fallback), false))
        .value_or(fallback);
  }
  template <class E, std::size_t N>
  std::optional<E> optional_choice(std::string_view key, const Choice<E> (&table)[N]) {
    return find_choice(table, choose(key, list_names(table), {}, true));
  }

  /// Bytes, written with a unit: 512MiB (units: scalar.h). `automatic` is the word for "none given"; it may
  /// be empty, then absence alone is.
  std::optional<std::uint64_t> optional_memory(std::string_view key, std::string_view automatic = "");
  /// Bytes per second, written with a unit: 48GB/s.
  std::optional<double> optional_rate(std::string_view key);

  /// Lists. Absent: the default. A single value is not taken for a list of one.
  std::vector<std::int64_t> integers(std::string_view key, IntegerRange range, ListSize size,
                                     const std::vector<std::int64_t>& fallback);
  std::vector<double> reals(std::string_view key, RealRange range, ListSize size,
                            const std::vector<double>& fallback);
  std::vector<std::string> strings(std::string_view key, ListSize size = {});
  template <class E, std::size_t N>
  std::vector<E> choices(std::string_view key, const Choice<E> (&table)[N]) {
    std::vector<E> out;
    for (const auto& name : choose_list(key, list_names(table)))
      if (const auto value = find_choice(table, name)) out.push_back(*value);
    return out;
  }

  /// A nested map; absent or null reads like an empty one.
  Reader section(std::string_view key);
  /// Marks a value of a shape of its own as read and returns it: nullptr if absent or null.
  const ConfigNode* take(std::string_view key, const std::string& allowed, const std::string& fallback = "-");
  /// Accepts whatever stands there.
  void ignore(std::string_view key);
  /// Another program wrote the file (take_null_as_absent).
  bool is_foreign() const { return null_is_absent_; }
  /// `key` may stand in the file under any of `names` instead. Where several of them have a value, the values
  /// must agree; otherwise it is a mistake that names both. Call it before `key` is read.
  void also_called(std::string_view key, std::vector<std::string> names);
  /// From now on null is the same as absence, as in files of the hub. Sections inherit it.
  void take_null_as_absent() { null_is_absent_ = true; }
  /// Absent, null and `expected` are fine; any other value is a mistake that says `why`.
  template <class T>
  void require_value(std::string_view key, T expected, const std::string& why) {
    if constexpr (std::is_same_v<T, bool>)
      require(key, expected, why);
    else if constexpr (std::is_integral_v<T>)
      require(key, static_cast<std::int64_t>(expected), why);
    else if constexpr (std::is_floating_point_v<T>)
      require(key, static_cast<double>(expected), why);
    else
      require(key, std::string(expected), why);
  }

  /// The map itself stands in the file: it is no section that is absent or null.
  bool is_present() const { return !absent_position_ && !quiet_; }
  /// Present and not null. Does not count as reading.
  bool has(std::string_view key) const;
  /// What stands in the map and was not read so far.
  std::vector<const ConfigNode*> unread() const;
  /// No mistake was found at `key` so far.
  bool sound(std::string_view key) const { return !unsound_.contains(std::string(key)); }
  /// Set on the command line.
  bool is_override(std::string_view key) const;
  /// Adds a mistake at the value of `key`, or at the map where it is absent.
  void fail(std::string_view key, const std::string& message);
  std::string path_of(std::string_view key) const { return join_path(path_, key); }
  ErrorList& errors() const { return *errors_; }

  /// Every key that was not read becomes a mistake, with the valid key that it may stand for. Call it last.
  void finish();

 private:
  enum class Absent { required, fallback, optional };
  using Expected = std::variant<bool, std::int64_t, double, std::string>;
  /// Value and reason of one scalar; `reason` empty means success.
  template <class T>
  using Check = std::function<std::optional<T>(const ConfigNode&, std::string& reason)>;

  const ConfigNode* present(std::string_view key, const std::string& allowed, const std::string& fallback,
                            Absent absent);
  /// The node of `key`, under whichever of its names it stands.
  const ConfigNode* find(std::string_view key) const;
  template <class T>
  std::optional<T> read(std::string_view key, const std::string& allowed, const std::string& fallback,
                        Absent absent, const Check<T>& check);
  template <class T>
  std::optional<std::vector<T>> read_list(std::string_view key, const std::string& item,
                                          const std::string& fallback, ListSize size, const Check<T>& check);
  std::optional<std::int64_t> read_integer(std::string_view key, const IntegerRange& range,
                                           const std::string& fallback, Absent absent);
  std::optional<std::int64_t> read_integer_or(std::string_view automatic, std::string_view key,
                                              const IntegerRange& range, std::int64_t fallback);
  template <class T>
  static std::optional<T> narrow(std::optional<std::int64_t> value) {
    return value ? std::optional(static_cast<T>(*value)) : std::nullopt;
  }
  std::optional<double> read_real(std::string_view key, const RealRange& range, const std::string& fallback,
                                  Absent absent);
  std::string choose(std::string_view key, const std::string& names, std::optional<std::string_view> fallback,
                     bool optional);
  std::vector<std::string> choose_list(std::string_view key, const std::string& names);
  void require(std::string_view key, const Expected& expected, const std::string& why);
  const Position& position() const { return absent_position_ ? *absent_position_ : map_->position; }

  const ConfigNode* map_;
  ErrorList* errors_;
  std::string path_;
  bool quiet_ = false;  // the map itself is a mistake already
  bool null_is_absent_ = false;
  std::optional<Position> absent_position_;  // of a section that is not there: where its parent begins
  std::set<std::string> read_, unsound_;
  std::map<std::string, std::vector<std::string>, std::less<>> other_names_;
};

}  // namespace farskip
