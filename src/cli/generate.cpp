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

Tokenizer require_tokenizer(const Companions& companions, const Options& options) {
  if (companions.tokenizer) return *companions.tokenizer;
  if (!companions.tokenizer_fault.empty()) throw DataError(companions.tokenizer_fault);
  throw MissingInputError(
      fmt::format("{} holds no tokenizer.json; name one with --tokenizer", options.model));
}

ExitCode run(const Options& options, const CommonOptions& common) {
  const Logger logger = common.logger();
  const OpenedDevice device = open_device(options.device);
  LoadedModel model = load_model(options.model, Role::constant, logger, device);
  const Companions companions = options.tokenizer.empty()
                                    ? read_companions(model.folder)
                                    : read_companions(model.folder, Tokenizer::load(options.tokenizer));
  const Tokenizer tokenizer = require_tokenizer(companions, options);
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
  SamplingOptions& s = g.sampling;
  sub.real("--temperature", s.temperature, "Sampling temperature; 0 always takes the most likely token", 0.0,
           100.0);
  sub.integer("--top-k", s.top_k, "Sample among the k most likely tokens (0: all)", 0);
  sub.real("--top-p", s.top_p,
           "Sample among the most likely tokens that have this probability together (1: all)", 0.0, 1.0);
  sub.real("--min-p", s.min_p,
           "Sample among tokens at least so likely, relative to the most likely one (0: all)", 0.0, 1.0);
  sub.real("--repetition-penalty", s.repetition_penalty,
           "Makes tokens of the prompt and the text less likely (1: not)", 0.01, 100.0);
  sub.integer("--seed", s.seed, "Seed for sampling", 0);
  add_device_options(sub, o->device);
  sub.run([o](const CommonOptions& common) { return run(*o, common); });
}

}  // namespace farskip
