// SPDX-License-Identifier: Apache-2.0
#include "measure/inference_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <numeric>

#include "base/statistics.h"
#include "farskip/base/random.h"
#include "farskip/state/weights.h"
#include "measure/measure.h"

namespace farskip {
namespace {

double seconds_of(const std::function<void()>& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

CacheSize cache_for(std::int64_t sequences, std::int64_t length) {
  CacheSize size{.max_sequences = sequences, .max_tokens = length + 1};
  size.num_blocks = sequences * size.max_blocks();
  return size;
}

}  // namespace

std::shared_ptr<const States> random_constants(const Model& model, const Context& context, DType compute,
                                               std::uint64_t seed) {
  const auto parameters = local_parameters(list_parameters(model.config), context.mesh.position(), false);
  auto states = std::make_shared<States>(context.device(), constant_states(parameters, compute));
  initialise_weights(*states, seed, model.config.initializer_range);
  return states;
}

double measure_copy_rate(Device& device, int rounds) {
  const std::size_t bytes = device.shares_host_memory() ? std::size_t{1} << 26U : std::size_t{1} << 30U;
  const auto from = device.allocate(bytes), to = device.allocate(bytes);
  device.fill_zero(from.get(), bytes);
  constexpr int copies = 4;  // so that waiting for the device costs little beside them
  std::vector<double> seconds;
  for (int round = 0; round < rounds + 1; ++round)
    seconds.push_back(seconds_of([&] {
      for (int i = 0; i < copies; ++i) device.copy_within(to.get(), from.get(), bytes);
      device.synchronize();
    }));
  seconds.erase(seconds.begin());
  return 2.0 * copies * static_cast<double>(bytes) / median(seconds);
}

InferenceBench::InferenceBench(const Model& model, const Context& context,
                               std::shared_ptr<const States> weights, std::int64_t sequences,
                               std::int64_t length, const PlanOptions& plan, bool align)
    : model_(model),
      context_(context),
      weights_(std::move(weights)),
      engine_(model, weights_, context, cache_for(sequences, length), 0, plan, align) {
  engine_.cache().fill_zero(Role::cache);
  std::vector<std::int32_t> blocks(static_cast<std::size_t>(engine_.size().max_blocks()));
  for (std::int64_t s = 0; s < sequences; ++s) {
    std::iota(blocks.begin(), blocks.end(), static_cast<std::int32_t>(s * engine_.size().max_blocks()));
    engine_.set_blocks(s, blocks);
  }
}

std::int32_t InferenceBench::random_token(std::int64_t number) const {
  constexpr std::uint64_t stream = 0x696e666572656e63;  // "inferenc"
  const double at = uniform_double(0, stream, static_cast<std::uint64_t>(number));
  return static_cast<std::int32_t>(at * static_cast<double>(model_.config.vocab_size));
}

// Of experts, those that `batch` tokens choose at the mean where all are equally likely.
double InferenceBench::decode_bytes(std::int64_t batch, std::int64_t length) const {
  const ModelConfig& c = model_.config;
  const auto texts = static_cast<double>(batch);
  double bytes = 0;
  for (const StateSpec& state : weights_->specs()) {
    const ParameterSpec& p = state.parameter->spec;
    double share = 1.0;
    if (p.is_expert)
      share -=
          std::pow(1.0 - static_cast<double>(c.moe.top_k) / static_cast<double>(c.moe.num_experts), texts);
    if (p.name == kEmbeddingName && !c.tie_embeddings)
      share = std::min(1.0, texts / static_cast<double>(c.vocab_size));
    bytes += share * static_cast<double>(state.num_bytes());
  }
  const auto rows = texts * static_cast<double>(length + 1);
  return bytes + rows * static_cast<double>(cache_elements(c, context_.mesh.position().tensor_size)) *
                     static_cast<double>(dtype_size(weights_->compute()));
}

InferenceTimes InferenceBench::measure(const CachedTokens& run, int repetitions) {
  const std::vector<Draw> draws(run.output_rows.size());
  const auto once = [&] { engine_.next(run, draws); };
  warm_up(context_, 3, once);  // a GPU chooses algorithms, records, replays
  std::vector<double> seconds;
  for (int i = 0; i < repetitions; ++i) seconds.push_back(seconds_of(once));
  return {median(seconds), quantile(seconds, 0.99), run.count(), 0};
}

CachedTokens InferenceBench::decode_tokens(std::int64_t batch, std::int64_t length) const {
  CachedTokens run;
  for (std::int64_t s = 0; s < batch; ++s) run.add(random_token(s), s, length, true);
  return run;
}

CachedTokens InferenceBench::prefill_tokens(std::int64_t requests, std::int64_t length) const {
  CachedTokens run;
  run.fresh = true;
  for (std::int64_t s = 0; s < requests; ++s)
    for (std::int64_t p = 0; p < length; ++p) run.add(random_token(s * length + p), s, p, p + 1 == length);
  return run;
}

InferenceTimes InferenceBench::decode(std::int64_t batch, std::int64_t length, int repetitions) {
  InferenceTimes times = measure(decode_tokens(batch, length), repetitions);
  times.bytes_read = decode_bytes(batch, length);
  return times;
}

InferenceTimes InferenceBench::prefill(std::int64_t requests, std::int64_t length, int repetitions) {
  return measure(prefill_tokens(requests, length), repetitions);
}

}  // namespace farskip
