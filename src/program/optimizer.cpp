// SPDX-License-Identifier: Apache-2.0
#include "farskip/program/optimizer.h"

#include <cmath>

#include "farskip/base/random.h"
#include "state/state_names.h"

namespace farskip {
namespace {

/// Decay on tensors of rank >= 2 as the hub counts ranks: an expert's matrices, not norms and biases.
double decay_of(const OptimizerConfig& config, const ParameterSpec& spec) {
  return spec.shape.rank() >= 2 ? config.weight_decay : 0.0;
}

class AdamW : public Optimizer {
 public:
  using Optimizer::Optimizer;

  std::vector<std::string> states(const ParameterSpec& /*spec*/) const override {
    return {std::string(kFirstMoment), std::string(kSecondMoment)};
  }

  OptimizedWeight update(Builder& b, const LocalParameter& p, const OptimizedWeight& now, ValueId gradient,
                         ValueId factor, ValueId hyper, bool low_copy) const override {
    const ops::AdamWState next =
        ops::adamw(b, {now.weight, now.states[0], now.states[1]}, gradient, factor, hyper,
                   {.beta1 = config().beta1,
                    .beta2 = config().beta2,
                    .eps = config().eps,
                    .weight_decay = decay_of(config(), p.spec),
                    .low_copy = low_copy,
                    .rounding = rounding(p)});
    return {next.parameter, {next.m, next.v}, next.low_copy};
  }
};

/// Muon for the matrices between embedding and head, AdamW for these two, routers and vectors.
class Muon final : public AdamW {
 public:
  using AdamW::AdamW;

  bool keeps_matrices(const ParameterSpec& spec) const override {
    return spec.shape.rank() >= 2 && !spec.is_router && spec.block != SubBlock::embedding &&
           spec.block != SubBlock::head;
  }

  std::vector<std::string> states(const ParameterSpec& spec) const override {
    if (!keeps_matrices(spec)) return AdamW::states(spec);
    return {std::string(kMomentum)};
  }

  OptimizedWeight update(Builder& b, const LocalParameter& p, const OptimizedWeight& now, ValueId gradient,
                         ValueId factor, ValueId hyper, bool low_copy) const override {
    if (!keeps_matrices(p.spec)) return AdamW::update(b, p, now, gradient, factor, hyper, low_copy);
    const ops::MuonState next = ops::muon(b, {now.weight, now.states[0]}, gradient, factor, hyper,
                                          {.momentum = config().momentum,
                                           .weight_decay = decay_of(config(), p.spec),
                                           .matrix_rows = p.spec.matrix_rows,
                                           .low_copy = low_copy,
                                           .rounding = rounding(p)});
    return {next.parameter, {next.momentum}, next.low_copy};
  }
};

}  // namespace

Optimizer::Hyper Optimizer::hyper(double learning_rate, std::int64_t step) const {
  const auto t = static_cast<double>(step);
  return {static_cast<float>(learning_rate), static_cast<float>(1.0 / (1.0 - std::pow(config_.beta1, t))),
          static_cast<float>(1.0 / (1.0 - std::pow(config_.beta2, t))), static_cast<float>(step)};
}

ops::StateRounding Optimizer::rounding(const LocalParameter& p) const {
  if (state_dtype() == DType::f32) return {};
  return {.seed = static_cast<std::int64_t>(seed_),
          .stream = static_cast<std::int64_t>(stream_id(p.spec.name) & 0xffff'ffffU),
          .first = p.whole_row(p.own_rows.first) * row_size(p.full_shape) + p.columns.first};
}

std::unique_ptr<const Optimizer> make_optimizer(const OptimizerConfig& config, std::uint64_t seed) {
  switch (config.name) {
    case OptimizerName::adamw:
      return std::make_unique<AdamW>(config, seed);
    case OptimizerName::muon:
      return std::make_unique<Muon>(config, seed);
  }
  throw InternalError("no such optimizer");
}

}  // namespace farskip
