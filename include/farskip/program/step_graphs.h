// SPDX-License-Identifier: Apache-2.0
#pragma once
// The graphs of a training step. One micro-batch is a graph (forward, backward, gradients added to their
// accumulators, the last one also sums them over replicas), the update another; a validation batch is the
// forward alone.

#include <memory>
#include <set>
#include <string>

#include "farskip/config/run_config.h"
#include "farskip/model/lower.h"
#include "farskip/passes/pipeline.h"
#include "farskip/program/model.h"
#include "farskip/state/states.h"

namespace farskip {

class StepObjective;  // objective.h
class Optimizer;      // optimizer.h

/// How a step is spread over ranks.
struct StepSharding {
  MeshPosition mesh;
  int zero = 0;               // what is dealt out to the replicas of a parameter (LocalParameter::zero)
  std::int64_t max_rows = 0;  // routed rows from one rank to one other; not used where expert_size is 1
  int expert_chunks = 1;      // parts of the tokens that travel one by one (passes/chunk_experts.h); likewise
};

/// Names of externals beside tokens, targets and parameters.
inline constexpr std::string_view kLossScale = "loss_scale";        // f32[1]: weight of each counted token
inline constexpr std::string_view kBalanceScale = "balance_scale";  // f32[1]: weight of each sequence
inline constexpr std::string_view kHyper = "hyper";                 // f32[n], Optimizer::hyper
inline constexpr std::string_view kFault = "fault";                 // state f32[1], ops::find_fault of a step

/// lower(); where experts are on several ranks, in chunks and with the experts split. Parameters have the
/// shapes of local_parameters().
PassPipeline forward_pipeline(const Model& model, const LowerOptions& options, const StepSharding& sharding);

/// Forward and backward of one micro-batch. The gradient of each parameter is state under gradient_name:
/// with `accumulate` the new value is old + gradient, otherwise the gradient; kFault likewise says whether
/// routed rows did not fit, or a loss is not finite. With `reduce` it is then summed
/// over the replicas (passes/reduce_gradients.h). Outputs as the forward has them. `in_flight`: so
/// many micro-batches in one graph (passes/join_micro_batches.h), each with inputs and outputs of its own.
struct MicroBatchKind {
  bool accumulate = false, reduce = false;
  int in_flight = 1;
  Recompute recompute = Recompute::none;     // what the backward computes again (passes/recompute.h)
  const StepObjective* objective = nullptr;  // none: cross-entropy on the data
  bool sends_again = false;                  // rows travel again too, for a backward that recomputes
};
/// `trained`: local_parameters() that get a gradient. With ZeRO-2 it is summed over the replicas in each
/// micro-batch (`reduce`), and this rank's rows of the sum are what is accumulated.
PassPipeline micro_batch_pipeline(const Model& model, const std::vector<LocalParameter>& trained,
                                  const LowerOptions& options, const StepSharding& sharding,
                                  const MicroBatchKind& kind);

/// Puts together what a graph reads whole and this rank keeps in parts (passes/gather_weights.h), of these
/// states: the last pass of every graph that is to run.
Pass gather_pass(const std::vector<StateSpec>& states, const MeshPosition& mesh);

/// Clip and update of all parameters. All tensors are seen as matrices [rows, row size], vectors as they are;
/// state, and only the own_rows of each: own_rows_name of parameter and gradient, and the optimizer's states.
/// Output "grad_norm" f32[1], over all ranks, before clipping; infinite where some rank has a kFault, and
/// nothing changes then. `compute` bf16: also these rows of the compute
/// copy of each parameter that has one (own_rows_name of compute_copy_name), so that micro-batches need not
/// round again.
///
/// `average_decay` above 0: also the running average of each (own_rows_name of kAveraging and its name).
///
/// Where these are not all rows, the whole of what micro-batches read is then put together from all replicas:
/// the compute copy (under compute_copy_name) of a parameter that has one, whose other rows are then behind
/// on this rank (gather_pipeline); else the parameter (under its name). Not what is kept in parts.
PassPipeline update_pipeline(const std::vector<LocalParameter>& parameters, const StepSharding& sharding,
                             std::shared_ptr<const Optimizer> optimizer, DType compute = DType::f32,
                             double average_decay = 0);

/// The last part of the update alone: what micro-batches read, from the own rows of each parameter.
PassPipeline publish_pipeline(const std::vector<LocalParameter>& parameters, const StepSharding& sharding,
                              DType compute);

/// Puts together what the update leaves behind: the parameters of which only a rank's own rows are new.
/// Without nodes where there are none. Externals as there.
PassPipeline gather_pipeline(const std::vector<LocalParameter>& parameters, const StepSharding& sharding,
                             DType compute);

}  // namespace farskip
