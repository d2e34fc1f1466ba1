// SPDX-License-Identifier: Apache-2.0
#pragma once
// The bytes of a text file in order, compressed by gzip or not, and its lines.

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "farskip/base/file.h"

namespace farskip {

/// Largest document, and largest line of JSONL, in bytes.
inline constexpr std::uint64_t kMaxDocumentBytes = std::uint64_t{1} << 30;

class TextStream {
 public:
  /// `gzip`: unpacks while it reads. Errors of read() are then DataErrors for data that is damaged or cut
  /// off.
  TextStream(const fs::path& path, bool gzip);
  ~TextStream();

  const fs::path& path() const { return file_.path(); }
  /// Fills the buffer as far as there is text; fewer bytes, or none, mean the end.
  std::size_t read(std::span<char> buffer);

 private:
  struct Inflater;
  std::size_t read_packed(std::span<char> buffer);
  std::span<const std::byte> next_packed();

  InputFile file_;
  std::uint64_t consumed_ = 0;  // bytes of the file
  std::unique_ptr<Inflater> inflater_;
};

/// What is left of a stream; DataError if it is more than kMaxDocumentBytes.
std::string read_rest(TextStream& stream);

/// Reads line by line through a buffer.
class LineReader {
 public:
  LineReader(const fs::path& path, bool gzip) : stream_(path, gzip) {}

  /// The next line without its '\n'; false at the end. DataError for a line above kMaxDocumentBytes.
  bool next(std::string_view& line);
  /// Where that line begins, in bytes of the text.
  std::uint64_t line_start() const { return line_start_; }

 private:
  void refill();

  TextStream stream_;
  std::string buffer_;
  std::size_t begin_ = 0, line_length_ = 0;
  bool ended_ = false;
  std::uint64_t line_start_ = 0;
};

}  // namespace farskip
