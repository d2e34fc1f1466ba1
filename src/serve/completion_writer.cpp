// SPDX-License-Identifier: Apache-2.0
#include "completion_writer.h"

#include <algorithm>
#include <ctime>
#include <random>

#include "data/unicode.h"
#include "json_text.h"

namespace farskip {
namespace {

using nlohmann::ordered_json;

std::string random_id(bool is_chat) {
  std::random_device random;
  return fmt::format("{}-{:08x}{:08x}{:08x}", is_chat ? "chatcmpl" : "cmpl", random(), random(), random());
}

std::int64_t count_characters(std::string_view bytes) {
  return std::count_if(bytes.begin(), bytes.end(), [](char byte) { return (byte & 0xc0) != 0x80; });
}

/// OpenAI has no word for the end of the context.
const char* finish_reason(GenerationEnd end) {
  return end == GenerationEnd::stop ? "stop" : "length";
}

template <class T>
void append(std::vector<T>& to, const std::vector<T>& more) {
  to.insert(to.end(), more.begin(), more.end());
}

}  // namespace

CompletionWriter::CompletionWriter(const ApiRequest& request, const ServedModel& model)
    : request_(request),
      model_(model),
      id_(random_id(request.is_chat)),
      created_(std::time(nullptr)),
      choices_(request.texts.size()) {}

/// A token's text; where that is no text alone, its bytes as OpenAI writes them.
std::string CompletionWriter::name_of_token(std::int32_t id) const {
  if (!model_.tokenizer || id >= model_.tokenizer->vocab_size()) return fmt::format("token_id:{}", id);
  std::string bytes = model_.tokenizer->token_bytes(id);
  if (!find_invalid_utf8(bytes)) return bytes;
  std::string name = "bytes:";
  for (const char byte : bytes) name += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
  return name;
}

void CompletionWriter::add_token(std::int32_t id, const TokenScore* score, Choice& choice,
                                 LogProbs& to) const {
  to.tokens.push_back(name_of_token(id));
  to.offsets.push_back(choice.offset);
  to.values.push_back(score != nullptr ? std::optional(score->log_probability) : std::nullopt);
  auto& likeliest = to.likeliest.emplace_back();
  if (score != nullptr)
    for (const auto& [other, value] : score->likeliest) likeliest.emplace_back(name_of_token(other), value);
  if (model_.tokenizer && id < model_.tokenizer->vocab_size())
    choice.offset += count_characters(model_.tokenizer->token_bytes(id, true));
}

/// What is new, the echo of the prompt included where it is the first of a text.
CompletionWriter::Choice CompletionWriter::piece(std::size_t text, const GeneratedPart& part) {
  const AskedText& asked = request_.texts[text];
  Choice& choice = choices_[text];
  Choice next;
  next.has_begun = std::exchange(choice.has_begun, true);
  if (request_.echo && !next.has_begun) {
    next.text = asked.prompt_text;
    if (asked.request.num_likely)
      for (std::size_t i = 0; i < asked.request.prompt.size(); ++i)
        add_token(asked.request.prompt[i], i > 0 ? &part.prompt_scores.at(i - 1) : nullptr, choice,
                  next.log_probs);
  }
  next.text += part.text;
  if (asked.request.num_likely)
    for (std::size_t i = 0; i < part.ids.size(); ++i)
      add_token(part.ids[i], &part.scores.at(i), choice, next.log_probs);
  next.num_tokens = static_cast<std::int64_t>(part.ids.size());
  return next;
}

std::string CompletionWriter::add(std::size_t text, const GeneratedPart& part,
                                  const std::optional<Generated>& ended) {
  Choice next = piece(text, part);
  if (ended) {
    next.end = ended->end;
    // Clients count on a token for each run of the model, so one that ends the text counts too.
    if (ended->end_token) ++next.num_tokens;
    if (ended->end_score) add_token(*ended->end_token, &*ended->end_score, choices_[text], next.log_probs);
  }
  Choice& choice = choices_[text];
  choice.text += next.text;
  append(choice.log_probs.tokens, next.log_probs.tokens);
  append(choice.log_probs.values, next.log_probs.values);
  append(choice.log_probs.likeliest, next.log_probs.likeliest);
  append(choice.log_probs.offsets, next.log_probs.offsets);
  choice.num_tokens += next.num_tokens;
  choice.end = next.end;
  ordered_json chunk = envelope(true);
  chunk["choices"] = ordered_json::array(
      {request_.is_chat ? chat_choice_json(text, next, true, !next.has_begun) : choice_json(text, next)});
  if (request_.include_usage) chunk["usage"] = nullptr;
  return json_text(chunk);
}

std::string CompletionWriter::usage_chunk() const {
  ordered_json chunk = envelope(true);
  chunk["choices"] = ordered_json::array();
  chunk["usage"] = usage();
  return json_text(chunk);
}

std::string CompletionWriter::whole() const {
  ordered_json answer = envelope(false);
  answer["choices"] = ordered_json::array();
  for (std::size_t i = 0; i < choices_.size(); ++i)
    answer["choices"].push_back(request_.is_chat ? chat_choice_json(i, choices_[i], false, true)
                                                 : choice_json(i, choices_[i]));
  answer["usage"] = usage();
  return json_text(answer);
}

ordered_json CompletionWriter::envelope(bool is_chunk) const {
  const char* const object = !request_.is_chat ? "text_completion"
                             : is_chunk        ? "chat.completion.chunk"
                                               : "chat.completion";
  return {{"id", id_}, {"object", object}, {"created", created_}, {"model", model_.name}};
}

/// The tokens of a prompt count once, however many texts follow it.
ordered_json CompletionWriter::usage() const {
  const std::size_t n = request_.texts.size() / static_cast<std::size_t>(request_.num_prompts);
  std::int64_t read = 0, made = 0;
  for (std::size_t i = 0; i < request_.texts.size(); i += n)
    read += static_cast<std::int64_t>(request_.texts[i].request.prompt.size());
  for (const Choice& choice : choices_) made += choice.num_tokens;
  return {{"prompt_tokens", read}, {"completion_tokens", made}, {"total_tokens", read + made}};
}

ordered_json CompletionWriter::choice_json(std::size_t text, const Choice& choice) const {
  ordered_json log_probs;
  if (request_.texts[text].request.num_likely) {
    const LogProbs& l = choice.log_probs;
    ordered_json values = ordered_json::array(), likeliest = ordered_json::array();
    for (std::size_t i = 0; i < l.tokens.size(); ++i) {
      values.push_back(l.values[i] ? ordered_json(*l.values[i]) : ordered_json());
      ordered_json tokens = ordered_json::object();
      for (const auto& [name, value] : l.likeliest[i]) tokens.emplace(name, value);
      likeliest.push_back(l.values[i] ? std::move(tokens) : ordered_json());
    }
    log_probs = {{"tokens", l.tokens},
                 {"token_logprobs", values},
                 {"top_logprobs", likeliest},
                 {"text_offset", l.offsets}};
  }
  return {{"text", choice.text},
          {"index", text},
          {"logprobs", log_probs},
          {"finish_reason", choice.end ? ordered_json(finish_reason(*choice.end)) : ordered_json()}};
}

/// Of a chunk the first one says who speaks.
ordered_json CompletionWriter::chat_choice_json(std::size_t text, const Choice& choice, bool is_chunk,
                                                bool is_first) const {
  ordered_json log_probs;
  if (request_.texts[text].request.num_likely) {
    const LogProbs& l = choice.log_probs;
    log_probs = {{"content", ordered_json::array()}};
    const auto entry = [](const std::string& token, double value) -> ordered_json {
      return {{"token", token}, {"logprob", value}, {"bytes", nullptr}};
    };
    for (std::size_t i = 0; i < l.tokens.size(); ++i) {
      ordered_json token = entry(l.tokens[i], l.values[i].value_or(0)), likeliest = ordered_json::array();
      for (const auto& [name, value] : l.likeliest[i]) likeliest.push_back(entry(name, value));
      token["top_logprobs"] = std::move(likeliest);
      log_probs["content"].push_back(std::move(token));
    }
  }
  ordered_json message = ordered_json::object();
  if (is_first) message["role"] = "assistant";
  message["content"] = choice.text;
  return {{"index", text},
          {is_chunk ? "delta" : "message", message},
          {"logprobs", log_probs},
          {"finish_reason", choice.end ? ordered_json(finish_reason(*choice.end)) : ordered_json()}};
}

}  // namespace farskip
