// SPDX-License-Identifier: Apache-2.0
#pragma once
// A text that a model continues: what is asked for, and what comes of it.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/cached_engine.h"
#include "farskip/config/choice.h"

namespace farskip {

// Ranges of what may be asked for.
inline constexpr std::int64_t kMostNewTokens = 1 << 20;
inline constexpr std::int64_t kMostSeed = std::int64_t{1} << 62;
inline constexpr double kMostTemperature = 100.0, kLeastPenalty = 0.01, kMostPenalty = 100.0;
inline constexpr std::size_t kMostStops = 16, kMostStopBytes = 1024;

/// How likely the model finds a token after those before it, before temperature and penalty, in nats.
struct TokenScore {
  double log_probability = 0;
  std::vector<std::pair<std::int32_t, double>> likeliest{};  // in its place, the likeliest token first
};

/// Some tokens of a text that is continued.
struct GeneratedPart {
  std::string text{};  // empty without a tokenizer
  std::vector<std::int32_t> ids{};
  std::vector<TokenScore> scores{};         // of ids, where they are asked for
  std::vector<TokenScore> prompt_scores{};  // of the prompt's tokens but the first, likewise

  bool empty() const { return text.empty() && ids.empty() && prompt_scores.empty(); }
  GeneratedPart& operator+=(const GeneratedPart& next);
};

struct GenerationRequest {
  std::vector<std::int32_t> prompt;
  std::int64_t max_tokens = 64;  // 0: the prompt is only read
  SamplingOptions sampling;
  std::vector<std::string> stop{};           // the text ends before the first of them
  std::optional<std::int64_t> num_likely{};  // asks for scores, each with so many likely tokens
  bool score_prompt = false;                 // too, where scores are asked for
  /// Called with what is added to the text as soon as it is sure to stay. May be empty.
  std::function<void(const GeneratedPart&)> on_part{};
};

/// Why a text ends. not_finite: a logit of the model is not a finite number.
enum class GenerationEnd { stop, max_tokens, context, not_finite };
inline constexpr Choice<GenerationEnd> generation_end_names[] = {{"stop", GenerationEnd::stop},
                                                                 {"length", GenerationEnd::max_tokens},
                                                                 {"context", GenerationEnd::context},
                                                                 {"not finite", GenerationEnd::not_finite}};
struct Generated : GeneratedPart {
  GenerationEnd end = GenerationEnd::max_tokens;
  std::optional<std::int32_t> end_token{};  // that ended it; no part of ids
  std::optional<TokenScore> end_score{};    // of end_token, where scores are asked for
};

/// DataError where a logit was not finite.
void check_finite(const Generated& text);

/// DataError naming `where` for an id that the model's vocabulary does not have.
void check_token_ids(const std::vector<std::int32_t>& ids, std::int64_t vocab_size, std::string_view where);

}  // namespace farskip
