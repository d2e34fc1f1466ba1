#include "farskip/train/generate.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "farskip/cli/command.h"
#include "farskip/cli/load.h"
#include "farskip/passes/farskip.h"

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
  LoadedModel model = load_model(options.model, logger);
  const fs::path path = options.tokenizer.empty() ? model.tokenizer : fs::path(options.tokenizer);
  if (path.empty())
    throw MissingInputError(
        fmt::format("{} holds no tokenizer.json; name one with --tokenizer", options.model));
  const Tokenizer tokenizer = Tokenizer::load(path);
  const std::vector<std::int32_t> prompt = tokenizer.encode(options.prompt);
  if (prompt.empty()) throw UsageError("--prompt is empty; give at least one character");
  for (const std::int32_t id : prompt)
    if (id >= model.config.vocab_size)
      throw DataError(fmt::format("{}: token {} of the prompt is not in the model's vocabulary of {}",
                                  path.string(), id, model.config.vocab_size));
  Arena arena(device.device);
  InferenceEngine engine(model.config, rewire_farskip(build_layer_graph(model.config), model.config.farskip),
                         put_weights(model, device), arena, logger);
  GenerateOptions generation = options.generation;
  generation.num_ids = tokenizer.vocab_size();
  const auto made = generate(engine, prompt, generation, [](std::int32_t) {});
  const std::string text = tokenizer.decode(made, true);
  if (common.json)
    print_json({{"prompt", options.prompt}, {"text", text}, {"ids", made}});
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
  sub.integer("--max-tokens", g.max_tokens, "Stop after so many new tokens", 1, 1 << 20);
  sub.real("--temperature", g.temperature, "0: the most likely token each time", 0.0, 100.0);
  sub.integer("--top-k", g.top_k, "Sample among the k most likely tokens (0: all)", 0);
  sub.integer("--seed", g.seed, "Seed of the sampling", 0);
  add_device_options(sub, o->device);
  sub.run([o](const CommonOptions& common) { return run(*o, common); });
}

}  // namespace farskip
