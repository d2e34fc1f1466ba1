// SPDX-License-Identifier: Apache-2.0
#include "farskip/infer/prompt_file.h"

#include <limits>
#include <nlohmann/json.hpp>

#include "farskip/data/json_fields.h"
#include "farskip/tensor/strict_json.h"

namespace farskip {
namespace {

constexpr std::int64_t kMostTexts = 1 << 20;  // of one prompt

/// An optional number within a range, both ends included.
template <class T>
void read_number(JsonFields& fields, const std::string& key, T low, T high, T& value) {
  const nlohmann::json& given = fields.get(key);
  if (given.is_null()) return;
  bool is_right = std::is_integral_v<T> ? given.is_number_integer() : given.is_number();
  if (is_right && given.is_number_unsigned())
    is_right = given.get<std::uint64_t>() <= static_cast<std::uint64_t>(high);
  if (!is_right || given.get<T>() < low || given.get<T>() > high)
    throw DataError(fmt::format("{} is {}; allowed: {} from {} to {}", fields.at(key), given.dump(),
                                std::is_integral_v<T> ? "an integer" : "a number", low, high));
  value = given.get<T>();
}

}  // namespace

PromptFile::PromptFile(const fs::path& path, std::optional<Tokenizer> tokenizer, std::int64_t vocab_size,
                       GenerationRequest defaults)
    : path_(path),
      lines_(path, path.extension() == ".gz"),
      tokenizer_(std::move(tokenizer)),
      vocab_size_(vocab_size),
      defaults_(std::move(defaults)) {}

std::string PromptFile::place() const {
  return fmt::format("{}:{}", path_.string(), line_);
}

std::optional<GenerationRequest> PromptFile::next() {
  std::string_view line;
  while (num_left_ == 0) {
    if (!lines_.next(line)) return std::nullopt;
    ++line_;
    if (line.find_first_not_of(" \t\r") != std::string_view::npos) parse(line);
  }
  --num_left_;
  ++num_given_;
  GenerationRequest request = current_;
  ++current_.sampling.seed;
  return request;
}

void PromptFile::parse(std::string_view line) {
  const nlohmann::json object = parse_strict_json(line, place());
  JsonFields fields(object, place());
  GenerationRequest& request = current_ = defaults_;
  request.sampling.seed += num_given_;
  request.prompt = tokens_of(fields.require("prompt"));
  SamplingOptions& s = request.sampling;
  read_number<std::int64_t>(fields, "max_tokens", 1, kMostNewTokens, request.max_tokens);
  read_number(fields, "temperature", 0.0, kMostTemperature, s.temperature);
  read_number<std::int64_t>(fields, "top_k", 0, std::numeric_limits<std::int32_t>::max(), s.top_k);
  read_number(fields, "top_p", 0.0, 1.0, s.top_p);
  read_number(fields, "min_p", 0.0, 1.0, s.min_p);
  read_number(fields, "repetition_penalty", kLeastPenalty, kMostPenalty, s.repetition_penalty);
  read_number<std::int64_t>(fields, "seed", 0, kMostSeed, s.seed);
  num_left_ = 1;
  read_number<std::int64_t>(fields, "n", 1, kMostTexts, num_left_);
  fields.finish();
}

std::vector<std::int32_t> PromptFile::tokens_of(const nlohmann::json& prompt) const {
  if (prompt.is_string()) {
    if (!tokenizer_)
      throw DataError(
          fmt::format("{}.prompt is a text, and the model folder holds no tokenizer.json; give token "
                      "ids, or name a tokenizer with --tokenizer",
                      place()));
    std::vector<std::int32_t> ids = tokenizer_->encode_prompt(prompt.get_ref<const std::string&>());
    if (ids.empty()) throw DataError(fmt::format("{}.prompt is empty; give at least one character", place()));
    check_token_ids(ids, vocab_size_, place() + ".prompt");
    return ids;
  }
  if (!prompt.is_array() || prompt.empty())
    throw DataError(
        fmt::format("{}.prompt is {}; allowed: a text, or a list of token ids", place(), prompt.dump()));
  std::vector<std::int32_t> ids;
  for (const nlohmann::json& id : prompt) {
    if (!id.is_number_integer() || id.get<double>() < 0 ||
        id.get<double>() >= static_cast<double>(vocab_size_))
      throw DataError(fmt::format("{}.prompt: {} is no token id; allowed: integers from 0 to {}", place(),
                                  id.dump(), vocab_size_ - 1));
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

}  // namespace farskip
