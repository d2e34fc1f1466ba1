// SPDX-License-Identifier: Apache-2.0
#pragma once
// A dense model as one of equal experts (sparse upcycling, Komatsuzaki et al. 2022, arXiv 2212.05055).

#include <cstdint>
#include <vector>

#include "farskip/state/weights.h"
#include "state/hub_sources.h"

namespace farskip {

struct Upcycling {
  std::int64_t num_experts = 0, top_k = 0;
  double noise = 0.0;  // by how much experts differ, relative to their weights
  std::uint64_t seed = 1;
};

/// The model with `num_experts` experts of the MLP's size in place of each MLP, in the family that has them
/// (Family::with_experts). The weights of a token's experts sum to one. UsageError for a model that has
/// experts, and for a family without such another.
ModelConfig upcycle_config(const ModelConfig& dense, const Upcycling& how);

/// The weights of that model, `config`, made of those of the dense one when they are asked for. Each expert
/// is the MLP, w (1 + noise n) with a standard normal number n for each weight w; without noise the model
/// computes what the dense one did, whatever its routers choose. Routers are normal with the model's
/// initializer_range, so that tokens spread over the experts. Numbers are functions of (seed, parameter,
/// position). All other weights are the same.
RowReader upcycle_rows(const std::vector<ParameterSpec>& dense_model, const RowReader& dense,
                       const ModelConfig& config, const Upcycling& how);

}  // namespace farskip
