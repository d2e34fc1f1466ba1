// From the configuration of a run to what its engine is told.
#include "farskip/ops/ops.h"
#include "farskip/train/devices.h"
#include "farskip/train/trainer.h"

namespace farskip {

TrainEngineOptions engine_options(const RunConfig& config, int world_size) {
  const std::int64_t at_once = config.train.micro_batch * world_size;
  if (config.train.global_batch % at_once != 0)
    throw UsageError(
        fmt::format("train.global_batch is {}, which {} ranks with a train.micro_batch of {} ({} sequences "
                    "at once) do not "
                    "divide; use a multiple of {}, or another micro_batch or number of ranks",
                    config.train.global_batch, world_size, config.train.micro_batch, at_once, at_once));
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
  if (config.parallel.expert > 1 && options.expert_chunks > options.sequence_length)
    throw UsageError(
        fmt::format("schedule.expert_chunks is {}, and a sequence has {} tokens (train.sequence_length); use "
                    "at most {}",
                    options.expert_chunks, options.sequence_length, options.sequence_length));
  options.recompute = config.schedule.recompute;
  options.zero = config.parallel.zero > 0;
  options.compute = compute_type(config.precision);
  options.overlap = config.schedule.overlap;
  options.routed_rows_memory = config.schedule.routed_rows_memory;
  options.document_mask = config.data.document_mask;
  options.balance_loss = config.train.aux_loss > 0;
  options.optimizer = config.train.optimizer;
  return options;
}

void refuse_unsupported(const RunConfig& config) {
  std::vector<std::string> problems;
  const auto refuse = [&](bool asked, const char* key, const char* why) {
    if (asked) problems.push_back(fmt::format("{}: {}", key, why));
  };
  if (std::string why = why_unsupported(config.device, config.precision); !why.empty())
    problems.push_back(std::move(why));
  refuse(config.train.router_bias_update > 0, "train.router_bias_update",
         "this family's router has no selection bias; use 0");
  if (problems.empty()) return;
  throw UsageError(fmt::format("not supported by this build:\n  {}", fmt::join(problems, "\n  ")));
}

}  // namespace farskip
