// SPDX-License-Identifier: Apache-2.0
#pragma once
// Answers to /v1/completions and /v1/chat/completions, whole or piece by piece, in OpenAI's form.

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "serve/api_request.h"

namespace farskip {

class CompletionWriter {
 public:
  CompletionWriter(const ApiRequest& request, const ServedModel& model);

  /// Takes what is new of a text into the answer. `ended`: how, where it has ended.
  /// Returns the chunk of a stream that says so.
  std::string add(std::size_t text, const GeneratedPart& part, const std::optional<Generated>& ended);
  /// The chunk of a stream with the numbers of tokens.
  std::string usage_chunk() const;
  /// The answer, when all texts have ended.
  std::string whole() const;

 private:
  struct LogProbs {  // of tokens in order; parallel lists, as clients want them
    std::vector<std::string> tokens;
    std::vector<std::optional<double>> values;
    std::vector<std::vector<std::pair<std::string, double>>> likeliest;
    std::vector<std::int64_t> offsets;
  };
  struct Choice {
    std::string text;
    LogProbs log_probs;
    std::optional<GenerationEnd> end;
    std::int64_t offset = 0;  // characters of tokens so far
    std::int64_t num_tokens = 0;
    bool has_begun = false;
  };
  std::string name_of_token(std::int32_t id) const;
  void add_token(std::int32_t id, const TokenScore* score, Choice& choice, LogProbs& to) const;
  Choice piece(std::size_t text, const GeneratedPart& part);
  nlohmann::ordered_json envelope(bool is_chunk) const;
  nlohmann::ordered_json usage() const;
  nlohmann::ordered_json choice_json(std::size_t text, const Choice& choice) const;
  nlohmann::ordered_json chat_choice_json(std::size_t text, const Choice& choice, bool is_chunk,
                                          bool is_first) const;

  const ApiRequest& request_;
  const ServedModel& model_;
  std::string id_;
  std::int64_t created_;  // seconds since 1970
  std::vector<Choice> choices_;
};

}  // namespace farskip
