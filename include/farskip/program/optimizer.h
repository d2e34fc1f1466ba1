// SPDX-License-Identifier: Apache-2.0
#pragma once
// What an optimizer keeps for a weight, and how it moves it.

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "farskip/config/run_config.h"
#include "farskip/model/parameters.h"
#include "farskip/ops/optimizer_ops.h"

namespace farskip {

/// One weight in the graph of the update, as a matrix [rows, row size] or a vector.
struct OptimizedWeight {
  ValueId weight;
  std::vector<ValueId> states;  // in the order of Optimizer::states
  ValueId low_copy{};           // the new weight in bf16, where it was asked for; a result only
};

/// Stateless: what changes lies in the states.
class Optimizer {
 public:
  /// `seed`: of the random numbers that states in bf16 are rounded by.
  Optimizer(const OptimizerConfig& config, std::uint64_t seed) : config_(config), seed_(seed) {}
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;
  virtual ~Optimizer() = default;

  /// Largest global gradient norm; 0: not clipped.
  double clip_grad_norm() const { return config_.clip_grad_norm; }
  /// The input kHyper of the step with this 1-based number, as ops::adamw wants it.
  using Hyper = std::array<float, ops::kNumHyper>;
  Hyper hyper(double learning_rate, std::int64_t step) const;

  /// What it keeps for a weight, of the weight's shape, each by what begins its name (state_name):
  /// kFirstMoment. It starts with zeros.
  virtual std::vector<std::string> states(const ParameterSpec& spec) const = 0;
  /// In which type: f32 or bf16.
  DType state_dtype() const { return config_.moments == Precision::bf16 ? DType::bf16 : DType::f32; }
  /// It moves the parameter's matrices as wholes: with ZeRO none is cut.
  virtual bool keeps_matrices(const ParameterSpec& /*spec*/) const { return false; }
  /// The new weight and states. `factor` f32[1] scales the gradient; 0: nothing changes.
  virtual OptimizedWeight update(Builder& b, const LocalParameter& parameter, const OptimizedWeight& now,
                                 ValueId gradient, ValueId factor, ValueId hyper, bool low_copy) const = 0;

 protected:
  const OptimizerConfig& config() const { return config_; }
  /// Of the rows that this rank updates.
  ops::StateRounding rounding(const LocalParameter& parameter) const;

 private:
  OptimizerConfig config_;
  std::uint64_t seed_;
};

std::unique_ptr<const Optimizer> make_optimizer(const OptimizerConfig& config, std::uint64_t seed = 0);

}  // namespace farskip
