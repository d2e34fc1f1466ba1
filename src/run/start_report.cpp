// SPDX-License-Identifier: Apache-2.0
#include "run/start_report.h"

#include <algorithm>

#include "base/environment.h"
#include "engine/devices.h"
#include "plan/plan_report.h"

namespace farskip {

void log_model(const ModelConfig& model, const TrainEngineOptions& options, const Context& context) {
  const Mesh& mesh = context.mesh;
  const Device& device = *context.device();
  const Logger& logger = context.logger;
  const ParameterCounts counts = count_parameters(model);
  logger.info("{}: {:.2f}M parameters, {:.2f}M active per token; {} layers, {} experts, top {}", model.family,
              static_cast<double>(counts.total) * 1e-6, static_cast<double>(counts.active) * 1e-6,
              model.num_layers, model.moe.num_experts, model.moe.top_k);
  if (mesh.world().size() > 1)
    logger.info("{} ranks: experts over {}, data over {}{}, {} micro-batches per step on each",
                mesh.world().size(), mesh.expert().size(), mesh.data().size(),
                mesh.tensor().size() > 1 ? fmt::format(", matrices over {}", mesh.tensor().size()) : "",
                options.micro_batches);
  const bool repeats = repeats_bits(device, options.compute, options.deterministic);
  logger.info("device {}, computing in {}{}", device.name(), dtype_name(options.compute),
              repeats ? "" : ", by kernels that do not repeat their bits (deterministic: false)");
  if (options.average_decay > 0)
    logger.info("held-out text and checkpoints: averaged weights, decay {:g}", options.average_decay);
}

void log_memory(const MemoryReport& m, const Logger& logger) {
  const int digits = m.total() < std::size_t{100} << 20 ? 1 : 0;
  const auto mib = [&](std::size_t bytes) {
    return fmt::format("{:.{}f}", static_cast<double>(bytes) / (1 << 20), digits);
  };
  logger.info(
      "planned memory: weights {}, gradients {}, moments and averages {}, activations and scratch {}, copy "
      "for "
      "saving {}, together {} MiB",
      mib(m.weights), mib(m.gradients), mib(m.moments), mib(m.arena), mib(m.snapshot), mib(m.total()));
}

void check_free_memory(const MemoryReport& memory) {
  constexpr std::uint64_t kLibraries = std::uint64_t{64} << 20;
  const std::uint64_t needed = memory.snapshot + kLibraries;
  const std::optional<std::uint64_t> left = free_address_space();
  if (left && *left < needed)
    throw IoError(
        fmt::format("the limit of memory (ulimit -v) leaves {} MiB for first steps and saves, which need {}; "
                    "raise it by at least {} MiB",
                    *left >> 20, needed >> 20, ((needed - *left) >> 20) + 1));
}

void log_routed_rows(const RoutedRowsPlan& rows, const Logger& logger) {
  if (const std::string text = routed_rows_text(rows); !text.empty()) logger.info("{}", text);
}

}  // namespace farskip
