// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>

#include "farskip/engine/engine.h"
#include "farskip/infer/sampling.h"

namespace farskip {

struct GenerateOptions {
  std::int64_t max_tokens = 64;
  SamplingOptions sampling;
  std::int64_t num_ids = 0;  // ids below it are chosen (a vocabulary is often padded); 0: all
};

/// Why a text ends.
enum class GenerationEnd { end_token, max_tokens, context };
inline constexpr Choice<GenerationEnd> generation_end_names[] = {{"stop", GenerationEnd::end_token},
                                                                 {"length", GenerationEnd::max_tokens},
                                                                 {"context", GenerationEnd::context}};
struct Generated {
  std::vector<std::int32_t> ids;
  GenerationEnd end = GenerationEnd::max_tokens;
};

/// Continues `prompt` until an end token of the model, max_tokens, or the model's longest position; calls
/// `use` with each new token. Recomputes the whole prefix for every token. UsageError where the prompt leaves
/// no room for a token, DataError where the model computes logits that are no numbers.
Generated generate(InferenceEngine& engine, std::vector<std::int32_t> prompt, const GenerateOptions& options,
                   const std::function<void(std::int32_t)>& use);

}  // namespace farskip
