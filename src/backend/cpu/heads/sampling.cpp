// SPDX-License-Identifier: Apache-2.0
// The next token of each row of logits. One thread a row; nothing is sorted.
#include <array>

#include "backend/cpu/parallel.h"
#include "backend/sampling_row.h"
#include "farskip/backend/kernel.h"
#include "ops/inference_ops.h"

namespace farskip {
namespace {

using sampling::Masses;
using sampling::RowOptions;

/// Logits of the ids that may be chosen, with the penalty.
struct Row {
  const float* logits;
  const std::int32_t* seen;  // nullptr: no penalty
  float penalty;
  std::int32_t num_ids;

  float logit(std::int32_t i) const {
    const bool is_seen = seen != nullptr && (seen[i / 32] >> (i % 32) & 1) != 0;
    return is_seen ? sampling::penalised(logits[i], penalty) : logits[i];
  }
  std::uint32_t key(std::int32_t i) const { return sampling::logit_key(logit(i)); }
};

/// The largest key, at its lowest id.
struct Best {
  std::uint32_t key = 0;
  std::int32_t id = 0;
};

Best find_best(const Row& row) {
  Best best{row.key(0), 0};
  for (std::int32_t i = 1; i < row.num_ids; ++i)
    if (const std::uint32_t key = row.key(i); key > best.key) best = {key, i};
  return best;
}

/// The largest key such that the weights of all ids with that key or a larger one sum to target(sum of all
/// weights) at least. The target is positive and not larger than the sum. Digit by digit: a histogram of the
/// ids whose upper digits are known.
template <class Weight, class Target>
std::uint32_t find_threshold(const Row& row, const Weight& weight, const Target& target) {
  std::uint32_t known = 0, known_bits = 0;
  std::uint64_t wanted = 0;
  for (int d = 0; d < sampling::kDigits; ++d) {
    const int shift = sampling::shift_of(d);
    std::array<std::uint64_t, sampling::kBins> bins{};
    std::uint64_t total = 0;
    for (std::int32_t i = 0; i < row.num_ids; ++i) {
      const std::uint32_t key = row.key(i);
      if ((key & known_bits) != known) continue;
      const std::uint64_t w = weight(i, key);
      bins[(key >> shift) % sampling::kBins] += w;
      total += w;
    }
    if (d == 0) wanted = target(total);
    std::uint32_t digit = sampling::kBins - 1;
    for (; bins[digit] < wanted; --digit) wanted -= bins[digit];
    known |= digit << shift;
    known_bits = ~0U << shift;
  }
  return known;
}

/// The smallest key that top_k and top_p keep.
std::uint32_t least_key(const Row& row, const RowOptions& options, const Masses& masses) {
  std::uint32_t least = 0;
  if (const std::uint64_t kept = options.kept_of(row.num_ids); kept > 0)
    least = find_threshold(
        row, [](std::int32_t, std::uint32_t) { return std::uint64_t{1}; },
        [&](std::uint64_t) { return kept; });
  if (!options.has_top_p()) return least;
  return find_threshold(
      row, [&](std::int32_t i, std::uint32_t key) { return key >= least ? masses.of(row.logit(i)) : 0; },
      [&](std::uint64_t total) { return options.nucleus(total); });
}

std::int32_t draw(const Row& row, const RowOptions& options, const Best& best) {
  const Masses masses(best.key, options.temperature);
  const std::uint32_t least = least_key(row, options, masses);
  const std::uint64_t least_mass = options.least_mass();
  const auto kept_mass = [&](std::int32_t i) {
    const float logit = row.logit(i);
    const std::uint64_t mass = sampling::logit_key(logit) >= least ? masses.of(logit) : 0;
    return mass >= least_mass ? mass : 0;
  };
  std::uint64_t total = 0;
  for (std::int32_t i = 0; i < row.num_ids; ++i) total += kept_mass(i);
  const std::uint64_t point = options.point(total);
  std::uint64_t sum = 0;
  std::int32_t id = 0;
  while ((sum += kept_mass(id)) <= point) ++id;
  return id;
}

std::int32_t choose(const Row& row, const RowOptions& options) {
  const Best best = find_best(row);
  if (!sampling::is_choice(best.key)) return -1;
  return options.temperature > 0.0F ? draw(row, options, best) : best.id;
}

// logits[n, V], real[n, 4], whole[n, 4], [seen[n, words]] → ids[n]
void run_sample(const KernelCall& call) {
  const std::int64_t rows = call.in_shape(0)[0], vocab = call.in_shape(0)[1], words = (vocab + 31) / 32;
  const std::int64_t num_ids = call.get<ops::Sample>().num_ids;
  cpu::parallel_for(rows, [&](std::int64_t r) {
    const auto options = RowOptions::read(call.in(1) + r * 4, call.in<std::int32_t>(2) + r * 4);
    const std::int32_t* seen = call.has(3) ? call.in<std::int32_t>(3) + r * words : nullptr;
    call.out<std::int32_t>(0)[r] =
        choose({.logits = call.in(0) + r * vocab,
                .seen = options.repetition_penalty != 1.0F ? seen : nullptr,
                .penalty = options.repetition_penalty,
                .num_ids = static_cast<std::int32_t>(num_ids > 0 ? num_ids : vocab)},
               options);
  });
}

}  // namespace

void register_sampling(KernelTable& table);
void register_sampling(KernelTable& table) {
  table.add("sample", DType::f32, DeviceKind::cpu, {.run = run_sample, .workspace = nullptr});
}

}  // namespace farskip
