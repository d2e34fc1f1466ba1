// SPDX-License-Identifier: Apache-2.0
#include "data/bpe.h"

#include <algorithm>

#include "data/unicode.h"
#include "farskip/base/error.h"
#include "farskip/base/file.h"

namespace farskip {
namespace {

std::array<char32_t, 256> make_byte_alphabet() {
  std::array<char32_t, 256> alphabet{};
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable_byte = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    alphabet[byte] = printable_byte ? byte : next++;
  }
  return alphabet;
}

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

/// A part of the word being merged; parts form a doubly linked list over indices.
struct Part {
  std::int32_t id, previous, next;
};

/// A pair that could merge. Stale once either part has changed.
struct Candidate {
  std::int32_t rank, position, left, right, merged;
};

/// Heap order: smallest rank, then leftmost, at the front.
bool after(const Candidate& a, const Candidate& b) {
  return std::pair(a.rank, a.position) > std::pair(b.rank, b.position);
}

}  // namespace

const std::array<char32_t, 256>& byte_alphabet() {
  static const std::array<char32_t, 256> alphabet = make_byte_alphabet();
  return alphabet;
}

std::string to_byte_alphabet(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes) append_code_point(text, byte_alphabet()[static_cast<unsigned char>(byte)]);
  return text;
}

bool from_byte_alphabet(std::string_view text, std::string& bytes) {
  static const std::array<int, 0x144> inverse = [] {
    std::array<int, 0x144> table{};
    table.fill(-1);
    for (int byte = 0; byte < 256; ++byte) table[byte_alphabet()[static_cast<std::size_t>(byte)]] = byte;
    return table;
  }();
  bytes.clear();
  for (std::size_t position = 0; position < text.size();) {
    const char32_t c = next_code_point(text, position);
    if (c >= inverse.size() || inverse[c] < 0) return false;
    bytes += static_cast<char>(static_cast<unsigned char>(inverse[c]));
  }
  return true;
}

BpeModel::BpeModel(const StringToId& vocabulary,
                   const std::vector<std::pair<std::string, std::string>>& merges, const BpeOptions& options,
                   const std::string& where)
    : fuse_unknown_(options.fuse_unknown) {
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const auto entry = vocabulary.find(to_byte_alphabet(std::string(1, static_cast<char>(byte))));
    byte_ids_[byte] = entry == vocabulary.end() ? kNoToken : entry->second;
  }
  if (const std::vector<std::uint8_t> missing = bytes_without_token();
      !missing.empty() && !options.unknown.empty()) {
    const auto entry = vocabulary.find(options.unknown);
    if (entry == vocabulary.end())
      throw DataError(fmt::format(
          "{}.unk_token: \"{}\" is not in the vocabulary, and byte {:#04x} has no token of its own", where,
          printable(options.unknown), missing.front()));
    unknown_id_ = entry->second;
  }
  const auto find = [&](const std::string& token, std::size_t i) {
    const auto entry = vocabulary.find(token);
    if (entry == vocabulary.end())
      throw DataError(
          fmt::format("{}.merges[{}]: token \"{}\" is not in the vocabulary", where, i, printable(token)));
    return entry->second;
  };
  merges_.reserve(merges.size());
  for (std::size_t i = 0; i < merges.size(); ++i) {
    const auto& [left, right] = merges[i];
    const Merge merge{static_cast<std::int32_t>(i), find(left + right, i)};
    if (!merges_.emplace(pair_key(find(left, i), find(right, i)), merge).second)
      throw DataError(fmt::format("{}.merges[{}]: the pair \"{}\" \"{}\" stands twice", where, i,
                                  printable(left), printable(right)));
  }
  if (!options.ignore_merges) return;
  std::string bytes;
  for (const auto& [token, id] : vocabulary)
    if (from_byte_alphabet(token, bytes)) words_.emplace(bytes, id);
}

std::vector<std::uint8_t> BpeModel::bytes_without_token() const {
  std::vector<std::uint8_t> bytes;
  for (std::size_t byte = 0; byte < 256; ++byte)
    if (byte_ids_[byte] == kNoToken) bytes.push_back(static_cast<std::uint8_t>(byte));
  return bytes;
}

const BpeModel::Merge* BpeModel::find_merge(std::int32_t left, std::int32_t right) const {
  const auto entry = merges_.find(pair_key(left, right));
  return entry == merges_.end() ? nullptr : &entry->second;
}

std::vector<std::int32_t> BpeModel::ids_of_bytes(std::string_view word) const {
  std::vector<std::int32_t> ids;
  ids.reserve(word.size());
  bool after_unknown = false;
  for (const char byte : word) {
    const std::int32_t id = byte_ids_[static_cast<unsigned char>(byte)];
    const bool unknown = id == kNoToken;
    if (!unknown)
      ids.push_back(id);
    else if (unknown_id_ != kNoToken && !(fuse_unknown_ && after_unknown))
      ids.push_back(unknown_id_);
    after_unknown = unknown;
  }
  return ids;
}

void BpeModel::encode_word(std::string_view word, std::vector<std::int32_t>& ids) const {
  if (const auto whole = words_.find(word); whole != words_.end()) {
    ids.push_back(whole->second);
    return;
  }
  FARSKIP_CHECK(word.size() < std::size_t{1} << 31, "a word of {} bytes", word.size());
  const std::vector<std::int32_t> bytes = ids_of_bytes(word);
  const auto count = static_cast<std::int32_t>(bytes.size());
  std::vector<Part> parts;
  parts.reserve(bytes.size());
  for (std::int32_t i = 0; i < count; ++i) parts.push_back({bytes[i], i - 1, i + 1 < count ? i + 1 : -1});
  std::vector<Candidate> heap;
  const auto consider = [&](std::int32_t left) {
    if (left < 0 || parts[left].next < 0) return false;
    const std::int32_t left_id = parts[left].id, right_id = parts[parts[left].next].id;
    const Merge* merge = find_merge(left_id, right_id);
    if (merge != nullptr) heap.push_back({merge->rank, left, left_id, right_id, merge->id});
    return merge != nullptr;
  };
  for (std::int32_t i = 0; i < count; ++i) consider(i);
  std::make_heap(heap.begin(), heap.end(), after);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), after);
    const Candidate best = heap.back();
    heap.pop_back();
    Part& left = parts[best.position];
    if (left.id != best.left || left.next < 0 || parts[left.next].id != best.right) continue;
    Part& right = parts[left.next];
    left.id = best.merged;
    left.next = right.next;
    if (right.next >= 0) parts[right.next].previous = best.position;
    right.id = -1;  // no longer part of the list
    for (const std::int32_t neighbour : {left.previous, best.position})
      if (consider(neighbour)) std::push_heap(heap.begin(), heap.end(), after);
  }
  for (std::int32_t i = 0; i >= 0 && i < count; i = parts[i].next) ids.push_back(parts[i].id);
}

}  // namespace farskip
