// SPDX-License-Identifier: Apache-2.0
#include "data/unicode.h"

#include <algorithm>
#include <vector>

#include "data/unicode_tables.h"

namespace farskip {
namespace {

struct Utf8Part {
  std::size_t length;  // bytes of a character, or of the maximal ill-formed part
  bool valid;
};

Utf8Part classify_utf8(std::string_view text, std::size_t position) {
  const auto at = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = at(position);
  if (lead < 0x80) return {1, true};
  if (lead < 0xC2 || lead > 0xF4) return {1, false};
  const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  for (std::size_t i = 1; i < length; ++i) {
    if (position + i >= text.size()) return {i, false};
    unsigned char low = 0x80, high = 0xBF;
    if (i == 1) {  // the bounds that rule out overlong forms, surrogates and values above U+10FFFF
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    }
    if (at(position + i) < low || at(position + i) > high) return {i, false};
  }
  return {length, true};
}

constexpr char32_t kHangulSyllables = 0xAC00, kHangulLeads = 0x1100, kHangulVowels = 0x1161,
                   kHangulTails = 0x11A7;
constexpr char32_t kNumLeads = 19, kNumVowels = 21, kNumTails = 28,
                   kNumSyllables = kNumLeads * kNumVowels * kNumTails;

std::uint8_t combining_class(char32_t c) {
  if (c < 0x300) return 0;
  const auto ranges = combining_class_ranges();
  const auto next = std::upper_bound(ranges.begin(), ranges.end(), c,
                                     [](char32_t value, const auto& range) { return value < range.first; });
  if (next == ranges.begin()) return 0;
  return c <= (next - 1)->last ? (next - 1)->value : std::uint8_t{0};
}

void append_decomposed(std::u32string& out, char32_t c) {
  if (c >= kHangulSyllables && c < kHangulSyllables + kNumSyllables) {
    const char32_t index = c - kHangulSyllables, tail = index % kNumTails;
    out += kHangulLeads + index / (kNumVowels * kNumTails);
    out += kHangulVowels + index % (kNumVowels * kNumTails) / kNumTails;
    if (tail != 0) out += kHangulTails + tail;
    return;
  }
  const auto table = canonical_decompositions();
  const auto entry = std::lower_bound(table.begin(), table.end(), c,
                                      [](const auto& row, char32_t value) { return row.code_point < value; });
  if (c < 0xC0 || entry == table.end() || entry->code_point != c) {
    out += c;
    return;
  }
  append_decomposed(out, entry->first);
  if (entry->second != 0) append_decomposed(out, entry->second);
}

/// Primary composites sorted by their two parts.
std::vector<CanonicalDecomposition> composition_table() {
  std::vector<CanonicalDecomposition> table;
  for (const auto& row : canonical_decompositions())
    if (row.composes) table.push_back(row);
  std::sort(table.begin(), table.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first, a.second) < std::pair(b.first, b.second);
  });
  return table;
}

/// The composite of two code points, or 0.
char32_t compose(char32_t a, char32_t b) {
  if (a >= kHangulLeads && a < kHangulLeads + kNumLeads && b >= kHangulVowels &&
      b < kHangulVowels + kNumVowels)
    return kHangulSyllables + ((a - kHangulLeads) * kNumVowels + (b - kHangulVowels)) * kNumTails;
  if (a >= kHangulSyllables && a < kHangulSyllables + kNumSyllables &&
      (a - kHangulSyllables) % kNumTails == 0 && b > kHangulTails && b < kHangulTails + kNumTails)
    return a + (b - kHangulTails);
  static const std::vector<CanonicalDecomposition> table = composition_table();
  const auto entry = std::lower_bound(
      table.begin(), table.end(), std::pair<std::uint32_t, std::uint32_t>(a, b),
      [](const auto& row, const auto& value) { return std::pair(row.first, row.second) < value; });
  return entry != table.end() && entry->first == a && entry->second == b ? entry->code_point : 0;
}

/// Puts the characters of one run (a starter and what follows it) together in place: annex 15, D117.
void compose_all(std::u32string& text) {
  std::size_t out = 0, starter = std::u32string::npos;
  int last_class = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char32_t c = text[i];
    const int cc = combining_class(c);
    const bool adjacent = starter != std::u32string::npos && starter + 1 == out;
    if (starter != std::u32string::npos && (adjacent || (last_class != 0 && last_class < cc))) {
      if (const char32_t composite = compose(text[starter], c); composite != 0) {
        text[starter] = composite;
        continue;
      }
    }
    if (cc == 0) starter = out;
    last_class = cc;
    text[out++] = c;
  }
  text.resize(out);
}

}  // namespace

std::optional<std::size_t> find_invalid_utf8(std::string_view text) {
  for (std::size_t position = 0; position < text.size();) {
    const Utf8Part part = classify_utf8(text, position);
    if (!part.valid) return position;
    position += part.length;
  }
  return std::nullopt;
}

std::size_t num_bytes_of_cut_character(std::string_view text) {
  for (std::size_t n = 1; n <= std::min<std::size_t>(text.size(), 3); ++n) {
    const std::size_t position = text.size() - n;
    const auto lead = static_cast<unsigned char>(text[position]);
    if (lead < 0xC2 || lead > 0xF4) continue;
    const Utf8Part part = classify_utf8(text, position);
    return !part.valid && part.length == n ? n : 0;
  }
  return 0;
}

char32_t next_code_point(std::string_view text, std::size_t& position) {
  const auto lead = static_cast<unsigned char>(text[position]);
  const std::size_t length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  char32_t value = length == 1 ? lead : lead & (0x7FU >> length);
  for (std::size_t i = 1; i < length; ++i)
    value = value << 6 | (static_cast<unsigned char>(text[position + i]) & 0x3FU);
  position += length;
  return value;
}

void append_code_point(std::string& text, char32_t c) {
  const auto put = [&](char32_t byte) { text += static_cast<char>(static_cast<unsigned char>(byte)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t position = 0; position < text.size();) {
    const Utf8Part part = classify_utf8(text, position);
    out += part.valid ? text.substr(position, part.length) : std::string_view("\xEF\xBF\xBD");
    position += part.length;
  }
  return out;
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

std::string normalize_nfc(std::string_view text) {
  // Everything below U+0300 is already composed and stays as it is; its UTF-8 bytes are below 0xCC.
  const auto plain = [](char byte) { return static_cast<unsigned char>(byte) < 0xCC; };
  if (std::all_of(text.begin(), text.end(), plain)) return std::string(text);
  std::u32string decomposed;
  decomposed.reserve(text.size());
  for (std::size_t position = 0; position < text.size();)
    append_decomposed(decomposed, next_code_point(text, position));
  for (std::size_t begin = 0; begin < decomposed.size();) {  // canonical ordering
    std::size_t end = begin;
    while (end < decomposed.size() && combining_class(decomposed[end]) != 0) ++end;
    std::stable_sort(decomposed.begin() + static_cast<std::ptrdiff_t>(begin),
                     decomposed.begin() + static_cast<std::ptrdiff_t>(end),
                     [](char32_t a, char32_t b) { return combining_class(a) < combining_class(b); });
    begin = end + 1;
  }
  compose_all(decomposed);
  std::string out;
  out.reserve(text.size());
  for (const char32_t c : decomposed) append_code_point(out, c);
  return out;
}

}  // namespace farskip
