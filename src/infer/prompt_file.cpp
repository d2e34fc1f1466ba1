// SPDX-License-Identifier: Apache-2.0
#include "infer/prompt_file.h"

#include "infer/request_fields.h"

namespace farskip {

PromptFile::PromptFile(const fs::path& path, std::optional<Tokenizer> tokenizer, std::int64_t vocab_size,
                       GenerationRequest defaults)
    : path_(path),
      lines_(path),
      tokenizer_(std::move(tokenizer)),
      vocab_size_(vocab_size),
      defaults_(std::move(defaults)) {}

std::optional<GenerationRequest> PromptFile::next() {
  if (num_left_ == 0) {
    nlohmann::json line;
    if (lines_.next(line))
      parse(line);
    else if (num_given_ == 0)
      throw DataError(fmt::format("{}: holds no prompt; give one object {{\"prompt\": …}} a line",
                                  printable(path_.string(), 1000)));
    else
      return std::nullopt;
  }
  --num_left_;
  ++num_given_;
  GenerationRequest request = current_;
  ++current_.sampling.seed;
  return request;
}

void PromptFile::parse(const nlohmann::json& line) {
  JsonFields fields(line, place());
  current_ = defaults_;
  current_.sampling.seed += num_given_;
  current_.prompt = read_prompt(fields.require("prompt"), fields.at("prompt"), tokenizer_, vocab_size_);
  read_generation(fields, 1, tokenizer_.has_value(), current_);
  num_left_ = 1;
  read_number<std::int64_t>(fields, "n", 1, kMostTexts, num_left_);
  fields.finish();
}

}  // namespace farskip
