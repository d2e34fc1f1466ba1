// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "farskip/cli/command.h"
#include "farskip/cli/load.h"
#include "farskip/hub/hub_folder.h"

namespace farskip {
namespace {

struct Options {
  std::string source, destination, farskip, layers, dtype = "f32";
};

std::string describe_names(const std::vector<std::string>& names) {
  constexpr std::size_t most_shown = 10;
  const std::span<const std::string> shown(names.data(), std::min(names.size(), most_shown));
  std::string text = printable(fmt::format("{}", fmt::join(shown, ", ")), 1000);
  if (shown.size() < names.size()) text += fmt::format(" and {} more", names.size() - shown.size());
  return text;
}

ExitCode run(const Options& options, const CommonOptions& common) {
  const Logger logger = common.logger();
  const auto dtype = options.dtype == "fp32" ? DType::f32 : parse_dtype(options.dtype);
  if (!dtype || (*dtype != DType::f32 && *dtype != DType::bf16))
    throw UsageError(fmt::format("--dtype {}: allowed: f32, bf16", options.dtype));
  LoadedModel model = load_model(options.source, Role::weight, logger);
  const Companions companions = read_companions(model.folder);
  refuse_not_finite(model);
  if (model.config.eos_tokens.empty()) model.config.eos_tokens = find_end_tokens(model.config, companions);
  if (const auto wiring = parse_wiring(options.farskip, options.layers, model.config.num_layers))
    model.config.farskip = *wiring;
  write_hub_folder(options.destination, model.config, *model.states, *dtype, companions);
  if (!companions.tokenizer_fault.empty())
    logger.warning("tokenizer.json is copied, but FarSkip cannot use it: {}", companions.tokenizer_fault);
  if (!companions.left_behind.empty()) logger.info("not copied: {}", describe_names(companions.left_behind));
  const std::string mode = wiring_name(model.config.farskip);
  if (common.json)
    print_json({{"out", options.destination},
                {"tensors", hub_views(*model.states, Role::weight).size()},
                {"farskip", mode},
                {"left_behind", companions.left_behind}});
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
