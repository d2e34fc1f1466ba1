#pragma once
// The graphs of a training step. One micro-batch is a graph (forward, backward, gradients added to their
// accumulators), the update another; a validation batch is the forward alone.

#include "farskip/config/run_config.h"
#include "farskip/model/lower.h"

namespace farskip {

/// Names of externals beside tokens, targets and parameters.
inline constexpr std::string_view kLossScale = "loss_scale";        // f32[1]: weight of each counted token
inline constexpr std::string_view kBalanceScale = "balance_scale";  // f32[1]: weight of each sequence
inline constexpr std::string_view kHyper = "hyper";                 // f32[3], see ops::adamw
std::string gradient_name(std::string_view parameter);
std::string first_moment_name(std::string_view parameter);
std::string second_moment_name(std::string_view parameter);

/// Forward and backward of one micro-batch. The gradient of each parameter is state under gradient_name:
/// with `accumulate` the new value is old + gradient, otherwise the gradient. Outputs as lower() has them.
Graph build_micro_batch_graph(const ModelConfig& config, const LayerGraph& layers,
                              const LowerOptions& options, bool accumulate);

/// Clip and AdamW over all parameters (decay on tensors of rank >= 2 as the hub counts ranks: an expert's
/// matrices, not norms). Parameters and moments are state. Output "grad_norm" f32[1], before clipping.
Graph build_update_graph(const std::vector<ParameterSpec>& specs, const OptimizerConfig& optimizer);

}  // namespace farskip
