// SPDX-License-Identifier: Apache-2.0
#pragma once
// How the next token of a text is chosen, and what the op `sample` (ops/inference_ops.h) reads of it.

#include <array>
#include <cstdint>
#include <span>

namespace farskip {

/// The rules, and what their values mean, are those of the op.
struct SamplingOptions {
  double temperature = 0.0;         // 0: the most likely token
  std::int64_t top_k = 0;           // keep so many of the most likely tokens; 0: all
  double top_p = 1.0;               // keep the most likely tokens that have this probability together
  double min_p = 0.0;               // keep tokens at least so likely, relative to the most likely one
  double repetition_penalty = 1.0;  // divides the odds of tokens that stand in the text already
  std::int64_t seed = 1;

  /// Whether the op needs to know which tokens stand in the text.
  bool needs_seen() const { return repetition_penalty != 1.0; }
};

/// A row of the op's inputs `real` and `whole`.
struct SamplingRow {
  std::array<float, 4> real;
  std::array<std::int32_t, 4> whole;
};
/// `counter`: how many tokens of this text were chosen before.
SamplingRow sampling_row(const SamplingOptions& options, std::int64_t counter);

/// Words of a row of the op's input `seen`.
constexpr std::int64_t seen_words(std::int64_t vocab_size) {
  return (vocab_size + 31) / 32;
}
/// Sets the bits of the ids in a row of `seen`.
void mark_seen(std::span<std::int32_t> seen, std::span<const std::int32_t> ids);

}  // namespace farskip
