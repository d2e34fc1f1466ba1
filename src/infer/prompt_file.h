// SPDX-License-Identifier: Apache-2.0
#pragma once
// Texts to be continued, from JSONL: {"prompt": text or [ids], "max_tokens": 64, "seed": 1, …}.

#include <optional>
#include <string>

#include "data/text_source.h"
#include "infer/generate.h"

namespace farskip {

/// Reads one request at a time. All errors are DataErrors that name file and line.
class PromptFile {
 public:
  /// `tokenizer`: none, and prompts have to be token ids. `defaults`: what lines that do not say otherwise
  /// ask for.
  PromptFile(const fs::path& path, std::optional<Tokenizer> tokenizer, std::int64_t vocab_size,
             GenerationRequest defaults);
  /// The next one; none after the last. Blank lines are passed over. Keys: prompt, n, and those of
  /// read_generation (request_fields.h); others are refused. `n` texts of one prompt have consecutive seeds.
  /// Where no seed is given, request i of the file has the default's plus i. A file without any is refused.
  std::optional<GenerationRequest> next();
  /// "FILE:LINE" of what next() gave last.
  const std::string& place() const { return lines_.place(); }

 private:
  void parse(const nlohmann::json& line);

  fs::path path_;
  JsonLines lines_;
  std::optional<Tokenizer> tokenizer_;
  std::int64_t vocab_size_;
  GenerationRequest defaults_, current_;
  std::int64_t num_left_ = 0;   // of the current line
  std::int64_t num_given_ = 0;  // of the file
};

}  // namespace farskip
