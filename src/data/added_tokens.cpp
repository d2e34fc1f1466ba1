// SPDX-License-Identifier: Apache-2.0
#include "data/added_tokens.h"

#include <algorithm>

#include "data/unicode.h"

namespace farskip {
namespace {

std::uint64_t edge(std::uint32_t node, char byte) {
  return static_cast<std::uint64_t>(node) << 8 | static_cast<unsigned char>(byte);
}

/// Where the run of white space that ends at `end` begins, not before `floor`.
std::size_t white_space_begin(std::string_view text, std::size_t floor, std::size_t end) {
  std::size_t begin = end;
  while (begin > floor) {
    std::size_t start = begin - 1;
    while (start > floor && (static_cast<unsigned char>(text[start]) & 0xC0U) == 0x80U) --start;
    std::size_t position = start;
    if (!is_white_space(next_code_point(text, position))) break;
    begin = start;
  }
  return begin;
}

std::size_t white_space_end(std::string_view text, std::size_t begin) {
  while (begin < text.size()) {
    std::size_t position = begin;
    if (!is_white_space(next_code_point(text, position))) break;
    begin = position;
  }
  return begin;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens, const std::vector<std::string>& contents)
    : tokens_(std::move(tokens)), ends_(1, -1) {
  for (std::size_t i = 0; i < contents.size(); ++i) {
    std::uint32_t node = 0;
    starts_[static_cast<unsigned char>(contents[i].front())] = true;
    for (const char byte : contents[i]) {
      const auto [entry, is_new] = edges_.emplace(edge(node, byte), static_cast<std::uint32_t>(ends_.size()));
      if (is_new) ends_.push_back(-1);
      node = entry->second;
    }
    ends_[node] = static_cast<int>(i);
  }
}

std::pair<int, std::size_t> AddedTokenMatcher::longest_at(std::string_view text, std::size_t at) const {
  std::pair<int, std::size_t> best{-1, 0};
  std::uint32_t node = 0;
  for (std::size_t i = at; i < text.size(); ++i) {
    const auto next = edges_.find(edge(node, text[i]));
    if (next == edges_.end()) break;
    node = next->second;
    if (ends_[node] >= 0) best = {ends_[node], i + 1 - at};
  }
  return best;
}

std::vector<AddedTokenMatcher::Piece> AddedTokenMatcher::split(std::string_view text) const {
  std::vector<Piece> pieces;
  if (text.empty()) return pieces;
  std::size_t done = 0;
  for (std::size_t at = 0; at < text.size();) {
    if (!starts_[static_cast<unsigned char>(text[at])]) {
      ++at;
      continue;
    }
    const auto [index, length] = longest_at(text, at);
    if (index < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[index];
    const std::size_t begin = token.strip_left ? white_space_begin(text, done, at) : at;
    const std::size_t end = token.strip_right ? white_space_end(text, at + length) : at + length;
    if (begin > done) pieces.push_back({text.substr(done, begin - done), -1});
    pieces.push_back({text.substr(begin, end - begin), token.id});
    done = at = end;
  }
  if (done < text.size()) pieces.push_back({text.substr(done), -1});
  return pieces;
}

}  // namespace farskip
