// SPDX-License-Identifier: Apache-2.0
#include "serve/api_request.h"

#include "infer/request_fields.h"
#include "serve/api_error.h"
#include "tensor/strict_json.h"

namespace farskip {
namespace {

using nlohmann::json;

constexpr std::int64_t kMostChoices = 128, kMostLikely = 20;
constexpr std::int64_t kDefaultMaxTokens = 16;  // as OpenAI has it

void check_model(JsonFields& fields, const ServedModel& model) {
  const std::string asked = fields.require_string("model");
  if (asked != model.name)
    throw ApiError(
        404,
        fmt::format("the model \"{}\" is not served here; allowed: \"{}\"", printable(asked), model.name),
        "model_not_found");
}

/// A setting of OpenAI's that is not built: only the value that asks for nothing is allowed.
void require_neutral(JsonFields& fields, const char* key, const json& neutral) {
  const json& given = fields.get(key);
  if (!given.is_null() && given != neutral)
    throw DataError(fmt::format("{} is {}; this server supports only {}", fields.at(key),
                                printable(given.dump()), neutral.dump()));
}

void read_streaming(JsonFields& fields, ApiRequest& request) {
  request.stream = fields.boolean_or("stream", false);
  const json& options = fields.get("stream_options");
  if (options.is_null()) return;
  if (!request.stream)
    throw DataError(fmt::format("{} is given without \"stream\": true", fields.at("stream_options")));
  JsonFields inner(options, fields.at("stream_options"));
  request.include_usage = inner.boolean_or("include_usage", false);
  inner.finish();
}

/// One prompt, or a list of them: a text and a list of ids are one.
std::vector<json> split_prompts(const json& prompt) {
  const bool is_list = prompt.is_array() && !prompt.empty() && !prompt[0].is_number();
  if (!is_list) return {prompt};
  return {prompt.begin(), prompt.end()};
}

AskedText ask_for(const json& prompt, const std::string& place, const ServedModel& model,
                  const GenerationRequest& settings, bool echo) {
  AskedText text{settings};
  text.request.prompt = read_prompt(prompt, place, model.tokenizer, model.vocab_size);
  if (!echo) return text;
  if (prompt.is_string())
    text.prompt_text = prompt.get<std::string>();
  else if (model.tokenizer)
    text.prompt_text = model.tokenizer->decode(text.request.prompt, true);
  return text;
}

/// `n` of each prompt, with consecutive seeds.
void add_texts(const json& prompt, const std::string& place, const ServedModel& model,
               const GenerationRequest& settings, std::int64_t n, ApiRequest& request) {
  const std::vector<json> prompts = split_prompts(prompt);
  request.num_prompts = static_cast<std::int64_t>(prompts.size());
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    AskedText text = ask_for(prompts[i], prompts.size() > 1 ? fmt::format("{}[{}]", place, i) : place, model,
                             settings, request.echo);
    for (std::int64_t k = 0; k < n; ++k, ++text.request.sampling.seed) request.texts.push_back(text);
  }
}

/// n, logit_bias and others that both kinds of requests have.
std::int64_t read_common(JsonFields& fields, const ServedModel& model, std::int64_t default_seed,
                         ApiRequest& request, GenerationRequest& settings) {
  check_model(fields, model);
  settings.sampling.temperature = 1.0;
  settings.sampling.seed = default_seed;
  read_generation(fields, 0, model.tokenizer.has_value(), settings);
  std::int64_t n = 1;
  read_number<std::int64_t>(fields, "n", 1, kMostChoices, n);
  read_streaming(fields, request);
  require_neutral(fields, "presence_penalty", 0);
  require_neutral(fields, "frequency_penalty", 0);
  require_neutral(fields, "logit_bias", json::object());
  fields.get("user");  // says who asks, which changes nothing
  return n;
}

/// The text of a message: a string, or parts of type text.
std::string content_of(const json& content, const std::string& place) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array())
    throw DataError(fmt::format("{} is {}; allowed: a text, or a list of parts of type text", place,
                                printable(content.dump())));
  std::string text;
  for (const json& part : content) {
    JsonFields fields(part, place);
    if (fields.require_string("type") != "text")
      throw DataError(fmt::format("{} has a part of type {}; this server supports only text", place,
                                  printable(part["type"].dump())));
    text += fields.require_string("text");
    fields.finish();
  }
  return text;
}

nlohmann::ordered_json read_messages(const json& messages, const std::string& place) {
  if (!messages.is_array() || messages.empty())
    throw DataError(
        fmt::format("{} is {}; allowed: a list of one message or more", place, printable(messages.dump())));
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const json& message : messages) {
    JsonFields fields(message, fmt::format("{}[{}]", place, all.size()));
    nlohmann::ordered_json read = {{"role", fields.require_string("role")},
                                   {"content", content_of(fields.require("content"), fields.at("content"))}};
    if (!fields.get("name").is_null()) read["name"] = fields.require_string("name");
    require_neutral(fields, "tool_calls", json::array());
    require_neutral(fields, "refusal", nullptr);
    fields.finish();
    all.push_back(std::move(read));
  }
  return all;
}

void refuse_tools(JsonFields& fields) {
  require_neutral(fields, "tools", json::array());
  require_neutral(fields, "tool_choice", "none");
  require_neutral(fields, "response_format", {{"type", "text"}});
}

void read_chat_scores(JsonFields& fields, GenerationRequest& settings) {
  const bool wanted = fields.boolean_or("logprobs", false);
  std::int64_t likely = 0;
  read_number<std::int64_t>(fields, "top_logprobs", 0, kMostLikely, likely);
  if (likely > 0 && !wanted)
    throw DataError(fmt::format("{} is given without \"logprobs\": true", fields.at("top_logprobs")));
  if (wanted) settings.num_likely = likely;
}

}  // namespace

ApiRequest parse_completion_request(std::string_view body, const ServedModel& model,
                                    std::int64_t default_seed) {
  const json object = parse_strict_json(body, "body");
  JsonFields fields(object, "body");
  ApiRequest request;
  GenerationRequest settings;
  settings.max_tokens = kDefaultMaxTokens;
  const std::int64_t n = read_common(fields, model, default_seed, request, settings);
  std::int64_t likely = -1;
  read_number<std::int64_t>(fields, "logprobs", 0, kMostLikely, likely);
  if (likely >= 0) settings.num_likely = likely;
  request.echo = fields.boolean_or("echo", false);
  settings.score_prompt = request.echo && settings.num_likely.has_value();
  require_neutral(fields, "best_of", n);
  require_neutral(fields, "suffix", "");
  const json& prompt = fields.require("prompt");
  fields.finish();
  add_texts(prompt, fields.at("prompt"), model, settings, n, request);
  return request;
}

ApiRequest parse_chat_request(std::string_view body, const ServedModel& model, std::int64_t default_seed) {
  if (!model.tokenizer || !model.chat_template)
    throw UsageError(fmt::format("chat is not served: {}", model.chat_fault));
  const json object = parse_strict_json(body, "body");
  JsonFields fields(object, "body");
  ApiRequest request;
  request.is_chat = true;
  GenerationRequest settings;
  settings.max_tokens = -1;
  const std::int64_t n = read_common(fields, model, default_seed, request, settings);
  read_number<std::int64_t>(fields, "max_completion_tokens", 0, kMostNewTokens, settings.max_tokens);
  read_chat_scores(fields, settings);
  refuse_tools(fields);
  const nlohmann::ordered_json messages = read_messages(fields.require("messages"), fields.at("messages"));
  fields.finish();
  const std::string text = model.chat_template->render({{"messages", messages},
                                                        {"add_generation_prompt", true},
                                                        {"bos_token", model.bos_token},
                                                        {"eos_token", model.eos_token}});
  settings.prompt = model.tokenizer->encode(text);  // what stands before a text is the template's to say
  check_token_ids(settings.prompt, model.vocab_size, fields.at("messages"));
  if (settings.max_tokens < 0)  // as much as there is room for
    settings.max_tokens = std::max<std::int64_t>(1, model.max_text_tokens - std::ssize(settings.prompt));
  for (std::int64_t k = 0; k < n; ++k, ++settings.sampling.seed) request.texts.push_back({settings});
  return request;
}

}  // namespace farskip
