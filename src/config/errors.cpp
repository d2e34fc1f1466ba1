// SPDX-License-Identifier: Apache-2.0
#include "farskip/config/errors.h"

#include <algorithm>
#include <cctype>
#include <numeric>
#include <optional>
#include <span>
#include <tuple>

namespace farskip {
namespace {

constexpr std::size_t max_reported = 100;
constexpr std::size_t max_compared_key = 64;  // longer keys are no misspelling of ours

std::string section_of(const std::string& path) {
  const auto dot = path.rfind('.');
  return dot == std::string::npos ? "" : path.substr(0, dot);
}

std::string key_of(const std::string& path) {
  const auto dot = path.rfind('.');
  return dot == std::string::npos ? path : path.substr(dot + 1);
}

// Case and the choice of - or _ are no difference worth counting.
std::string normalise(std::string_view key) {
  std::string out(key);
  for (char& c : out) c = c == '-' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

// Insertions, deletions, substitutions and swaps of neighbours (optimal string alignment).
std::size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  std::iota(last.begin(), last.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], before[j - 2] + 1);
    }
    std::swap(before, last);
    std::swap(last, row);
  }
  return last[b.size()];
}

}  // namespace

std::string describe(const Position& position) {
  const std::string file = position.file ? *position.file : "configuration";
  return position.line == 0 ? file : fmt::format("{}:{}:{}", file, position.line, position.column);
}

std::string quote_for_message(std::string_view text) {
  constexpr std::size_t longest = 80;
  std::string out = "\"";
  for (const char c : text.substr(0, longest)) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      out += c == '\n' ? "\\n" : fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    else
      out += c;
  }
  if (text.size() > longest) {
    while ((out.back() & 0x80) != 0) out.pop_back();  // never half a character
    out += "...";
  }
  return out + "\"";
}

std::string join_path(std::string_view section, std::string_view key) {
  return section.empty() ? std::string(key) : fmt::format("{}.{}", section, key);
}

void ErrorList::add(const Position& position, const std::string& path, const std::string& message) {
  mistakes_.push_back({position, path, message, false});
}

void ErrorList::add_unknown_key(const Position& position, const std::string& section,
                                const std::string& key) {
  mistakes_.push_back({position, section, key, true});
}

void ErrorList::add_known_key(const KnownKey& key) {
  if (known_paths_.insert(key.path).second) known_keys_.push_back(key);
}

std::string ErrorList::describe_unknown_key(const std::string& section, const std::string& key) const {
  const std::string wanted = normalise(key);
  std::vector<std::string> elsewhere, siblings;
  std::optional<std::pair<std::size_t, std::string>> nearest, nearest_here;
  for (const KnownKey& known : known_keys_) {
    const bool here = section_of(known.path) == section;
    if (here) siblings.push_back(key_of(known.path));
    const std::string name = normalise(key_of(known.path));
    if (name == wanted && !here) elsewhere.push_back(known.path);
    if (wanted.size() > max_compared_key) continue;
    // A key of another section is the likelier only when it is clearly closer.
    const std::size_t distance = edit_distance(wanted, name) * 2 + (here ? 0 : 3);
    for (auto* best : {&nearest, here ? &nearest_here : nullptr})
      if (best != nullptr && (!*best || distance < (*best)->first)) *best = {distance, known.path};
  }
  const std::string keys_here =
      siblings.empty() ? "no keys are allowed here" : fmt::format("keys here: {}", fmt::join(siblings, ", "));
  if (nearest && nearest->first <= 2 && elsewhere.empty())
    return fmt::format("unknown key; did you mean {}?", nearest->second);
  if (!elsewhere.empty())
    return fmt::format("unknown key; did you mean {}? ({})", fmt::join(elsewhere, " or "), keys_here);
  const bool close = nearest && nearest->first <= 2 * std::max<std::size_t>(2, wanted.size() / 3);
  // A file that another program wrote: a key is no misspelling there, but something that is not built.
  if (!close && kind_ == ExitCode::bad_data)
    return "this key is not known here, and it may change what the model computes; remove it if it does not";
  if (!nearest) return fmt::format("unknown key; {}", keys_here);
  if (close) return fmt::format("unknown key; did you mean {}? ({})", nearest->second, keys_here);
  // Nothing is like it: what stands in this section says more than a key of another one.
  return fmt::format("unknown key; the nearest valid key is {}; {}",
                     (nearest_here ? *nearest_here : *nearest).second, keys_here);
}

std::string ErrorList::report() const {
  std::vector<const Mistake*> sorted;
  for (const Mistake& mistake : mistakes_) sorted.push_back(&mistake);
  std::stable_sort(sorted.begin(), sorted.end(), [](const Mistake* a, const Mistake* b) {
    const auto rank = [](const Mistake* m) {
      return std::tuple(m->position.line == 0, m->position.file ? std::string_view(*m->position.file) : "",
                        m->position.line, m->position.column);
    };
    return rank(a) < rank(b);
  });
  struct Line {
    const Mistake* mistake;
    std::string message;
  };
  std::vector<Line> lines;
  for (const Mistake* m : std::span(sorted).first(std::min(sorted.size(), max_reported)))
    lines.push_back({m, m->unknown_key ? describe_unknown_key(m->path, m->message) : m->message});
  // What is missing is often there, misspelt: the cure comes first.
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (!lines[i].message.starts_with("this key is missing")) continue;
    const std::string meant = fmt::format("unknown key; did you mean {}?", lines[i].mistake->path);
    const auto cure = std::find_if(lines.begin() + static_cast<std::ptrdiff_t>(i), lines.end(),
                                   [&](const Line& line) { return line.message.starts_with(meant); });
    if (cure != lines.end())
      std::rotate(lines.begin() + static_cast<std::ptrdiff_t>(i++), cure, std::next(cure));
  }
  std::string out;
  for (const auto& [mistake, message] : lines) {
    std::string path = mistake->unknown_key ? join_path(mistake->path, mistake->message) : mistake->path;
    if (path.size() > 200) path = quote_for_message(path);
    out += fmt::format("{}{}: ", out.empty() ? "" : "\n", describe(mistake->position));
    if (!path.empty()) out += fmt::format("{}: ", path);
    out += message;
  }
  if (sorted.size() > max_reported)
    out += fmt::format("\nand {} more mistakes", sorted.size() - max_reported);
  return out;
}

void ErrorList::throw_if_any() const {
  if (mistakes_.empty()) return;
  if (kind_ == ExitCode::bad_data) throw DataError(report());
  throw UsageError(report());
}

}  // namespace farskip
