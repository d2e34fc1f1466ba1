// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <limits>

#include "data/token_file.h"
#include "farskip/base/error.h"

namespace farskip {
namespace {

constexpr std::size_t kBufferSize = std::size_t{4} << 20;

template <class T>
void append(std::vector<std::byte>& bytes, T value) {
  const auto raw = std::as_bytes(std::span(&value, 1));
  bytes.insert(bytes.end(), raw.begin(), raw.end());
}

/// Largest id that `type` holds.
std::int64_t largest_id(TokenType type) {
  switch (type) {
    case TokenType::u8:
      return 255;
    case TokenType::u16:
      return 65535;
    case TokenType::i32:
    case TokenType::i64:
      return std::numeric_limits<std::int32_t>::max();
  }
  throw InternalError("unknown token type");
}

/// The prefix, if PREFIX.bin and PREFIX.idx are what its author can have meant.
const std::string& check_prefix(const std::string& prefix) {
  const fs::path name = fs::path(prefix).filename();
  if (name.empty() || name == "." || name == "..")
    throw UsageError(
        fmt::format("\"{}\" is no prefix of token files: PREFIX.bin and PREFIX.idx are written; add a "
                    "name to the folder",
                    prefix));
  std::error_code error;
  const fs::file_status status = fs::status(prefix, error);
  if (fs::exists(status) && !fs::is_regular_file(status) && !fs::is_directory(status))
    throw IoError(
        fmt::format("{}: is a device or pipe; tokens need a prefix, beside which PREFIX.bin and PREFIX.idx "
                    "are written",
                    prefix));
  return prefix;
}

}  // namespace

TokenFileWriter::TokenFileWriter(const std::string& prefix, TokenType type)
    : prefix_(check_prefix(prefix)), type_(type), bin_(prefix + ".bin"), idx_(prefix + ".idx") {
  const fs::path path(prefix), folder = path.parent_path();
  const std::string name = path.filename().string();
  remove_stale_temporaries(folder.empty() ? fs::path(".") : folder, [&](std::string_view other) {
    return other == name + ".bin" || other == name + ".idx";
  });
}

TokenFileWriter::~TokenFileWriter() = default;

void TokenFileWriter::add_document(std::span<const std::int32_t> tokens) {
  if (tokens.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()))
    throw DataError(fmt::format("{}.bin: document {} has {} tokens; the format allows 2147483647", prefix_,
                                num_documents(), tokens.size()));
  const std::int64_t largest = largest_id(type_);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] > largest)
      throw DataError(fmt::format("{}.bin: token id {} at document {}, position {} does not fit {} (0 to {})",
                                  prefix_, tokens[i], num_documents(), i, token_type_name(type_), largest));
    switch (type_) {
      case TokenType::u8:
        append(buffer_, static_cast<std::uint8_t>(tokens[i]));
        break;
      case TokenType::u16:
        append(buffer_, static_cast<std::uint16_t>(tokens[i]));
        break;
      case TokenType::i32:
        append(buffer_, tokens[i]);
        break;
      case TokenType::i64:
        append(buffer_, static_cast<std::int64_t>(tokens[i]));
        break;
    }
    if (buffer_.size() >= kBufferSize) flush();
  }
  lengths_.push_back(static_cast<std::int32_t>(tokens.size()));
  num_tokens_ += tokens.size();
}

void TokenFileWriter::flush() {
  bin_.write(std::span<const std::byte>(buffer_));
  buffer_.clear();
}

void TokenFileWriter::commit() {
  flush();
  std::vector<std::byte> idx;
  for (const char c : std::string_view("MMIDIDX\0\0", 9)) append(idx, c);
  append(idx, std::uint64_t{1});
  append(idx, static_cast<std::uint8_t>(type_));
  append(idx, std::uint64_t{lengths_.size()});
  append(idx, std::uint64_t{lengths_.size() + 1});
  for (const std::int32_t length : lengths_) append(idx, length);
  std::int64_t pointer = 0;
  for (const std::int32_t length : lengths_) {
    append(idx, pointer);
    pointer += length * static_cast<std::int64_t>(token_type_size(type_));
  }
  for (std::size_t i = 0; i <= lengths_.size(); ++i) append(idx, static_cast<std::int64_t>(i));

  idx_.write(std::span<const std::byte>(idx));
  // An index left from before must not meet the new .bin, should we stop between the two renames.
  std::error_code ignored;
  fs::remove(prefix_ + ".idx", ignored);
  bin_.commit();
  idx_.commit();
  const fs::path folder = fs::path(prefix_).parent_path();
  sync_directory(folder.empty() ? fs::path(".") : folder);
}

}  // namespace farskip
