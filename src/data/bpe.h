// SPDX-License-Identifier: Apache-2.0
#pragma once
// Byte-level byte-pair encoding of single words.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace farskip {

/// The printable alphabet in which tokenizer files write bytes: printable ASCII and Latin-1 stand for
/// themselves, the other 68 bytes are U+0100 and on (a space is Ġ).
const std::array<char32_t, 256>& byte_alphabet();
/// `bytes` written in that alphabet, UTF-8.
std::string to_byte_alphabet(std::string_view bytes);
/// The bytes that `text` stands for; false (and `bytes` is unspecified) if a character is outside.
bool from_byte_alphabet(std::string_view text, std::string& bytes);

struct StringHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};
using StringToId = std::unordered_map<std::string, std::int32_t, StringHash, std::equal_to<>>;

struct BpeOptions {
  bool ignore_merges = false;  // a word that is a token itself is never split
  std::string unknown;         // the token of bytes that have none; empty: such bytes are left out
  bool fuse_unknown = false;   // one such token for neighbours
};

/// Merges in order of rank; the leftmost pair first among equal ranks. Immutable after construction.
class BpeModel {
 public:
  /// `vocabulary` maps tokens in the byte alphabet to ids, `merges` are pairs of tokens, best first. Throws
  /// DataError, naming `where`, for an unknown token that is needed, and a merge of or into tokens, that the
  /// vocabulary lacks.
  BpeModel(const StringToId& vocabulary, const std::vector<std::pair<std::string, std::string>>& merges,
           const BpeOptions& options, const std::string& where);

  /// Appends the ids of one word of raw bytes.
  void encode_word(std::string_view word, std::vector<std::int32_t>& ids) const;
  /// Bytes that have no token of their own, ascending.
  std::vector<std::uint8_t> bytes_without_token() const;

 private:
  struct Merge {
    std::int32_t rank, id;
  };
  static constexpr std::int32_t kNoToken = -1;
  const Merge* find_merge(std::int32_t left, std::int32_t right) const;
  std::vector<std::int32_t> ids_of_bytes(std::string_view word) const;

  std::array<std::int32_t, 256> byte_ids_{};  // kNoToken for a byte without one
  std::int32_t unknown_id_ = kNoToken;
  bool fuse_unknown_ = false;
  std::unordered_map<std::uint64_t, Merge> merges_;  // left id << 32 | right id
  StringToId words_;                                 // raw bytes; filled with ignore_merges only
};

}  // namespace farskip
