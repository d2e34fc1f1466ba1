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
  const std::string mode = wiring_name(model.config.farskip);
  if (common.json)
    print_json({{"out", options.destination},
                {"tensors", hub_views(model.weights, list_parameters(model.config)).size()},
                {"farskip", mode}});
  logger.info("wrote {} ({} wiring, {})", options.destination, mode, dtype_name(*dtype));
  return ExitCode::ok;
}

}  // namespace

void add_convert(Subcommand& root) {
  auto o = std::make_shared<Options>();
  Subcommand sub =
      root.add("convert", "Convert a model folder, checkpoint or run into a model folder in hub layout");
  sub.positional("SRC", o->source, "Model folder, checkpoint or run directory");
  sub.positional("DST", o->destination, "Folder to write; must not hold a model");
  sub.text("--farskip", o->farskip,
           fmt::format("Wiring of the result: {} (delay:N)", list_names(farskip_mode_names)));
  sub.text("--layers", o->layers, "Rewired layers: all, A-B or a list");
  sub.text("--dtype", o->dtype, "Element type of the weights: f32 or bf16");
  sub.run([o](const CommonOptions& common) { return run(*o, common); });
}

}  // namespace farskip
