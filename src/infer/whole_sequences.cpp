// SPDX-License-Identifier: Apache-2.0
#include "infer/whole_sequences.h"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>

namespace farskip {
namespace {

/// Lengths are rounded up to a multiple, so that few plans are made. Attention is causal: what stands behind
/// a token does not change it.
constexpr std::int64_t kLengthUnit = 32;

/// Sequences of one length that ranks which exchange routed rows compute together.
struct Round {
  std::int64_t length = 0;
  std::int64_t sequences = 0;        // of each rank; the last of them may be padding
  std::span<const std::size_t> all;  // which continuations, rank after rank
};

/// By the length that they are padded to, longest first: what does not fit into memory fails at once.
using ByLength = std::map<std::int64_t, std::vector<std::size_t>, std::greater<>>;

ByLength sort_by_length(std::span<const Continuation> continuations, std::int64_t max_positions) {
  ByLength lengths;
  for (std::size_t i = 0; i < continuations.size(); ++i) {
    const std::int64_t padded =
        (continuations[i].num_positions() + kLengthUnit - 1) / kLengthUnit * kLengthUnit;
    lengths[std::min(padded, max_positions)].push_back(i);
  }
  return lengths;
}

std::vector<Round> cut_into_rounds(const ByLength& lengths, std::int64_t batch, std::int64_t ranks) {
  std::vector<Round> rounds;
  for (const auto& [length, members] : lengths)
    for (std::span<const std::size_t> left = members; !left.empty();) {
      const auto all = left.first(std::min(left.size(), static_cast<std::size_t>(batch * ranks)));
      rounds.push_back({length, (static_cast<std::int64_t>(all.size()) + ranks - 1) / ranks, all});
      left = left.subspan(all.size());
    }
  return rounds;
}

/// This rank's sequences of a round.
std::span<const std::size_t> own_part(const Round& round, std::int64_t rank) {
  const auto first = std::min(static_cast<std::size_t>(round.sequences * rank), round.all.size());
  return round.all.subspan(first,
                           std::min(static_cast<std::size_t>(round.sequences), round.all.size() - first));
}

/// Puts a continuation into sequence `row`, with its tokens as the only targets that count.
void put_sequence(const Continuation& c, std::int64_t row, std::int64_t length, Batch& batch) {
  std::vector<std::int32_t> text = c.context;
  text.insert(text.end(), c.tokens.begin(), c.tokens.end());
  const std::int64_t positions = std::min(c.num_positions(), length);  // fewer where the model has no more
  std::copy_n(text.end() - 1 - positions, positions, batch.tokens.begin() + row * length);
  std::copy(c.tokens.begin(), c.tokens.end(),
            batch.targets.begin() + row * length + positions - static_cast<std::int64_t>(c.tokens.size()));
}

}  // namespace

std::vector<double> whole_sequence_likelihoods(InferenceEngine& engine,
                                               std::span<const Continuation> continuations,
                                               std::int64_t batch) {
  const MeshPosition mesh = engine.mesh().position();
  const ByLength lengths = sort_by_length(continuations, engine.config().max_positions);
  // Ranks that exchange routed rows take part in the same rounds; those of a tensor group have the same
  // texts.
  const int together = mesh.exchange_size();
  const std::vector<Round> rounds = cut_into_rounds(lengths, batch, together);
  std::vector<double> sums(continuations.size());  // of this rank's; those of the others are 0
  for (auto r = static_cast<std::size_t>(mesh.rank(MeshAxis::data)); r < rounds.size();
       r += static_cast<std::size_t>(mesh.size(MeshAxis::data))) {
    const Round& round = rounds[r];
    const std::span<const std::size_t> own = own_part(round, mesh.world_rank % together);
    const auto size = static_cast<std::size_t>(round.sequences * round.length);
    Batch sequences{std::vector<std::int32_t>(size, 0), std::vector<std::int32_t>(size, -1), {}};
    for (std::size_t i = 0; i < own.size(); ++i)
      put_sequence(continuations[own[i]], static_cast<std::int64_t>(i), round.length, sequences);
    auto losses = engine.token_losses(sequences, round.length);
    if (!mesh.counts_sequences()) continue;
    for (const std::size_t i : own) {
      const auto row = losses.first(static_cast<std::size_t>(round.length));
      sums[i] = -std::accumulate(row.begin(), row.end(), 0.0);
      losses = losses.subspan(row.size());
    }
  }
  engine.mesh().world().all_reduce(std::span(sums));
  return sums;
}

}  // namespace farskip
