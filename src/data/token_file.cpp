// SPDX-License-Identifier: Apache-2.0
#include "data/token_file.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "farskip/base/error.h"
#include "tensor/hash.h"

namespace farskip {
namespace {

static_assert(std::endian::native == std::endian::little, "token files are little-endian");

constexpr std::string_view kMagic("MMIDIDX\0\0", 9);
constexpr std::uint64_t kHeaderSize =
    34;  // magic, version u64, type u8, sequence count u64, document count u64
constexpr std::int64_t kMaxId = std::int64_t{1} << 31;

template <class T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class T>
std::vector<T> read_array(const InputFile& file, std::uint64_t offset, std::uint64_t count) {
  std::vector<T> values(count);
  file.read_at(offset, std::as_writable_bytes(std::span(values)));
  return values;
}

/// Checks the sizes before anything is allocated from them.
struct Header {
  TokenType type;
  std::uint64_t num_sequences, num_document_entries;
};

Header read_header(const InputFile& idx) {
  const std::string name = idx.path().string();
  if (idx.size() < kHeaderSize)
    throw DataError(
        fmt::format("{}: {} bytes, but a token index has a header of {}", name, idx.size(), kHeaderSize));
  std::byte raw[kHeaderSize];
  idx.read_at(0, raw);
  if (std::memcmp(raw, kMagic.data(), kMagic.size()) != 0)
    throw DataError(
        fmt::format("{}: does not begin with \"MMIDIDX\", so it is not a Megatron token index; "
                    "write one with `farskip data tokenize`",
                    name));
  if (const auto version = load<std::uint64_t>(raw + 9); version != 1)
    throw DataError(fmt::format("{}: index version {} at byte 9, only 1 is known", name, version));
  const auto code = static_cast<std::uint8_t>(raw[17]);
  if (code != 1 && code != 4 && code != 5 && code != 8)
    throw DataError(
        fmt::format("{}: element type code {} at byte 17; token ids may be 1 (u8), 4 (i32), 5 (i64) or 8 "
                    "(u16)",
                    name, code));
  Header header{static_cast<TokenType>(code), load<std::uint64_t>(raw + 18), load<std::uint64_t>(raw + 26)};
  const std::uint64_t rest = idx.size() - kHeaderSize;
  if (header.num_sequences > rest / 12 ||
      header.num_document_entries > (rest - header.num_sequences * 12) / 8)
    throw DataError(
        fmt::format("{}: {} sequences and {} document entries do not fit a file of {} bytes; it is cut off "
                    "or damaged",
                    name, header.num_sequences, header.num_document_entries, idx.size()));
  if (const std::uint64_t need = header.num_sequences * 12 + header.num_document_entries * 8; need != rest)
    throw DataError(fmt::format("{}: {} bytes follow the document index, none may", name, rest - need));
  return header;
}

void check_document_entries(const InputFile& idx, std::span<const std::int64_t> entries,
                            std::uint64_t num_sequences) {
  const std::string name = idx.path().string();
  if (entries.empty() || entries.front() != 0)
    throw DataError(
        fmt::format("{}: the document index must begin with 0, it {}", name,
                    entries.empty() ? "is empty" : fmt::format("begins with {}", entries.front())));
  for (std::size_t i = 1; i < entries.size(); ++i)
    if (entries[i] < entries[i - 1])
      throw DataError(fmt::format("{}: document index entry {} is {}, below the entry before it ({})", name,
                                  i, entries[i], entries[i - 1]));
  if (static_cast<std::uint64_t>(entries.back()) != num_sequences)
    throw DataError(fmt::format("{}: the document index ends at sequence {}, but there are {} sequences",
                                name, entries.back(), num_sequences));
}

}  // namespace

std::size_t token_type_size(TokenType type) {
  switch (type) {
    case TokenType::u8:
      return 1;
    case TokenType::u16:
      return 2;
    case TokenType::i32:
      return 4;
    case TokenType::i64:
      return 8;
  }
  throw InternalError("unknown token type");
}

std::string_view token_type_name(TokenType type) {
  switch (type) {
    case TokenType::u8:
      return "u8";
    case TokenType::u16:
      return "u16";
    case TokenType::i32:
      return "i32";
    case TokenType::i64:
      return "i64";
  }
  throw InternalError("unknown token type");
}

TokenType token_type_for(std::int64_t vocabulary_size) {
  return vocabulary_size <= 65536 ? TokenType::u16 : TokenType::i32;
}

namespace {

/// The prefix, unless it is the name of one of the two files.
const std::string& check_prefix(const std::string& prefix) {
  const fs::path path(prefix);
  const bool one_of_two = path.extension() == ".bin" || path.extension() == ".idx";
  if (one_of_two && !fs::exists(prefix + ".bin"))
    throw MissingInputError(fmt::format("{}: is one file of a pair; name the prefix of both, {}", prefix,
                                        path.parent_path().append(path.stem().string()).string()));
  return prefix;
}

}  // namespace

TokenFile::TokenFile(const std::string& prefix, std::optional<std::int64_t> vocabulary_size)
    : prefix_(check_prefix(prefix)), bin_(prefix + ".bin"), limit_(vocabulary_size.value_or(kMaxId)) {
  FARSKIP_CHECK(limit_ > 0 && limit_ <= kMaxId, "vocabulary size {}", limit_);
  load_index(InputFile(prefix + ".idx"));
}

void TokenFile::load_index(const InputFile& idx) {
  const Header header = read_header(idx);
  type_ = header.type;
  const auto lengths = read_array<std::int32_t>(idx, kHeaderSize, header.num_sequences);
  const std::uint64_t pointers_at = kHeaderSize + header.num_sequences * 4;
  const auto pointers = read_array<std::int64_t>(idx, pointers_at, header.num_sequences);
  const auto entries =
      read_array<std::int64_t>(idx, pointers_at + header.num_sequences * 8, header.num_document_entries);
  check_document_entries(idx, entries, header.num_sequences);
  check_pointers(lengths, pointers);

  std::uint64_t offset = 0, sequence = 0;
  document_offsets_.reserve(entries.size());
  for (const std::int64_t entry : entries) {
    for (; sequence < static_cast<std::uint64_t>(entry); ++sequence)
      offset += static_cast<std::uint64_t>(lengths[sequence]);
    document_offsets_.push_back(offset);
  }
}

void TokenFile::check_pointers(std::span<const std::int32_t> lengths,
                               std::span<const std::int64_t> pointers) {
  const std::uint64_t size = token_type_size(type_);
  const std::string name = prefix_ + ".idx";
  bool contiguous = true;
  std::uint64_t next = 0;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    if (lengths[i] < 0) throw DataError(fmt::format("{}: sequence {} has length {}", name, i, lengths[i]));
    const std::uint64_t bytes = static_cast<std::uint64_t>(lengths[i]) * size;
    const auto pointer = static_cast<std::uint64_t>(pointers[i]);
    if (pointers[i] < 0 || pointer > bin_.size() || bytes > bin_.size() - pointer)
      throw DataError(
          fmt::format("{}: sequence {} ({} bytes at byte {}) lies outside {} of {} bytes; one of the two "
                      "files is cut off or they do not belong together",
                      name, i, bytes, pointers[i], bin_.path().string(), bin_.size()));
    contiguous = contiguous && pointer == next;
    next += bytes;
  }
  if (contiguous) return;
  sequence_offsets_.push_back(0);
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    sequence_offsets_.push_back(sequence_offsets_.back() + static_cast<std::uint64_t>(lengths[i]));
    sequence_pointers_.push_back(static_cast<std::uint64_t>(pointers[i]));
  }
}

std::uint64_t TokenFile::document_of(std::uint64_t offset) const {
  FARSKIP_CHECK(offset < num_tokens(), "token {} of {}", offset, num_tokens());
  const auto next = std::upper_bound(document_offsets_.begin(), document_offsets_.end(), offset);
  return static_cast<std::uint64_t>(next - document_offsets_.begin()) - 1;
}

void TokenFile::refuse_token(std::uint64_t stream_offset, std::int64_t id, std::int64_t limit) const {
  const std::uint64_t document = document_of(stream_offset);
  throw DataError(
      fmt::format("{}: token id {} at document {}, position {} is not in [0, {}), the range of the {}; "
                  "tokenize with the model's "
                  "own tokenizer or enlarge the model's vocabulary",
                  bin_.path().string(), id, document, stream_offset - document_offsets_[document], limit,
                  limit == kMaxId ? "32-bit token ids" : "vocabulary"));
}

void TokenFile::read_piece(std::uint64_t byte_offset, std::uint64_t stream_offset, std::uint64_t count,
                           std::int64_t limit, std::int32_t* out) const {
  std::vector<std::byte> raw(count * token_type_size(type_));
  bin_.read_at(byte_offset, raw);
  const auto convert = [&]<class T>(T) {
    for (std::uint64_t i = 0; i < count; ++i) {
      const auto id = static_cast<std::int64_t>(load<T>(raw.data() + i * sizeof(T)));
      if (id < 0 || id >= limit) [[unlikely]]
        refuse_token(stream_offset + i, id, limit);
      out[i] = static_cast<std::int32_t>(id);
    }
  };
  switch (type_) {
    case TokenType::u8:
      return convert(std::uint8_t{});
    case TokenType::u16:
      return convert(std::uint16_t{});
    case TokenType::i32:
      return convert(std::int32_t{});
    case TokenType::i64:
      return convert(std::int64_t{});
  }
}

void TokenFile::read_within(std::uint64_t offset, std::uint64_t count, std::int64_t limit,
                            std::int32_t* out) const {
  FARSKIP_CHECK(offset <= num_tokens() && count <= num_tokens() - offset, "tokens {}+{} of {}", offset, count,
                num_tokens());
  const std::uint64_t size = token_type_size(type_);
  if (sequence_offsets_.empty()) return read_piece(offset * size, offset, count, limit, out);
  auto sequence =
      static_cast<std::size_t>(std::upper_bound(sequence_offsets_.begin(), sequence_offsets_.end(), offset) -
                               sequence_offsets_.begin() - 1);
  for (; count > 0; ++sequence) {
    const std::uint64_t within = offset - sequence_offsets_[sequence];
    const std::uint64_t piece = std::min(count, sequence_offsets_[sequence + 1] - offset);
    read_piece(sequence_pointers_[sequence] + within * size, offset, piece, limit, out);
    offset += piece;
    out += piece;
    count -= piece;
  }
}

void TokenFile::read(std::uint64_t offset, std::uint64_t count, std::int32_t* out) const {
  read_within(offset, count, limit_, out);
}

std::vector<std::int32_t> TokenFile::document(std::uint64_t index) const {
  FARSKIP_CHECK(index < num_documents(), "document {} of {}", index, num_documents());
  std::vector<std::int32_t> tokens(document_offsets_[index + 1] - document_offsets_[index]);
  read(document_offsets_[index], tokens.size(), tokens.data());
  return tokens;
}

std::string TokenFile::fingerprint() const {
  Hasher hasher;
  hasher.update(token_type_name(type_));
  for (const auto* part : {&document_offsets_, &sequence_offsets_, &sequence_pointers_}) {
    hasher.update(fmt::format(" {} ", part->size()));
    hasher.update(std::as_bytes(std::span(*part)));
  }
  hasher.update(fingerprint_file(bin_));
  return hasher.hex();
}

void TokenFile::check_token_range(std::int64_t vocabulary_size) const {
  constexpr std::uint64_t kPiece = std::uint64_t{1} << 20;
  std::vector<std::int32_t> tokens(std::min(kPiece, num_tokens()));
  for (std::uint64_t offset = 0; offset < num_tokens(); offset += kPiece)
    read_within(offset, std::min(kPiece, num_tokens() - offset), vocabulary_size, tokens.data());
}

}  // namespace farskip
