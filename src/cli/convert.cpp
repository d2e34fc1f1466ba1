#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "farskip/cli/command.h"
#include "farskip/cli/load.h"

namespace farskip {
namespace {

struct Options {
  std::string source, destination, farskip, layers, dtype = "f32";
};

ExitCode run(const Options& options, const CommonOptions& common) {
  const Logger logger = common.logger();
  const auto dtype = options.dtype == "fp32" ? DType::f32 : parse_dtype(options.dtype);
  if (!dtype || (*dtype != DType::f32 && *dtype != DType::bf16))
    throw UsageError(fmt::format("--dtype {}: allowed: f32, bf16", options.dtype));
  LoadedModel model = load_model(options.source, logger);
  if (const auto wiring = parse_wiring(options.farskip, options.layers, model.config.num_layers))
    model.config.farskip = *wiring;
  write_hub_folder(options.destination, model.config, model.weights, *dtype, model.tokenizer);
  const auto mode = name_of(farskip_mode_names, model.config.farskip.mode);
  if (common.json)
    print_json({{"out", options.destination},
                {"tensors", hub_views(model.weights, list_parameters(model.config)).size()},
                {"farskip", std::string(mode)}});
  logger.info("wrote {} ({} wiring, {})", options.destination, mode, dtype_name(*dtype));
  return ExitCode::ok;
}

}  // namespace

void add_convert(CLI::App& app, Command& command) {
  auto options = std::make_shared<Options>();
  CLI::App* sub = app.add_subcommand("convert", "A model folder or checkpoint into a hub-layout folder");
  sub->add_option("SRC", options->source, "Model folder, checkpoint or run directory")->required();
  sub->add_option("DST", options->destination, "Folder to write; must not hold a model")->required();
  sub->add_option("--farskip", options->farskip, "Wiring of the result: off, attention, mlp or full");
  sub->add_option("--layers", options->layers, "Rewired layers: all, A-B or a list");
  sub->add_option("--dtype", options->dtype, "Element type of the weights: f32 or bf16")
      ->capture_default_str();
  finish_command(sub, command, [options, &command] { return run(*options, command.common); });
}

}  // namespace farskip
