// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "farskip/cli/command.h"
#include "farskip/cli/command_inputs.h"
#include "farskip/config/scalar.h"
#include "farskip/hub/hub_folder.h"
#include "farskip/hub/upcycle.h"

namespace farskip {
namespace {

struct Options {
  std::string source, destination, farskip, layers, dtype = "f32", upcycle, shard_size;
  double upcycle_noise = 0.0;
  std::int64_t seed = 1;
};

std::string describe_names(const std::vector<std::string>& names) {
  constexpr std::size_t most_shown = 10;
  const std::span<const std::string> shown(names.data(), std::min(names.size(), most_shown));
  std::string text = printable(fmt::format("{}", fmt::join(shown, ", ")), 1000);
  if (shown.size() < names.size()) text += fmt::format(" and {} more", names.size() - shown.size());
  return text;
}

/// The numbers of --upcycle E,K.
Upcycling parse_upcycling(const Options& options) {
  constexpr std::int64_t most_experts = 4096, most_chosen = 256;  // what the families take
  const std::string& text = options.upcycle;
  const std::size_t comma = std::min(text.find(','), text.size());
  const auto experts = parse_integer(text.substr(0, comma)),
             chosen = parse_integer(text.substr(std::min(comma + 1, text.size())));
  if (!experts.value || !contains({1, most_experts}, *experts.value) || !chosen.value ||
      !contains({1, std::min(*experts.value, most_chosen)}, *chosen.value))
    throw UsageError(
        fmt::format("--upcycle {}: allowed: E,K, for instance 8,2: experts in a layer, 1 to {}, and "
                    "of them for a token, 1 to E and at most {}",
                    quote_for_message(text), most_experts, most_chosen));
  return {*experts.value, *chosen.value, options.upcycle_noise, static_cast<std::uint64_t>(options.seed)};
}

std::uint64_t parse_shard_size(const std::string& text) {
  if (text.empty()) return kShardSize;
  const auto bytes = parse_memory(text);
  if (!bytes.value || *bytes.value == 0)
    throw UsageError(
        fmt::format("--shard-size {}: allowed: a size such as 5GB or 512MiB, more than 0 (B, kB, MB, GB, TB, "
                    "KiB, MiB, GiB, TiB)",
                    quote_for_message(text)));
  return *bytes.value;
}

/// The weights of a model that is to be written, and its config.
struct Result {
  ModelConfig config;
  std::vector<HubSource> sources;
};

/// Of the experts a place tells the MLP that they are made of: where a value is that is not finite.
Result describe_result(const OpenedModel& model, const std::optional<Upcycling>& how, const Logger& logger) {
  const RowReader rows = rows_of(model.weights);
  const auto place = [&](const ParameterSpec& spec, const std::string& tensor) {
    return model.place(spec, tensor);
  };
  if (!how) return {model.config, hub_sources(model.parameters, rows, place)};
  const ModelConfig config = upcycle_config(model.config, *how);
  logger.info("each MLP of the {} model is {} experts now, {} for a token ({})", model.config.family,
              how->num_experts, how->top_k, config.family);
  return {config, hub_sources(list_parameters(config), upcycle_rows(model.parameters, rows, config, *how),
                              [&](const ParameterSpec& spec, const std::string& tensor) {
                                return model.weights.contains(tensor)
                                           ? model.place(spec, tensor)
                                           : fmt::format("{}: {}, made of it,", model.folder.string(),
                                                         tensor);
                              })};
}

ExitCode run(const Options& options, const CommonOptions& common) {
  const Logger logger = common.logger();
  const auto dtype = options.dtype == "fp32" ? DType::f32 : parse_dtype(options.dtype);
  if (!dtype || (*dtype != DType::f32 && *dtype != DType::bf16))
    throw UsageError(fmt::format("--dtype {}: allowed: f32, bf16", options.dtype));
  const auto upcycling = options.upcycle.empty() ? std::nullopt : std::optional(parse_upcycling(options));
  const std::uint64_t shard_size = parse_shard_size(options.shard_size);
  const OpenedModel model(options.source, logger);
  const Companions companions = read_companions(model.folder);
  auto [config, sources] = describe_result(model, upcycling, logger);
  if (config.eos_tokens.empty()) config.eos_tokens = find_end_tokens(config, companions);
  if (const auto wiring = parse_wiring(options.farskip, options.layers, config.num_layers))
    config.farskip = *wiring;
  write_hub_folder(options.destination, config, sources, *dtype, companions, shard_size);
  if (!companions.tokenizer_fault.empty())
    logger.warning("tokenizer.json is copied, but FarSkip cannot use it: {}", companions.tokenizer_fault);
  if (!companions.left_behind.empty()) logger.info("not copied: {}", describe_names(companions.left_behind));
  const std::string mode = wiring_name(config.farskip);
  if (common.json)
    print_json({{"out", options.destination},
                {"tensors", sources.size()},
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
  sub.text("--shard-size", o->shard_size,
           "Most bytes of a file of weights, as 512MiB or 5GB, which is the default");
  sub.text("--upcycle", o->upcycle,
           "E,K: each MLP of a dense model becomes E equal experts, K of them for a token; the logits stay");
  sub.real("--upcycle-noise", o->upcycle_noise,
           "By how much experts differ: each weight times 1 + this x a normal number", 0.0, 1.0);
  sub.integer("--seed", o->seed, "Seed of the routers and of the noise", 0);
  sub.needs("--upcycle-noise", "--upcycle");
  sub.needs("--seed", "--upcycle");
  sub.run([o](const CommonOptions& common) { return run(*o, common); });
}

}  // namespace farskip
