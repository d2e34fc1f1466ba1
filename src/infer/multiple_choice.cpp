// SPDX-License-Identifier: Apache-2.0
#include "infer/multiple_choice.h"

#include <algorithm>
#include <cmath>

#include "data/unicode.h"
#include "farskip/base/error.h"

namespace farskip {
namespace {

/// As Python's str.isspace: four control characters more than Unicode's White_Space.
bool is_python_space(char32_t code_point) {
  return is_white_space(code_point) || (code_point >= 0x1c && code_point <= 0x1f);
}

std::size_t length_without_trailing_spaces(std::string_view text) {
  std::size_t length = 0;
  for (std::size_t at = 0; at < text.size();)
    if (!is_python_space(next_code_point(text, at))) length = at;
  return length;
}

std::int64_t count_characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char byte) { return (byte & 0xc0) != 0x80; });
}

/// A choice after an empty context. One that begins with the prefix itself is not scored for it.
Continuation encode_alone(const std::string& choice, const Tokenizer& tokenizer, std::int32_t prefix) {
  Continuation c{{prefix}, tokenizer.encode(choice)};
  if (!c.tokens.empty() && c.tokens.front() == prefix) c.tokens.erase(c.tokens.begin());
  return c;
}

void check_choice(const Continuation& c, const std::string& place, const ModelConfig& model) {
  if (c.tokens.empty())
    throw DataError(
        fmt::format("{}: adds no token to the context, so it has no likelihood; let it have text that the "
                    "context lacks",
                    place));
  if (static_cast<std::int64_t>(c.tokens.size()) > model.max_positions)
    throw DataError(
        fmt::format("{}: has {} tokens, and the model's max_position_embeddings is {}; shorten it", place,
                    c.tokens.size(), model.max_positions));
  for (const auto* ids : {&c.context, &c.tokens})
    for (const std::int32_t id : *ids)
      if (id >= model.vocab_size)
        throw DataError(
            fmt::format("{}: token {} is not in the model's vocabulary of {}; the tokenizer is that "
                        "of another model",
                        place, id, model.vocab_size));
}

/// Whether the right choice of each item has the largest score.
std::vector<bool> find_hits(const Task& task, std::span<const double> scores) {
  std::vector<bool> hits;
  for (const TaskItem& item : task.items) {
    const auto own = scores.first(item.choices.size());
    hits.push_back(std::max_element(own.begin(), own.end()) - own.begin() == item.gold);
    scores = scores.subspan(own.size());
  }
  return hits;
}

}  // namespace

std::vector<Continuation> encode_choices(const TaskItem& item, const Tokenizer& tokenizer,
                                         std::optional<std::int32_t> prefix, const ModelConfig& model) {
  const std::size_t end = length_without_trailing_spaces(item.context);
  const std::string context = item.context.substr(0, end), spaces = item.context.substr(end);
  if (context.empty() && !prefix)
    throw DataError(
        fmt::format("{}.context: empty, and the tokenizer names no token to begin a text with; name "
                    "a bos_token in tokenizer_config.json",
                    item.place));
  const std::vector<std::int32_t> own = tokenizer.encode_prompt(context);
  std::vector<Continuation> all;
  for (const std::string& choice : item.choices) {
    if (context.empty()) {
      all.push_back(encode_alone(spaces + choice, tokenizer, *prefix));
    } else {
      const std::vector<std::int32_t> whole = tokenizer.encode_prompt(item.context + choice);
      all.push_back(
          {own,
           {whole.begin() + static_cast<std::ptrdiff_t>(std::min(own.size(), whole.size())), whole.end()}});
    }
    check_choice(all.back(), fmt::format("{}.choices[{}]", item.place, all.size() - 1), model);
  }
  return all;
}

Share share_of(const std::vector<bool>& hits) {
  const auto n = static_cast<double>(hits.size());
  Share share{static_cast<double>(std::count(hits.begin(), hits.end(), true)) / n, std::nullopt};
  double squares = 0;
  for (const bool hit : hits) squares += std::pow((hit ? 1.0 : 0.0) - share.mean, 2);
  if (hits.size() > 1) share.standard_error = std::sqrt(squares / (n - 1)) / std::sqrt(n);
  return share;
}

TaskScore score_task(const Task& task, std::span<const double> log_likelihoods) {
  std::vector<double> normalized;
  for (const TaskItem& item : task.items)
    for (const std::string& choice : item.choices)
      normalized.push_back(log_likelihoods[normalized.size()] /
                           static_cast<double>(count_characters(choice)));
  return {share_of(find_hits(task, log_likelihoods)), share_of(find_hits(task, normalized))};
}

}  // namespace farskip
