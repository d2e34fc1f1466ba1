// SPDX-License-Identifier: Apache-2.0
#include "base/environment.h"
#include "cli/command_inputs.h"
#include "cli/job.h"
#include "cli/record.h"
#include "distill/sensitivity.h"
#include "farskip/config/scalar.h"
#include "fold/fold.h"
#include "fold/folded_file.h"
#include "hub/hub_folder.h"
#include "hub/upcycle.h"

namespace farskip {
namespace {

struct Options {
  std::string source, destination, farskip, layers, dtype = "f32", upcycle, shard_size;
  double upcycle_noise = 0.0;
  std::int64_t seed = 1;
  FoldTextOptions fold, sensitivity{.source = {}, .sequences = 64, .option = "--sensitivity"};
  std::int64_t sequence_length = 0;  // of both
  DeviceOptions device;              // of both
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

/// The weights of a model that is to be written, its config, and where its tensors come from.
struct Result {
  ModelConfig config;
  RowReader rows;
  std::function<std::string(const ParameterSpec& spec, const std::string& tensor)> place;
};

/// Of the experts a place tells the MLP that they are made of: where a value is that is not finite.
Result describe_result(const OpenedModel& model, const std::optional<Upcycling>& how, const Logger& logger) {
  const RowReader rows = rows_of(model.weights);
  const auto place = [&](const ParameterSpec& spec, const std::string& tensor) {
    return model.place(spec, tensor);
  };
  if (!how) return {model.config, rows, place};
  const ModelConfig config = upcycle_config(model.config, *how);
  logger.info("each MLP of the {} model is {} experts now, {} for a token ({})", model.config.family,
              how->num_experts, how->top_k, config.family);
  return {config, upcycle_rows(model.parameters, rows, config, *how),
          [&model](const ParameterSpec& spec, const std::string& tensor) {
            return model.weights.contains(tensor)
                       ? model.place(spec, tensor)
                       : fmt::format("{}: {}, made of it,", model.folder.string(), tensor);
          }};
}

/// Collective. The changed weights go into `file`, on the rank that has one.
Folded fold_result(const Options& options, const Result& result, const FarSkipConfig& wiring,
                   const Companions& companions, const Job& job, std::optional<FoldedFile>& file) {
  const OpenedDevice device = open_device(options.device, job.world);
  FoldTextOptions source = options.fold;
  source.sequence_length = options.sequence_length;
  source.rank = job.world.rank();
  source.ranks = job.world.size();
  const FoldText text = read_fold_text(source, result.config, companions.tokenizer,
                                       job.world.rank() == 0 ? job.logger : Logger(LogLevel::off));
  const Model teacher = wire_model(result.config);
  return fold_model(teacher, wire_model(result.config, wiring).layers, result.rows, text, job.world,
                    make_context(device.device, job.logger),
                    [&](const std::string& name, const HostTensor& weights) {
                      if (file) file->add(name, weights);
                    });
}

void report_fold(const Folded& folded, const Logger& logger) {
  if (folded.edges.empty())
    return logger.info("--fold: the model has this wiring already, and stays as it is");
  logger.info(
      "folded {} edges in {:.1f} s: held-out loss {:.4f} nats rewired, {:.4f} folded, {:.4f} of the model",
      folded.edges.size(), folded.seconds, folded.loss_before, folded.loss_after, folded.teacher_loss);
}

Record fold_record(const Folded& folded) {
  Record edges = Record::array();
  for (const FoldEdge& edge : folded.edges)
    edges.push_back({{"layer", edge.layer},
                     {"block", block_name(edge.block)},
                     {"side", fold_side_name(edge.side)},
                     {"error_before", edge.error_before},
                     {"error_after", edge.error_after},
                     {"ridge", edge.ridge}});
  // Nothing is folded onto a model's own wiring, nor measured then.
  const auto loss = [&](double value) { return folded.edges.empty() ? Record() : Record(value); };
  return {{"edges", std::move(edges)},
          {"loss_teacher", loss(folded.teacher_loss)},
          {"loss_before", loss(folded.loss_before)},
          {"loss_after", loss(folded.loss_after)},
          {"seconds", folded.seconds}};
}

Record cost_record(const RewiringCost& cost) {
  Record object;
  if (cost.layer >= 0) object["layer"] = cost.layer;
  object.update({{"loss", cost.loss}, {"kl", cost.kl}, {"agreement", cost.agreement}});
  return object;
}

void print_sensitivity(const Record& found) {
  fmt::print("rewired   loss    KL      agreement\n");
  print_line(found, "none      {loss_model:.4f}");
  constexpr std::string_view costs = "{loss:.4f}  {kl:.4f}  {agreement|%:.2f}%";
  for (const Record& cost : found["layers"])
    fmt::print("{}  {}\n", text_of(cost, "{layer:<8}"), text_of(cost, costs));
  fmt::print("together  {}\n", text_of(found["together"], costs));
}

/// Rewires the layers of the model as it is, one at a time. Nothing is written.
ExitCode run_sensitivity(const Options& options, const CommonOptions& common) {
  const Logger logger = common.logger();
  const OpenedDevice device = open_device(options.device);
  const LoadedModel model = load_model(options.source, Role::constant, logger, device);
  const auto wiring = parse_wiring(options.farskip, options.layers, model.config.num_layers);
  FoldTextOptions source = options.sensitivity;
  source.sequence_length = options.sequence_length;
  const FoldText text = read_fold_text(source, model.config, read_companions(model.folder).tokenizer, logger);
  const Sensitivity found = measure_sensitivity(wire_model(model.config), *wiring, model.states, text,
                                                make_context(device.device, logger));
  Record layers = Record::array();
  for (const RewiringCost& cost : found.layers) layers.push_back(cost_record(cost));
  print_result({{"farskip", options.farskip},
                {"tokens", text.tokens.size()},
                {"loss_model", found.model_loss},
                {"layers", std::move(layers)},
                {"together", cost_record(found.all)}},
               print_sensitivity, common);
  return ExitCode::ok;
}

/// Options that some others leave nothing to do.
void check_options(const Options& options) {
  const bool folds = !options.fold.source.empty(), measures = !options.sensitivity.source.empty();
  if (const auto place = launcher_place(); place && place->size > 1 && !folds)
    throw UsageError(fmt::format(
        "convert without --fold runs in one process, but the launcher started {}; start it without mpirun",
        place->size));
  if (measures && (folds || !options.destination.empty() || !options.upcycle.empty()))
    throw UsageError(
        "--sensitivity measures the model as it is and writes nothing; leave out DST, --fold and --upcycle");
  if (!measures && options.destination.empty())
    throw UsageError("DST is missing: the folder to write; only --sensitivity writes none");
  if (!folds && !measures && (options.sequence_length > 0 || options.device.device != "auto"))
    throw UsageError("--sequence-length and --device are for --fold and --sensitivity; give one of these");
}

/// What ranks of a job must be asked alike.
JobRequest request_of(const Options& o) {
  JobRequest request = request_job("convert", {{"SRC", make_node(o.source)},
                                               {"DST", make_node(o.destination)},
                                               {"--farskip", make_node(o.farskip)},
                                               {"--layers", make_node(o.layers)},
                                               {"--dtype", make_node(o.dtype)},
                                               {"--upcycle", make_node(o.upcycle)},
                                               {"--upcycle-noise", make_node(o.upcycle_noise)},
                                               {"--seed", make_node(o.seed)},
                                               {"--fold", make_node(o.fold.source)},
                                               {"--fold-sequences", make_node(o.fold.sequences)},
                                               {"--sequence-length", make_node(o.sequence_length)},
                                               {"--device", make_node(o.device.device)}});
  request.cure = "start it again";
  return request;
}

ExitCode convert(const Options& options, const CommonOptions& common, const Job& job) {
  const Logger& logger = job.logger;
  const auto dtype = options.dtype == "fp32" ? DType::f32 : parse_dtype(options.dtype);
  if (!dtype || (*dtype != DType::f32 && *dtype != DType::bf16))
    throw UsageError(fmt::format("--dtype {}: allowed: f32, bf16", options.dtype));
  const auto upcycling = options.upcycle.empty() ? std::nullopt : std::optional(parse_upcycling(options));
  const std::uint64_t shard_size = parse_shard_size(options.shard_size);
  const OpenedModel model(options.source, logger);
  const Companions companions = read_companions(model.folder);
  Result result = describe_result(model, upcycling, logger);
  ModelConfig& config = result.config;
  if (config.eos_tokens.empty()) config.eos_tokens = find_end_tokens(config, companions);
  const auto wiring = parse_wiring(options.farskip, options.layers, config.num_layers);
  const bool is_writer = job.world.rank() == 0;
  if (is_writer) refuse_unusable_folder(options.destination, companions);
  Folded folded;
  std::optional<FoldedFile> changed;
  if (!options.fold.source.empty()) {
    if (is_writer) changed.emplace(nearest_folder(options.destination), *dtype);
    folded = fold_result(options, result, *wiring, companions, job, changed);
    report_fold(folded, logger);
  }
  if (!is_writer) return ExitCode::ok;
  if (wiring) config.farskip = *wiring;
  const auto sources =
      hub_sources(list_parameters(config), changed ? changed->over(result.rows) : result.rows, result.place);
  write_hub_folder(options.destination, config, sources, *dtype, companions, shard_size);
  if (!companions.tokenizer_fault.empty())
    logger.warning("tokenizer.json is copied, but FarSkip cannot use it: {}", companions.tokenizer_fault);
  if (!companions.left_behind.empty()) logger.info("not copied: {}", describe_names(companions.left_behind));
  const std::string mode = wiring_name(config.farskip);
  if (common.json) {
    Record object{{"out", options.destination},
                  {"tensors", sources.size()},
                  {"farskip", mode},
                  {"left_behind", companions.left_behind}};
    if (!options.fold.source.empty()) object.update(fold_record(folded));
    print_json(object);
  }
  logger.info("wrote {} ({} wiring, {})", options.destination, mode, dtype_name(*dtype));
  return ExitCode::ok;
}

ExitCode run(const Options& options, const CommonOptions& common) {
  check_options(options);
  if (!options.sensitivity.source.empty()) return run_sensitivity(options, common);
  return run_job(common, request_of(options), [&](Job& job) { return convert(options, common, job); });
}

}  // namespace

void add_convert(Subcommand& root) {
  auto o = std::make_shared<Options>();
  Subcommand sub =
      root.add("convert", "Convert a model folder, checkpoint or run into a model folder in hub layout");
  sub.positional("SRC", o->source, "Model folder, checkpoint or run directory");
  sub.optional_positional("DST", o->destination, "Folder to write; must not hold a model");
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
  sub.path(
      "--fold", o->fold.source,
      "Token files (PREFIX) or text, to which the weights of the rewired model are fitted in closed form; "
      "ranks share it");
  sub.integer("--fold-sequences", o->fold.sequences, "Most sequences that the fold looks at", 1, 1 << 24);
  sub.integer(
      "--sequence-length", o->sequence_length,
      fmt::format("Tokens of a sequence of --fold or --sensitivity; default: {}, or the model's context",
                  kFoldLength),
      2, 1 << 20);
  sub.path("--sensitivity", o->sensitivity.source,
           "Instead of writing DST, rewire each layer alone and measure what it costs on this text");
  sub.integer("--sensitivity-sequences", o->sensitivity.sequences, "Most sequences to measure on", 1,
              1 << 24);
  sub.text("--device", o->device.device, "Where --fold or --sensitivity computes: auto, cpu or cuda");
  sub.needs("--fold", "--farskip");
  sub.needs("--sensitivity", "--farskip");
  sub.needs("--fold-sequences", "--fold");
  sub.needs("--sensitivity-sequences", "--sensitivity");
  sub.needs("--upcycle-noise", "--upcycle");
  sub.needs("--seed", "--upcycle");
  sub.run_on_ranks([o](const CommonOptions& common) { return run(*o, common); });
}

}  // namespace farskip
