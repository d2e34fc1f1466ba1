// SPDX-License-Identifier: Apache-2.0
#include "farskip/infer/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "farskip/base/random.h"

namespace farskip {
namespace {

constexpr std::uint64_t kStream = 0x67656e6572617465;  // "generate"

std::int32_t choose(std::span<const float> logits, const GenerateOptions& options, std::uint64_t counter) {
  const auto best =
      static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  if (options.temperature == 0.0) return best;
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const std::size_t k =
      options.top_k == 0 ? order.size() : std::min(order.size(), static_cast<std::size_t>(options.top_k));
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k), order.end(),
                    [&](std::int32_t a, std::int32_t b) {
                      return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
                    });
  std::vector<double> cumulative;
  double sum = 0;
  for (std::size_t i = 0; i < k; ++i)
    cumulative.push_back(
        sum += std::exp((static_cast<double>(logits[order[i]]) - logits[best]) / options.temperature));
  const double at = uniform_double(static_cast<std::uint64_t>(options.seed), kStream, counter) * sum;
  const auto i = static_cast<std::size_t>(std::upper_bound(cumulative.begin(), cumulative.end(), at) -
                                          cumulative.begin());
  return order[std::min(i, k - 1)];
}

}  // namespace

Generated generate(InferenceEngine& engine, std::vector<std::int32_t> prompt, const GenerateOptions& options,
                   const std::function<void(std::int32_t)>& use) {
  const ModelConfig& config = engine.config();
  FARSKIP_CHECK(!prompt.empty(), "an empty prompt");
  const std::int64_t num_ids =
      options.num_ids == 0 ? config.vocab_size : std::min(options.num_ids, config.vocab_size);
  if (static_cast<std::int64_t>(prompt.size()) >= config.max_positions)
    throw UsageError(
        fmt::format("the prompt has {} tokens and the model's max_position_embeddings is {}, so there is no "
                    "room for a new token; shorten the prompt",
                    prompt.size(), config.max_positions));
  Generated made;
  for (std::int64_t n = 0; n < options.max_tokens; ++n) {
    const auto length = static_cast<std::int64_t>(prompt.size());
    if (length >= config.max_positions) {
      made.end = GenerationEnd::context;
      return made;
    }
    // Attention is causal: what stands behind the last token does not change its logits, so lengths are
    // rounded up and few plans are made.
    std::vector<std::int32_t> padded = prompt;
    padded.resize(static_cast<std::size_t>(std::min((length + 63) / 64 * 64, config.max_positions)),
                  prompt.back());
    const TensorView logits = engine.logits(padded, static_cast<std::int64_t>(padded.size()));
    const float* row = logits.as<float>() + (length - 1) * config.vocab_size;
    const std::int32_t id =
        choose({row, static_cast<std::size_t>(num_ids)}, options, static_cast<std::uint64_t>(n));
    if (std::find(config.eos_tokens.begin(), config.eos_tokens.end(), id) != config.eos_tokens.end()) {
      made.end = GenerationEnd::end_token;
      return made;
    }
    prompt.push_back(id);
    made.ids.push_back(id);
    use(id);
  }
  return made;
}

}  // namespace farskip
