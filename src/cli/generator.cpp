// SPDX-License-Identifier: Apache-2.0
#include "farskip/cli/generator.h"

#include <algorithm>
#include <limits>

#include "farskip/cli/command.h"

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
  const auto block_bytes = static_cast<std::size_t>(cache_elements(g.model.config) * size.block_tokens) *
                           dtype_size(g.model.states->compute());
  const auto fits = static_cast<std::int64_t>(bytes / block_bytes);
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
}

Generator open_generator(const GeneratorOptions& options, bool of_text, const Logger& logger) {
  const OpenedDevice device = open_device(options.device);
  Generator g{
      load_model(options.model, Role::constant, logger, device), {}, make_context(device.device, logger)};
  g.companions = of_text || !options.tokenizer.empty() ? require_tokenizer(g.model, options.tokenizer)
                                                       : read_companions(g.model.folder);
  if (!g.tokenizer() && !g.companions.tokenizer_fault.empty()) throw DataError(g.companions.tokenizer_fault);
  ModelConfig& config = g.model.config;
  if (g.tokenizer() && g.tokenizer()->vocab_size() > config.vocab_size)
    logger.warning("{}: has {} tokens and the model a vocabulary of {}; texts with others are refused",
                   g.tokenizer()->where(), g.tokenizer()->vocab_size(), config.vocab_size);
  config.eos_tokens = find_end_tokens(config, g.companions);
  if (options.ignore_eos) config.eos_tokens.clear();
  return g;
}

CachedEngine make_cached_engine(const GeneratorOptions& options, const Generator& g, std::int64_t sequences,
                                std::int64_t tokens) {
  return {wire_model(g.model.config), g.model.states, g.context, choose_cache(options, g, sequences, tokens),
          num_ids(g)};
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
