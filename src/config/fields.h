// SPDX-License-Identifier: Apache-2.0
#pragma once
// One description of a section, by which it is read and written back:
//
//   void checkpoint_fields(Fields& f, CheckpointConfig& c) {
//     f.integer("every", c.every, at_least_zero);
//     f.choice("resume", c.resume, resume_names);
//     if (Reader* const reader = f.reader()) …;   // what several keys must keep together
//   }
//
// Reading leaves the member of an absent key as it is, so a default stands in its struct alone.

#include <functional>

#include "farskip/config/reader.h"

namespace farskip {

class Fields {
 public:
  /// Reads; mistakes go to the reader's errors.
  explicit Fields(Reader& reader) : reader_(&reader) {}
  /// Writes into a map.
  explicit Fields(ConfigNode& map) : map_(&map) {}

  /// nullptr where the section is written.
  Reader* reader() const { return reader_; }
  bool writes() const { return reader_ == nullptr; }

  template <std::signed_integral T>
  void integer(std::string_view key, T& value, IntegerRange range) {
    if (writes()) return set(key, make_node(std::int64_t{value}));
    value = reader_->integer<T>(key, range, value);
  }
  /// Absent: nothing, written as null.
  template <std::signed_integral T>
  void integer(std::string_view key, std::optional<T>& value, IntegerRange range) {
    if (writes()) return set(key, value ? make_node(std::int64_t{*value}) : ConfigNode{});
    value = reader_->optional_integer<T>(key, range);
  }
  /// A number, or the word `automatic` for nothing.
  template <std::signed_integral T>
  void integer_or(std::string_view automatic, std::string_view key, std::optional<T>& value,
                  IntegerRange range) {
    if (writes()) return set(key, value ? make_node(std::int64_t{*value}) : make_word(automatic));
    value = reader_->integer_or<T>(automatic, key, range, value.value());
  }
  void integers(std::string_view key, std::vector<std::int64_t>& values, IntegerRange range);

  void real(std::string_view key, double& value, RealRange range);
  void reals(std::string_view key, std::vector<double>& values, RealRange range, ListSize size = {});
  void boolean(std::string_view key, bool& value);
  template <class E, std::size_t N>
  void choice(std::string_view key, E& value, const Choice<E> (&names)[N]) {
    if (writes()) return set(key, make_word(name_of(names, value)));
    value = reader_->choice(key, names, value);
  }

  // Empty text stands for an absent key, written as null.
  void text(std::string_view key, std::string& value);
  void path(std::string_view key, std::string& value);
  void paths(std::string_view key, std::vector<std::string>& values);
  /// Bytes. `automatic`: the word for nothing; null where it is empty.
  void memory(std::string_view key, std::optional<std::uint64_t>& bytes, std::string_view automatic = "");

  /// `fields(Fields&)` describes what is in the section. Unknown keys of it are mistakes.
  void section(std::string_view key, const std::function<void(Fields&)>& fields);
  template <class T>
  void section(std::string_view key, T& value, void (*fields)(Fields&, T&)) {
    section(key, [&](Fields& inner) { fields(inner, value); });
  }
  /// Nothing where the section is absent, written as null.
  template <class T>
  void section(std::string_view key, std::optional<T>& value, void (*fields)(Fields&, T&)) {
    if (writes() && !value) return set(key, {});
    T inner = value.value_or(T{});
    section(key, inner, fields);
    value = writes() || reader_->has(key) ? std::optional<T>(std::move(inner)) : std::nullopt;
  }

  /// Writes what is a node already.
  void node(std::string_view key, ConfigNode node) { set(key, std::move(node)); }
  /// A value of a shape of its own: `read(Reader&)` gives it, `write(value)` a node.
  template <class T, class Read, class Write>
  void other(std::string_view key, T& value, const Read& read, const Write& write) {
    if (writes()) return set(key, write(value));
    value = read(*reader_);
  }

 private:
  void set(std::string_view key, ConfigNode node) { map_->set(key, std::move(node)); }

  Reader* reader_ = nullptr;
  ConfigNode* map_ = nullptr;
};

/// A list of nodes made of each value.
ConfigNode make_list_of(const std::vector<std::string>& texts);
ConfigNode make_list_of(const std::vector<std::int64_t>& numbers);

}  // namespace farskip
