// SPDX-License-Identifier: Apache-2.0
#include "farskip/program/optimizer.h"

#include <cmath>

#include "farskip/state/state_names.h"

namespace farskip {
namespace {

/// Decay on tensors of rank >= 2 as the hub counts ranks: an expert's matrices, not norms.
class AdamW final : public Optimizer {
 public:
  explicit AdamW(const OptimizerConfig& config) : config_(config) {}

  std::vector<std::string> states(const ParameterSpec& /*spec*/) const override {
    return {std::string(kFirstMoment), std::string(kSecondMoment)};
  }

  std::vector<float> hyper(double learning_rate, std::int64_t step) const override {
    const auto t = static_cast<double>(step);
    return {static_cast<float>(learning_rate), static_cast<float>(1.0 / (1.0 - std::pow(config_.beta1, t))),
            static_cast<float>(1.0 / (1.0 - std::pow(config_.beta2, t)))};
  }

  OptimizedWeight update(Builder& b, const ParameterSpec& spec, const OptimizedWeight& now, ValueId gradient,
                         ValueId factor, ValueId hyper, bool low_copy) const override {
    const ops::AdamWState next =
        ops::adamw(b, {now.weight, now.states[0], now.states[1]}, gradient, factor, hyper,
                   {.beta1 = config_.beta1,
                    .beta2 = config_.beta2,
                    .eps = config_.eps,
                    .weight_decay = spec.shape.rank() >= 2 ? config_.weight_decay : 0.0,
                    .low_copy = low_copy});
    return {next.parameter, {next.m, next.v}, next.low_copy};
  }

 private:
  OptimizerConfig config_;
};

}  // namespace

std::unique_ptr<const Optimizer> make_optimizer(const OptimizerConfig& config) {
  switch (config.name) {
    case OptimizerName::adamw:
      return std::make_unique<AdamW>(config);
  }
  throw InternalError("no such optimizer");
}

}  // namespace farskip
