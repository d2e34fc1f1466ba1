// SPDX-License-Identifier: Apache-2.0
// Every integer key at the edges of its range, and of the types that could hold it.
#include <set>

#include "farskip/config/reader.h"
#include "farskip/config/run_config.h"
#include "support/catch.h"

using namespace farskip;

namespace {

constexpr std::int64_t kLargest = std::numeric_limits<std::int64_t>::max();

/// With the sections that are there only when they are asked for.
ConfigNode whole_tree() {
  return parse_yaml_text(
      "model: {}\n"
      "farskip: {mode: delay, delay: 1}\n"
      "data: {tokens: [t], validation: [v]}\n"
      "distill: {teacher: t, hidden_l2: 0.5, hidden_layers: [0], teacher_layers: [0], early_stopping: {}}\n",
      "test");
}

std::vector<KnownKey> integer_keys() {
  ErrorList errors;
  read_run_config(whole_tree(), errors);
  REQUIRE(errors.report().empty());
  std::vector<KnownKey> keys = errors.known_keys();
  std::erase_if(keys, [](const KnownKey& key) { return key.allowed.find("integer") == std::string::npos; });
  return keys;
}

const ConfigNode* find(const ConfigNode& tree, std::string_view path) {
  const ConfigNode* node = &tree;
  while (node != nullptr && !path.empty()) {
    const auto dot = path.find('.');
    node = node->find(path.substr(0, dot));
    path = dot == std::string_view::npos ? "" : path.substr(dot + 1);
  }
  return node;
}

/// The value as it came through, or the mistakes.
struct Outcome {
  std::string kept, mistakes;
};
Outcome set(const KnownKey& key, const std::string& value) {
  const bool list = key.allowed.starts_with("list");
  ErrorList errors;
  ConfigNode tree = whole_tree();
  apply_override(tree, key.path + "=" + (list ? "[" + value + "]" : value), errors);
  if (key.path == "distill.cache.top_k")  // which keeps no hidden states
    for (const char* more : {"cache.path=c", "hidden_l2=0", "hidden_layers=[]", "teacher_layers=[]"})
      apply_override(tree, std::string("distill.") + more, errors);
  if (key.path == "distill.fold.sequences") apply_override(tree, "distill.fold.text=t", errors);
  const RunConfig config = read_run_config(tree, errors);
  if (!errors.empty()) return {"", errors.report()};
  const ConfigNode resolved = run_config_tree(config);
  const ConfigNode* node = find(resolved, key.path);
  REQUIRE(node != nullptr);
  return {list ? node->children.at(0).text : node->text, ""};
}

/// Ends of "integer, 0 to 64", "integer >= 1", "list: integer >= 0".
IntegerRange range_of(const std::string& allowed) {
  IntegerRange range;
  const std::string text = allowed.substr(allowed.find("integer"));
  if (const auto from = text.find(">= "); from != std::string::npos)
    range.min = std::stoll(text.substr(from + 3));
  if (const auto to = text.find(" to "); to != std::string::npos) {
    range.min = std::stoll(text.substr(text.find(", ") + 2));
    range.max = std::stoll(text.substr(to + 4));
  }
  return range;
}

}  // namespace

TEST_CASE("an integer key comes through whole or is refused by name, at every edge of range and type") {
  const std::vector<KnownKey> keys = integer_keys();
  CHECK(keys.size() >= 20);
  for (const KnownKey& key : keys) {
    const IntegerRange range = range_of(key.allowed);
    std::set<std::int64_t> values{range.min, range.max, kLargest, -kLargest - 1, -1};
    for (const int bits : {7, 8, 15, 16, 31, 32, 53, 62})
      for (const std::int64_t off : {-1, 0, 1}) values.insert((std::int64_t{1} << bits) + off);
    for (const std::int64_t end : {range.min, range.max})
      for (const std::int64_t off : {-1, 1})
        if (std::int64_t next = 0; !__builtin_add_overflow(end, off, &next)) values.insert(next);
    bool ever_kept = false;
    for (const std::int64_t value : values) {
      INFO(key.path << "=" << value << ", allowed: " << key.allowed);
      const Outcome outcome = set(key, std::to_string(value));
      if (!contains(range, value))
        CHECK_THAT(outcome.mistakes, ContainsSubstring(fmt::format("{} is out of range", value)));
      else if (outcome.mistakes.empty())
        CHECK(outcome.kept == std::to_string(value));
      // Several keys at once are checked too (a warm-up fits into the steps): such a mistake names one of
      // them.
      ever_kept = ever_kept || !outcome.kept.empty();
    }
    INFO(key.path);
    CHECK(ever_kept);
    for (const char* wide : {"9223372036854775808", "18446744073709551617", "-9223372036854775809"})
      CHECK_THAT(set(key, wide).mistakes, ContainsSubstring("does not fit into 64 bits"));
  }
}

TEST_CASE("a read into a narrower type allows what the type holds, whatever range was asked for") {
  ErrorList errors;
  const ConfigNode tree = parse_yaml_text("a: 4294967297\nb: 2147483647\nc: -32769\nd: 128\n", "f");
  Reader reader(tree, errors);
  CHECK(reader.integer<std::int64_t>("a") == 4294967297);
  CHECK(reader.integer<int>("b") == 2147483647);
  CHECK(errors.empty());
  reader.integer<int>("a", at_least_one, 3);
  reader.optional_integer<std::int16_t>("c");
  reader.integer_or<std::int8_t>("auto", "d", at_least_zero, 1);
  CHECK(errors.report() ==
        "f:1:4: a: 4294967297 is out of range; allowed: integer, 1 to 2147483647\n"
        "f:3:4: c: -32769 is out of range; allowed: integer, -32768 to 32767\n"
        "f:4:4: d: 128 is out of range; allowed: auto, integer, 0 to 127");
}
