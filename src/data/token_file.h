// SPDX-License-Identifier: Apache-2.0
#pragma once
// Token files: the `.bin`/`.idx` pair of Megatron-LM (index version 1, magic "MMIDIDX"). docs/data.md has
// the layout.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/base/file.h"

namespace farskip {

/// Element types of a `.bin` that hold token ids; the values are the format's own codes.
enum class TokenType : std::uint8_t { u8 = 1, i32 = 4, i64 = 5, u16 = 8 };
std::size_t token_type_size(TokenType type);
std::string_view token_type_name(TokenType type);

/// The documents of one PREFIX.bin/PREFIX.idx pair as one stream of tokens, in index order. Reading is
/// thread-safe and keeps no state.
class TokenFile {
 public:
  /// Opens and checks the whole index; throws DataError naming file, field, value and what is allowed, or
  /// MissingInputError. With `vocabulary_size`, every read refuses ids outside [0, vocabulary_size);
  /// without it, ids that are negative or do not fit 31 bits.
  explicit TokenFile(const std::string& prefix, std::optional<std::int64_t> vocabulary_size = std::nullopt);

  const std::string& prefix() const { return prefix_; }
  TokenType type() const { return type_; }
  std::uint64_t num_tokens() const { return document_offsets_.back(); }
  std::uint64_t num_documents() const { return document_offsets_.size() - 1; }
  /// Stream offset of the first token of each document, and num_tokens() at the end.
  std::span<const std::uint64_t> document_offsets() const { return document_offsets_; }
  /// The document that holds token `offset` of the stream (offset < num_tokens()).
  std::uint64_t document_of(std::uint64_t offset) const;

  /// Copies tokens [offset, offset + count) of the stream. Throws DataError for an id out of range.
  void read(std::uint64_t offset, std::uint64_t count, std::int32_t* out) const;
  std::vector<std::int32_t> document(std::uint64_t index) const;
  /// Tells these tokens from others, wherever the files lie: a hash of the index and fingerprint_file of the
  /// `.bin`. Throws IoError.
  std::string fingerprint() const;

  /// Reads everything once; throws DataError naming file, document, position in it, id and vocabulary
  /// size at the first id outside [0, vocabulary_size).
  void check_token_range(std::int64_t vocabulary_size) const;

 private:
  void load_index(const InputFile& idx);
  void check_pointers(std::span<const std::int32_t> lengths, std::span<const std::int64_t> pointers);
  void read_piece(std::uint64_t byte_offset, std::uint64_t stream_offset, std::uint64_t count,
                  std::int64_t limit, std::int32_t* out) const;
  void read_within(std::uint64_t offset, std::uint64_t count, std::int64_t limit, std::int32_t* out) const;
  [[noreturn]] void refuse_token(std::uint64_t stream_offset, std::int64_t id, std::int64_t limit) const;

  std::string prefix_;
  InputFile bin_;
  std::int64_t limit_;  // ids must be below it
  TokenType type_ = TokenType::u16;
  std::vector<std::uint64_t> document_offsets_;
  // Only where the sequences do not simply follow one another in the .bin:
  std::vector<std::uint64_t> sequence_offsets_;   // in the stream, tokens; num_tokens() at the end
  std::vector<std::uint64_t> sequence_pointers_;  // in the .bin, bytes
};

/// Writes a pair document by document. Nothing is visible before commit(), which puts the .bin in place
/// first and the .idx last: a pair with an index is whole. A prefix that names a folder or a device, or files
/// that cannot be created, are refused at once.
class TokenFileWriter {
 public:
  TokenFileWriter(const std::string& prefix, TokenType type);
  ~TokenFileWriter();

  /// One document = one sequence. Throws DataError for an id that `type` cannot hold.
  void add_document(std::span<const std::int32_t> tokens);
  const std::string& prefix() const { return prefix_; }
  std::uint64_t num_tokens() const { return num_tokens_; }
  std::uint64_t num_documents() const { return lengths_.size(); }
  void commit();

 private:
  void flush();

  std::string prefix_;
  TokenType type_;
  OutputFile bin_, idx_;
  std::vector<std::byte> buffer_;
  std::vector<std::int32_t> lengths_;
  std::uint64_t num_tokens_ = 0;
};

/// The narrowest type the writer offers for ids below `vocabulary_size`: u16 or i32.
TokenType token_type_for(std::int64_t vocabulary_size);

}  // namespace farskip
