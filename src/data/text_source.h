// SPDX-License-Identifier: Apache-2.0
#pragma once
// Raw text as documents, and documents as tokens.

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/text_files.h"
#include "data/text_stream.h"
#include "data/token_file.h"
#include "data/tokenizer.h"
#include "farskip/base/log.h"

namespace farskip {

/// Calls `use` with each document of one file, in the format that its ending names; a file with another
/// ending is plain text. Blank lines of JSONL, a byte order mark and files without text are passed over.
/// Throws DataError naming file, byte offset and line or element for text that is not UTF-8, broken JSON, a
/// missing "text", and contents that are of another format than plain text.
void for_each_document(const fs::path& file, const std::function<void(std::string_view text)>& use);

/// The values of a JSONL file, one at a time. Blank lines and a byte order mark are passed over. Throws
/// DataError naming the place for text that is not UTF-8 and broken JSON.
class JsonLines {
 public:
  explicit JsonLines(const fs::path& file);
  /// False after the last one.
  bool next(nlohmann::json& value);
  /// They say where the value that next() gave last stands: "FILE:LINE", and the byte of the line's
  /// beginning.
  const std::string& place() const { return place_; }
  std::uint64_t line_start() const { return lines_.line_start(); }

 private:
  fs::path file_;
  LineReader lines_;
  std::uint64_t number_ = 0;
  std::string place_;
};

/// Calls `use` with each value of a JSONL file, its place "FILE:LINE", and the byte at which that line
/// begins.
using UseJsonLine =
    std::function<void(const nlohmann::json& value, const std::string& place, std::uint64_t line_start)>;
void for_each_json_line(const fs::path& file, const UseJsonLine& use);

/// Adds every document of the files and an end-of-document token after each. A warning names files without a
/// document. Throws DataError if the tokenizer has no eos() or there is no document at all.
void add_text(std::span<const fs::path> files, const Tokenizer& tokenizer, TokenFileWriter& writer,
              const Logger& logger);

/// What the cached tokens depend on: XXH3-128 of the tokenizer and of every file's path, size and content.
std::string text_cache_key(std::span<const fs::path> files, const Tokenizer& tokenizer);

/// The tokens of the files in `cache_dir`, made unless they are there; returns the prefix. The finished
/// folder appears in one rename, so several processes may do this at once. What a killed one left is removed.
std::string tokenize_cached(std::span<const fs::path> files, const Tokenizer& tokenizer,
                            const fs::path& cache_dir, const Logger& logger);

}  // namespace farskip
