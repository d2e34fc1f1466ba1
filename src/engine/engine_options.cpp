// SPDX-License-Identifier: Apache-2.0
#include "engine/engine_options.h"

#include "engine/devices.h"
#include "farskip/comm/mesh.h"
#include "farskip/ops/ops.h"

namespace farskip {

TrainEngineOptions engine_options(const RunConfig& config, int world_size) {
  check_mesh_sizes(world_size, config.parallel.expert, config.parallel.tensor);
  // The ranks of a tensor group read the same sequences.
  const int readers = world_size / config.parallel.tensor;
  const std::int64_t at_once = config.train.micro_batch * readers;
  if (config.train.global_batch % at_once != 0)
    throw UsageError(
        fmt::format("train.global_batch is {}, which {} ranks with a train.micro_batch of {} ({} sequences "
                    "at once) do not "
                    "divide; use a multiple of {}, or another micro_batch or number of ranks",
                    config.train.global_batch, readers, config.train.micro_batch, at_once, at_once));
  TrainEngineOptions options;
  options.micro_batch = config.train.micro_batch;
  options.sequence_length = config.train.sequence_length;
  options.micro_batches = config.train.global_batch / at_once;
  options.in_flight = config.schedule.micro_batches_in_flight;
  if (options.micro_batches % options.in_flight != 0)
    throw UsageError(
        fmt::format("schedule.micro_batches_in_flight is {}, and each of {} ranks has {} micro-batches in a "
                    "step, which it does "
                    "not divide; use a divisor of {}, or another train.micro_batch",
                    options.in_flight, world_size, options.micro_batches, options.micro_batches));
  options.expert_chunks = config.schedule.expert_chunks.value_or(0);
  static_assert(ScheduleConfig::kMostExpertChunks <= ops::kMostRowParts);
  if (config.parallel.expert > 1 && config.parallel.tensor == 1 &&
      options.expert_chunks > options.sequence_length)
    throw UsageError(
        fmt::format("schedule.expert_chunks is {}, and a sequence has {} tokens (train.sequence_length); use "
                    "at most {}",
                    options.expert_chunks, options.sequence_length, options.sequence_length));
  options.recompute = config.schedule.recompute;
  options.zero = static_cast<int>(config.parallel.zero);
  options.compute = compute_type(config.precision);
  options.deterministic = config.deterministic;
  options.overlap = config.schedule.overlap;
  options.routed_rows_memory = config.schedule.routed_rows_memory;
  options.document_mask = config.data.document_mask;
  options.balance_loss = config.train.aux_loss > 0;
  options.optimizer = config.train.optimizer;
  if (config.parallel.tensor > 1 && options.optimizer.name == OptimizerName::muon)
    throw UsageError(
        fmt::format("train.optimizer.name is muon, which needs whole matrices, and parallel.tensor is {}, "
                    "which cuts them; "
                    "use adamw, or parallel.tensor: 1",
                    config.parallel.tensor));
  options.average_decay = config.train.average_decay;
  options.seed = static_cast<std::uint64_t>(config.seed);
  options.pipeline.dump_folder = config.dump_graphs;
  return options;
}

void refuse_unsupported(const RunConfig& config) {
  if (const std::string why = why_unsupported(config.device, config.precision); !why.empty())
    throw UsageError(fmt::format("not supported by this build: {}", why));
}

}  // namespace farskip
