// SPDX-License-Identifier: Apache-2.0
#include "infer/evaluate.h"

#include <algorithm>
#include <array>

#include "comm/collective_errors.h"

namespace farskip {

Batch read_batch(const Sampler& sampler, std::uint64_t first, std::int64_t count) {
  Batch batch;
  for (std::int64_t i = 0; i < count; ++i) {
    const Sample sample = sampler.sample(first + static_cast<std::uint64_t>(i));
    batch.tokens.insert(batch.tokens.end(), sample.tokens.begin(), sample.tokens.end());
    batch.targets.insert(batch.targets.end(), sample.targets.begin(), sample.targets.end());
    batch.document_start.insert(batch.document_start.end(), sample.document_start.begin(),
                                sample.document_start.end());
  }
  return batch;
}

std::int64_t count_targets(const Batch& batch) {
  return std::count_if(batch.targets.begin(), batch.targets.end(), [](std::int32_t t) { return t >= 0; });
}

namespace {

/// Sequences that are not counted: a rank that has none left takes part in the others' collectives.
void pad_batch(Batch& batch, std::int64_t sequences, std::int64_t length, bool document_mask) {
  const auto size = static_cast<std::size_t>(sequences * length);
  batch.tokens.resize(size, 0);
  batch.targets.resize(size, -1);
  if (document_mask) batch.document_start.resize(size, 0);
}

}  // namespace

Evaluation evaluate(InferenceEngine& engine, const Sampler& sampler, std::int64_t batch,
                    std::int64_t max_sequences) {
  const Communicator &world = engine.mesh().world(), &readers = engine.mesh().batch();
  auto sequences = static_cast<std::int64_t>(sampler.samples_per_epoch(0));
  if (max_sequences > 0) sequences = std::min(sequences, max_sequences);
  std::array<double, 4> sums{};  // loss, correct, counted, ranks that could not read their part
  std::exception_ptr failure;
  std::map<std::string, double> more;
  for (std::int64_t first = 0; first < sequences; first += batch * readers.size()) {
    const std::int64_t own = first + batch * readers.rank();
    const std::int64_t count = std::clamp<std::int64_t>(sequences - own, 0, batch);
    Batch b;
    try {
      b = read_batch(sampler, static_cast<std::uint64_t>(own), count);
    } catch (...) {  // the others' collectives need this rank all the same
      if (world.size() == 1) throw;
      failure = std::current_exception();
      sums[3] = 1;
    }
    if (world.size() > 1)
      pad_batch(b, batch, sampler.options().sequence_length, sampler.options().document_mask);
    const BatchLoss loss = engine.loss(b, sampler.options().sequence_length);
    const auto counted = [&](double sum) { return engine.mesh().position().counts_sequences() ? sum : 0.0; };
    sums[0] += counted(loss.loss_sum);
    sums[1] += counted(loss.num_correct);
    sums[2] += counted(static_cast<double>(count_targets(b)));
    for (const auto& [name, sum] : loss.sums) more[name] += counted(sum);
  }
  std::vector<double> values(sums.begin(), sums.end());
  for (const auto& [name, sum] : more) values.push_back(sum);
  world.all_reduce(std::span(values));
  if (values[3] > 0) throw_together(world, failure);
  Evaluation e{values[0] / values[2], values[1] / values[2], static_cast<std::int64_t>(values[2])};
  std::size_t i = sums.size();
  for (const auto& [name, sum] : more) e.means[name] = values[i++] / values[2];
  if (const auto it = e.means.find("student_loss"); it != e.means.end()) e.loss = it->second;
  return e;
}

Evaluation evaluate_all(InferenceEngine& engine, const std::vector<std::unique_ptr<Sampler>>& sources,
                        std::int64_t batch) {
  Evaluation sum;
  for (const auto& source : sources) {
    const Evaluation e = evaluate(engine, *source, batch, 0);
    if (e.tokens == 0) continue;
    const auto weight = static_cast<double>(e.tokens);
    sum.loss += e.loss * weight;
    sum.accuracy += e.accuracy * weight;
    for (const auto& [name, mean] : e.means) sum.means[name] += mean * weight;
    sum.tokens += e.tokens;
  }
  const auto tokens = static_cast<double>(sum.tokens);
  sum.loss /= tokens;
  sum.accuracy /= tokens;
  for (auto& [name, value] : sum.means) value /= tokens;
  return sum;
}

}  // namespace farskip
