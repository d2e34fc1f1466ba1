// SPDX-License-Identifier: Apache-2.0
#pragma once
// Texts to be continued, from JSONL: {"prompt": text or [ids], "max_tokens": 64, "seed": 1, …}.

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "farskip/data/text_stream.h"
#include "farskip/data/tokenizer.h"
#include "farskip/infer/continuous_batch.h"

namespace farskip {

/// Reads one request at a time. All errors are DataErrors that name file and line.
class PromptFile {
 public:
  /// `tokenizer`: none, and prompts have to be token ids. `defaults`: what lines that do not say otherwise
  /// ask for.
  PromptFile(const fs::path& path, std::optional<Tokenizer> tokenizer, std::int64_t vocab_size,
             GenerationRequest defaults);
  /// The next line's; none after the last. Blank lines are passed over. Keys: prompt, max_tokens,
  /// temperature, top_k, top_p, min_p, repetition_penalty, seed; others are refused.
  std::optional<GenerationRequest> next();
  /// "FILE:LINE" of what next() gave last.
  std::string place() const;

 private:
  GenerationRequest parse(std::string_view line) const;
  std::vector<std::int32_t> tokens_of(const nlohmann::json& prompt) const;

  fs::path path_;
  LineReader lines_;
  std::int64_t line_ = 0;
  std::optional<Tokenizer> tokenizer_;
  std::int64_t vocab_size_;
  GenerationRequest defaults_;
};

}  // namespace farskip
