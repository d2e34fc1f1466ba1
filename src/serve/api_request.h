// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a client of the server asks for, read from the body of its request.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"
#include "infer/generate.h"
#include "jinja/template.h"

namespace farskip {

/// The model that is served, as requests are held against it.
struct ServedModel {
  std::string name;
  std::optional<Tokenizer> tokenizer;  // none: prompts are token ids, and texts have no text
  std::int64_t vocab_size = 0, max_positions = 0;
  std::int64_t max_text_tokens = 0;  // of a prompt and its text, by positions and cache
  // For conversations; without a template, the reason.
  std::optional<jinja::Template> chat_template{};
  std::string chat_fault = "the model brings no chat template";
  std::string bos_token{}, eos_token{};
};

/// One text of the answer.
struct AskedText {
  GenerationRequest request;
  std::string prompt_text{};  // what comes before it where the prompt is echoed
};
struct ApiRequest {
  std::vector<AskedText> texts;  // n of the first prompt, n of the second, …
  std::int64_t num_prompts = 1;
  bool is_chat = false, echo = false, stream = false, include_usage = false;
};

/// The body of a request to /v1/completions (docs/serving.md lists its keys). DataError or UsageError naming
/// the key, the value and what is allowed; ApiError 404 for another model. `default_seed`: where it gives
/// none.
ApiRequest parse_completion_request(std::string_view body, const ServedModel& model,
                                    std::int64_t default_seed);
/// The same of /v1/chat/completions: the model's template writes the messages as a prompt.
ApiRequest parse_chat_request(std::string_view body, const ServedModel& model, std::int64_t default_seed);

}  // namespace farskip
