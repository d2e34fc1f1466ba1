// SPDX-License-Identifier: Apache-2.0
#pragma once
// A model that continues texts, as `generate` and `serve` open it.

#include <optional>
#include <string>

#include "cli/command_inputs.h"
#include "cli/job.h"
#include "hub/companions.h"
#include "infer/continuous_batch.h"

namespace farskip {

struct GeneratorOptions {
  std::string model, tokenizer;
  std::int64_t batch = 32, cache_mib = 0;
  bool ignore_eos = false;
  DeviceOptions device;
  LayoutOptions layout;
};
void add_generator_options(Subcommand& command, GeneratorOptions& options);
/// Adds the options that all ranks of a job have to be given alike.
void set_alike(ConfigNode& alike, const GeneratorOptions& options);

/// A model with what it needs to read and write texts.
struct Generator {
  LoadedModel model;  // its end tokens are those of all its files
  Companions companions;
  Context context;

  const std::optional<Tokenizer>& tokenizer() const { return companions.tokenizer; }
};
/// `of_text`: the prompt is a text, so there has to be a tokenizer. DataError for a tokenizer that is there
/// and of a kind that is not built.
/// On several ranks: UsageError unless all of them share the model. Collective.
Generator open_generator(const GeneratorOptions& options, bool of_text, Job& job);

/// The engine's cache holds `sequences` texts of `tokens` each, or as much of that as fits into the memory.
CachedEngine make_cached_engine(const GeneratorOptions& options, const Generator& generator,
                                std::int64_t sequences, std::int64_t tokens);
/// The first rank continues texts; the others run what it runs. False on these, once it has ended.
bool leads(CachedEngine& engine, const Job& job);
ContinuousBatchOptions batch_options(const Generator& generator, std::int64_t batch);

}  // namespace farskip
