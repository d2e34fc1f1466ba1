// SPDX-License-Identifier: Apache-2.0
#pragma once
// Tokens that are found in text as they stand, before any other rule: <|endoftext|> and its like.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace farskip {

struct AddedToken {
  std::int32_t id = 0;
  std::string content;
  bool strip_left = false, strip_right = false;  // takes the white space on that side with it
  bool normalized = false;                       // looked for after normalization, otherwise before
  bool special = false;                          // may be left out when decoding
};

/// Finds the leftmost of a set of texts, the longest among those that begin at the same place.
class AddedTokenMatcher {
 public:
  AddedTokenMatcher() = default;
  /// `contents[i]` (not empty, distinct) is the text of `tokens[i]` to look for.
  AddedTokenMatcher(std::vector<AddedToken> tokens, const std::vector<std::string>& contents);

  /// A stretch of text: one token's (id >= 0), or the text between tokens (id < 0, never empty).
  struct Piece {
    std::string_view text;
    std::int32_t id;
  };
  std::vector<Piece> split(std::string_view text) const;

 private:
  /// Index into tokens_ of the longest content that `text` has at `at`, with its length; -1 if none.
  std::pair<int, std::size_t> longest_at(std::string_view text, std::size_t at) const;

  std::vector<AddedToken> tokens_;
  std::unordered_map<std::uint64_t, std::uint32_t> edges_;  // trie: node << 8 | byte to node
  std::vector<int> ends_;                                   // token whose content ends at a node, or -1
  std::array<bool, 256> starts_{};                          // most bytes begin no token
};

}  // namespace farskip
