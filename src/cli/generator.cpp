// SPDX-License-Identifier: Apache-2.0
#include "cli/generator.h"

#include <algorithm>
#include <limits>

#include "cli/command.h"
#include "engine/devices.h"

namespace farskip {
namespace {

/// Memory that a cache may take where nothing is said: on a GPU most of what the weights leave.
std::size_t default_cache_bytes(const Device& device) {
  constexpr std::size_t host_bytes = std::size_t{2} << 30;
  return device.shares_host_memory() ? host_bytes : device.memory().free / 10 * 7;
}

CacheSize choose_cache(const GeneratorOptions& options, const Generator& g, std::int64_t sequences,
                       std::int64_t tokens) {
  CacheSize size{.max_sequences = sequences, .max_tokens = std::min(tokens, g.model.config.max_positions)};
  const std::size_t bytes = options.cache_mib > 0 ? static_cast<std::size_t>(options.cache_mib) << 20U
                                                  : default_cache_bytes(*g.context.device());
  const int tensor = g.context.mesh.position().tensor_size;
  const auto block_bytes =
      static_cast<std::size_t>(cache_elements(g.model.config, tensor) * size.block_tokens) *
      dtype_size(g.model.states->compute());
  auto least = static_cast<double>(bytes / block_bytes);  // of all ranks
  g.context.world().all_reduce(std::span(&least, 1), Reduction::min);
  const auto fits = static_cast<std::int64_t>(least);
  if (fits < 1)
    throw UsageError(
        fmt::format("--cache-mib: {} MiB hold no block of {} tokens, which takes {} bytes; give more",
                    bytes >> 20U, size.block_tokens, block_bytes));
  // Rows of the cache are counted in 32 bits.
  const std::int64_t most = std::numeric_limits<std::int32_t>::max() / size.block_tokens;
  size.num_blocks = std::min({sequences * size.max_blocks(), fits, most});
  size.max_tokens = std::min(size.max_tokens, size.num_blocks * size.block_tokens);
  return size;
}

/// Ids that the tokenizer knows; a vocabulary is often padded.
std::int64_t num_ids(const Generator& g) {
  return g.tokenizer() ? std::min(g.tokenizer()->vocab_size(), g.model.config.vocab_size) : 0;
}

}  // namespace

void add_generator_options(Subcommand& sub, GeneratorOptions& o) {
  sub.required_path("--model", o.model, "Model folder, checkpoint or run directory");
  sub.path("--tokenizer", o.tokenizer, "tokenizer.json (default: the model folder's)");
  sub.flag("--ignore-eos", o.ignore_eos, "Goes on after tokens that end a text");
  sub.integer("--batch", o.batch, "Texts that are continued at once", 1, 1 << 16);
  sub.integer("--cache-mib", o.cache_mib,
              "Memory for keys and values (0: what is needed, within 2 GiB; on a GPU, most "
              "of what is free)",
              0, 1 << 24);
  add_device_options(sub, o.device);
  add_layout_options(sub, o.layout);
}

void set_alike(ConfigNode& alike, const GeneratorOptions& o) {
  alike.set("--model", make_node(o.model));
  alike.set("--tokenizer", make_node(o.tokenizer));
  alike.set("--batch", make_node(o.batch));
  alike.set("--cache-mib", make_node(o.cache_mib));
  set_alike(alike, o.layout, o.device);
}

namespace {

Generator open_generator(const GeneratorOptions& options, bool of_text, const Context& context,
                         DType compute) {
  const Logger& logger = context.logger;
  Generator g{load_model(options.model, Role::constant, context, compute), {}, context};
  g.companions = of_text || !options.tokenizer.empty() ? require_tokenizer(g.model, options.tokenizer)
                                                       : read_companions(g.model.folder);
  if (!g.tokenizer() && !g.companions.tokenizer_fault.empty()) throw DataError(g.companions.tokenizer_fault);
  ModelConfig& config = g.model.config;
  if (g.tokenizer() && g.tokenizer()->vocab_size() > config.vocab_size && context.world().rank() == 0)
    logger.warning("{}: has {} tokens and the model a vocabulary of {}; texts with others are refused",
                   g.tokenizer()->where(), g.tokenizer()->vocab_size(), config.vocab_size);
  config.eos_tokens = find_end_tokens(config, g.companions);
  if (options.ignore_eos) config.eos_tokens.clear();
  return g;
}

}  // namespace

Generator open_generator(const GeneratorOptions& options, bool of_text, Job& job) {
  const OpenedDevice device = open_device(options.device, job.world);
  const Context context =
      job.context(make_mesh(job.world, parallel_config(options.layout), *device.device), device.device);
  if (context.mesh.tensor().size() != job.world.size())
    throw UsageError(
        fmt::format("--tensor is {}, and there are {} ranks, which continue texts together; use --tensor {}, "
                    "with --expert {} "
                    "for whole experts on each",
                    options.layout.tensor, job.world.size(), job.world.size(), job.world.size()));
  return open_generator(options, of_text, context, device.compute);
}

CachedEngine make_cached_engine(const GeneratorOptions& options, const Generator& g, std::int64_t sequences,
                                std::int64_t tokens) {
  return {wire_model(g.model.config), g.model.states, g.context, choose_cache(options, g, sequences, tokens),
          num_ids(g)};
}

bool leads(CachedEngine& engine, const Job& job) {
  if (job.world.rank() > 0) {
    engine.follow();
    return false;
  }
  engine.lead();
  return true;
}

/// A run of a GPU has to be large, and kernels of training read its prompts.
ContinuousBatchOptions batch_options(const Generator& g, std::int64_t batch) {
  const bool on_gpu = !g.context.device()->shares_host_memory();
  return {.end_tokens = g.model.config.eos_tokens,
          .tokenizer = g.tokenizer(),
          .max_run_tokens = std::max<std::int64_t>(on_gpu ? 8192 : 512, batch),
          .fresh_runs = on_gpu};
}

}  // namespace farskip
