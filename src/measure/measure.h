// SPDX-License-Identifier: Apache-2.0
#pragma once
// Costs of a training step, measured on the ranks at hand, so that the scheduler can plan with them.

#include <functional>

#include "farskip/base/file.h"
#include "farskip/engine/engine.h"
#include "farskip/schedule/costs.h"

namespace farskip {

/// Batch `number` of random tokens and targets, a function of its arguments only.
Batch random_batch(std::uint64_t seed, std::uint64_t number, std::int64_t tokens, std::int64_t vocab_size);
/// This rank's micro-batches of step `number`, with what the objective reads beside tokens.
std::vector<Batch> random_step(std::uint64_t seed, std::uint64_t number, const TrainEngineOptions& options,
                               const Mesh& mesh, std::int64_t vocab_size);

/// What one executed plan took, by node id, agreed by all ranks: a kernel's mean over ranks; the longest of a
/// collective, which with aligned starts (TrainEngineOptions::align) is its transport, without packing.
/// Collective.
NodeSeconds agree_on_seconds(const Graph& graph, const std::vector<StepTime>& times,
                             const Communicator& world);

/// Runs `step` before others are timed: at least `fewest` times, and on a GPU for kGpuWarmSeconds: idle, it
/// raises its clocks slowly, and at its power limit they overshoot for about two seconds
/// (docs/log/one-gpu.md). Collective: all ranks run equally many. Returns how many.
int warm_up(const Context& context, int fewest, const std::function<void()>& step);
inline constexpr double kGpuWarmSeconds = 2.5;

/// Plans of one step in the order in which they ran, with what their steps took on this rank.
using ExecutedPlans = std::vector<std::pair<const Executor*, std::vector<StepTime>>>;
/// Adds what each node of these plans took. Collective.
void add_step_costs(CostTable& table, const ExecutedPlans& plans, const Communicator& world);

/// Runs `steps` blocking, aligned steps of an engine with these options on random weights and tokens, after
/// one to warm up, in memory of its own, and returns what their nodes took; where chunks are not chosen yet,
/// with one and with two. Collective; the same table on every rank.
CostTable measure_step_costs(const Model& model, const TrainEngineOptions& options, const Context& context,
                             int steps = 2);

/// The step is planned by these costs from here on. Chunks that are not chosen yet become one, or two where a
/// plan with two is quicker by more than kLeastGain. Collective: rank 0 decides.
void plan_by(std::shared_ptr<const CostTable> costs, const ModelConfig& model, const Context& context,
             TrainEngineOptions& options);
/// Measures, and plans by what was found, where there is something to overlap. Collective.
void plan_by_measuring(const Model& model, const Context& context, TrainEngineOptions& options);

/// The costs kept in the file `path` if they are of this machine, build and shape (and `more_key`, what else
/// the step's graph depends on), else measured, and kept there. The order of a step depends on them, its bits
/// do not. Collective.
std::shared_ptr<const CostTable> kept_step_costs(const fs::path& path, std::string_view more_key,
                                                 const Model& model, const TrainEngineOptions& options,
                                                 const Context& context);

}  // namespace farskip
