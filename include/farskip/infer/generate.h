// SPDX-License-Identifier: Apache-2.0
#pragma once
// A text that a model continues: what is asked for, and what comes of it.

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "farskip/config/choice.h"
#include "farskip/engine/cached_engine.h"

namespace farskip {

// Ranges of what may be asked for.
inline constexpr std::int64_t kMostNewTokens = 1 << 20;
inline constexpr std::int64_t kMostSeed = std::int64_t{1} << 62;
inline constexpr double kMostTemperature = 100.0, kLeastPenalty = 0.01, kMostPenalty = 100.0;

struct GenerationRequest {
  std::vector<std::int32_t> prompt;
  std::int64_t max_tokens = 64;
  SamplingOptions sampling;
  /// Called with each new token; false ends the text after it. May be empty.
  std::function<bool(std::int32_t)> keep_going{};
};

/// Why a text ends.
enum class GenerationEnd { stop, max_tokens, context };
inline constexpr Choice<GenerationEnd> generation_end_names[] = {{"stop", GenerationEnd::stop},
                                                                 {"length", GenerationEnd::max_tokens},
                                                                 {"context", GenerationEnd::context}};
struct Generated {
  std::vector<std::int32_t> ids;
  GenerationEnd end = GenerationEnd::max_tokens;
  std::optional<std::int32_t> end_token{};  // that ended it; no part of ids
};

/// DataError naming `where` for an id that the model's vocabulary does not have.
void check_token_ids(const std::vector<std::int32_t>& ids, std::int64_t vocab_size, std::string_view where);

}  // namespace farskip
