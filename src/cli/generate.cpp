// SPDX-License-Identifier: Apache-2.0
#include "farskip/infer/generate.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "farskip/cli/command.h"
#include "farskip/cli/command_inputs.h"
#include "farskip/hub/companions.h"

namespace farskip {
namespace {

struct Options {
  std::string model, prompt, tokenizer;
  GenerateOptions generation;
  DeviceOptions device;
};

ExitCode run(const Options& options, const CommonOptions& common) {
  const Logger logger = common.logger();
  const OpenedDevice device = open_device(options.device);
  LoadedModel model = load_model(options.model, Role::constant, logger, device);
  const Companions companions = require_tokenizer(model, options.tokenizer);
  const Tokenizer& tokenizer = *companions.tokenizer;
  model.config.eos_tokens = find_end_tokens(model.config, companions);
  const std::vector<std::int32_t> prompt = tokenizer.encode_prompt(options.prompt);
  if (prompt.empty()) throw UsageError("--prompt is empty; give at least one character");
  for (const std::int32_t id : prompt)
    if (id >= model.config.vocab_size)
      throw DataError(fmt::format("{}: token {} of the prompt is not in the model's vocabulary of {}",
                                  options.tokenizer.empty() ? model.folder.string() : options.tokenizer, id,
                                  model.config.vocab_size));
  InferenceEngine engine(wire_model(model.config), model.states, make_context(device.device, logger));
  GenerateOptions generation = options.generation;
  generation.num_ids = tokenizer.vocab_size();
  const Generated made = generate(engine, prompt, generation, [](std::int32_t) {});
  const std::string text = tokenizer.decode(made.ids, true);
  if (made.end == GenerationEnd::context)
    logger.warning("the text ends after {} of {} tokens: the model's max_position_embeddings is {}",
                   made.ids.size(), generation.max_tokens, model.config.max_positions);
  if (common.json)
    print_json({{"prompt", options.prompt},
                {"text", text},
                {"ids", made.ids},
                {"prompt_tokens", prompt.size()},
                {"finish_reason", name_of(generation_end_names, made.end)}});
  else
    std::printf("%s%s\n", options.prompt.c_str(), text.c_str());
  return ExitCode::ok;
}

}  // namespace

void add_generate(Subcommand& root) {
  auto o = std::make_shared<Options>();
  Subcommand sub = root.add("generate", "Continue a text, greedily or by sampling");
  sub.required_path("--model", o->model, "Model folder, checkpoint or run directory");
  sub.required_text("--prompt", o->prompt, "Text to continue");
  sub.path("--tokenizer", o->tokenizer, "tokenizer.json (default: the model folder's)");
  GenerateOptions& g = o->generation;
  sub.integer("--max-tokens", g.max_tokens, "Largest number of new tokens", 1, 1 << 20);
  sub.real("--temperature", g.temperature, "Sampling temperature; 0 always takes the most likely token", 0.0,
           100.0);
  sub.integer("--top-k", g.top_k, "Sample among the k most likely tokens (0: all)", 0);
  sub.integer("--seed", g.seed, "Seed for sampling", 0);
  add_device_options(sub, o->device);
  sub.run([o](const CommonOptions& common) { return run(*o, common); });
}

}  // namespace farskip
