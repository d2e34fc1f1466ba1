// SPDX-License-Identifier: Apache-2.0
#include "cli/command_inputs.h"

#include <unistd.h>

#include <cerrno>

#include "base/folder.h"
#include "checkpoint/checkpoint_files.h"
#include "checkpoint/training_checkpoint.h"
#include "cli/command.h"
#include "engine/devices.h"
#include "engine/engine_options.h"
#include "farskip/state/model_folder.h"
#include "hub/companions.h"
#include "plan/plan_search.h"
#include "run/run_data.h"
#include "run/trainer.h"

namespace farskip {
namespace {

void check_layers(const FarSkipConfig& wiring, std::int64_t num_layers) {
  const LayerSelection& layers = wiring.layers;
  const std::int64_t last = layers.kind == LayerSelection::Kind::range  ? layers.last
                            : layers.kind == LayerSelection::Kind::list ? layers.layers.back()
                                                                        : 0;
  if (last >= num_layers)
    throw UsageError(fmt::format("farskip.layers {}: the model has {} layers, 0 to {}", describe(layers),
                                 num_layers, num_layers - 1));
}

ModelConfig read_config(const fs::path& folder, const Logger& logger) {
  std::vector<std::string> notices;
  ModelConfig config = read_hub_config(folder, &notices);
  for (const std::string& notice : notices) logger.info("{}", notice);
  return config;
}

}  // namespace

LoadedRun load_run(const std::string& path, const std::vector<std::string>& overrides, const RunNeeds& needs,
                   const Logger& logger) {
  LoadedRun run;
  LoadOptions options;
  options.needs = needs;
  options.check_model = [&run](const ConfigNode& section, ErrorList& errors) {
    run.model = read_model_section(section, errors);
  };
  std::vector<std::string> notices;
  options.notices = &notices;
  run.config = load_run_config(path, overrides, options);
  for (const std::string& notice : notices) logger.warning("{}", notice);
  if (!run.config.init_from.empty()) {
    run.config.init_from = resolve_model_folder(run.config.init_from, logger);
    run.model = read_config(run.config.init_from, logger);
  }
  if (run.config.distill) {
    run.config.distill->teacher = resolve_model_folder(run.config.distill->teacher, logger);
    run.distill = read_distill_setup(run.config);
    if (run.distill->from_teacher) run.model = run.distill->teacher;
  }
  if (run.config.farskip) run.model.farskip = *run.config.farskip;
  check_layers(run.model.farskip, run.model.num_layers);
  if (run.config.train.router_bias_update > 0 && !run.model.moe.selection_bias)
    throw UsageError(
        fmt::format("train.router_bias_update is {}, and the routers of family {} have no bias that "
                    "takes part in the choice; set it to 0, and train.aux_loss balances experts",
                    run.config.train.router_bias_update, run.model.family));
  if (needs.data) {
    if (run.model.eos_tokens.empty())
      run.model.eos_tokens = find_end_tokens(run.model, read_run_companions(run.config));
    warn_beyond_context(run.model, "train.sequence_length", run.config.train.sequence_length, logger);
  }
  return run;
}

void add_dump_option(Subcommand& command, std::string& folder) {
  command.path("--dump-graphs", folder,
               "Write the graphs of a step into this folder, as text, after each pass that changes them");
}

void prepare_dump_folder(const std::string& folder) {
  if (folder.empty()) return;
  std::error_code failure;
  if (fs::exists(folder, failure) && !fs::is_directory(folder, failure))
    throw UsageError(fmt::format("--dump-graphs {}: is no folder; name a folder, which may be new", folder));
  fs::create_directories(folder, failure);
  if (!failure && ::access(folder.c_str(), W_OK | X_OK) != 0)
    failure = std::error_code(errno, std::generic_category());
  if (failure)
    throw IoError(fmt::format("--dump-graphs {}: cannot be written: {}; name another folder", folder,
                              failure.message()));
}

TrainEngineOptions random_step_options(const LoadedRun& run, const Context& context) {
  TrainEngineOptions options = engine_options(run.config, context.world().size());
  if (run.distill)
    add_random_distillation(options, *run.distill, run.model, context,
                            static_cast<std::uint64_t>(run.config.seed));
  fit_recompute(run.config.schedule, wire_model(run.model), context, options);
  return options;
}

Companions require_tokenizer(const LoadedModel& model, const std::string& tokenizer) {
  if (!tokenizer.empty()) return read_companions(model.folder, Tokenizer::load(tokenizer));
  Companions companions = read_companions(model.folder);
  if (companions.tokenizer) return companions;
  if (!companions.tokenizer_fault.empty()) throw DataError(companions.tokenizer_fault);
  throw MissingInputError(
      fmt::format("{} holds no tokenizer.json; name one with --tokenizer", model.folder.string()));
}

fs::path resolve_model_folder(const std::string& folder, const Logger& logger) {
  fs::path path(folder);
  if (!fs::exists(path)) throw MissingInputError(fmt::format("{}: no such folder", folder));
  refuse_bare_checkpoint(path);
  if (has_entry(path, "config.json")) return path;
  const fs::path inside = path / "checkpoints";
  if (fs::is_symlink(inside))
    throw IoError(fmt::format("{}: is a symbolic link; name the folder that it leads to", inside.string()));
  for (const fs::path& checkpoints : {inside, path})
    if (fs::is_directory(checkpoints))
      if (const auto newest = find_newest_valid_checkpoint(checkpoints, logger, Verify::layout))
        return newest->path();
  throw MissingInputError(
      fmt::format("{}: neither a model folder (config.json) nor a run with checkpoints", folder));
}

LoadedModel load_model(const std::string& folder, Role role, const Logger& logger, const OpenedDevice& on) {
  return load_model(folder, role, make_context(on.device, logger), on.compute);
}

namespace {

fs::path resolve_verified(const std::string& folder, const Logger& logger, const Communicator& world) {
  const fs::path path = resolve_model_folder(folder, logger);
  verify_model_folder(path, world);
  return path;
}

}  // namespace

LoadedModel load_model(const std::string& folder, Role role, const Context& context, DType compute) {
  const fs::path path = resolve_verified(folder, context.logger, context.world());
  LoadedModel model{read_config(path, context.logger), {}, path};
  const std::vector<ParameterSpec> specs = list_parameters(model.config);
  const auto parameters = local_parameters(specs, context.mesh.position(), false);
  model.states =
      std::make_shared<States>(context.device(), role == Role::weight ? weight_states(parameters, compute)
                                                                      : constant_states(parameters, compute));
  load_weights(*model.states, specs, SafetensorsFolder(path));
  return model;
}

OpenedModel::OpenedModel(const std::string& name, const Logger& logger)
    : folder(resolve_verified(name, logger, make_self_communicator())),
      config(read_config(folder, logger)),
      parameters(list_parameters(config)),
      files(folder),
      weights(files, parameters) {
  check_weights_fit(parameters, files);
}

std::string OpenedModel::place(const ParameterSpec& spec, const std::string& tensor) const {
  return fmt::format("{}: {}", folder.string(), stored_place(weights, spec, tensor));
}

void refuse_not_finite(const OpenedModel& model) {
  const auto place = [&](const ParameterSpec& spec, const std::string& tensor) {
    return model.place(spec, tensor);
  };
  for (const HubSource& source : hub_sources(model.parameters, rows_of(model.weights), place))
    give_finite(source, [](const TensorView&) {});
}

void warn_beyond_context(const ModelConfig& config, std::string_view setting, std::int64_t length,
                         const Logger& logger) {
  if (length > config.max_positions)
    logger.warning(
        "{} is {}, and the model's max_position_embeddings is {}: later positions are beyond what "
        "it was made for",
        setting, length, config.max_positions);
}

void add_device_options(Subcommand& command, DeviceOptions& options) {
  command.text("--device", options.device, "auto, cpu or cuda");
  command.text("--precision", options.precision, "Element type of the computation: fp32 or bf16 (GPU only)");
}

OpenedDevice open_device(const DeviceOptions& options, const Communicator& world) {
  const auto device = parse_choice(device_names, options.device, "--device");
  const auto precision = parse_choice(precision_names, options.precision, "--precision");
  return {open_device(device, precision, world), compute_type(precision)};
}

void add_layout_options(Subcommand& command, LayoutOptions& options) {
  constexpr int most = 1 << 16;
  command.integer("--expert", options.expert,
                  "Ranks that the experts of a layer are dealt out to, as parallel.expert", 1, most);
  command.integer("--tensor", options.tensor, "Ranks that share every matrix, as parallel.tensor", 1, most);
}

ParallelConfig parallel_config(const LayoutOptions& options) {
  ParallelConfig parallel;
  parallel.expert = options.expert;
  parallel.tensor = options.tensor;
  return parallel;
}

void set_alike(ConfigNode& alike, const LayoutOptions& layout, const DeviceOptions& device) {
  alike.set("--expert", make_node(layout.expert));
  alike.set("--tensor", make_node(layout.tensor));
  alike.set("--device", make_node(device.device));
  alike.set("--precision", make_node(device.precision));
}

void add_emulate_options(Subcommand& command, EmulateOptions& options) {
  command.integer("--emulate", options.ranks,
                  "One GPU plays rank 0 of N: data for the other ranks crosses the bus to the host and back",
                  0);
  command.real("--payload", options.payload, "With --emulate: how often each byte crosses, such as 0.5 or 2",
               0, 1000);
  command.needs("--payload", "--emulate");
}

Mesh mesh_to_measure(const EmulateOptions& options, const ParallelConfig& config, const Communicator& world,
                     const Device& device) {
  if (options.ranks == 0) return make_mesh(world, config, device);
  if (world.size() > 1)
    throw UsageError("--emulate: one process plays one rank of many; start it without mpirun");
  return make_emulated_mesh(options.ranks, config, options.payload, device);
}

std::optional<FarSkipConfig> parse_wiring(const std::string& mode, const std::string& layers,
                                          std::int64_t num_layers) {
  if (mode.empty()) {
    if (!layers.empty()) throw UsageError("--layers needs --farskip");
    return std::nullopt;
  }
  const auto parsed = parse_wiring_name(mode);
  if (!parsed)
    throw UsageError(fmt::format("--farskip {}: allowed: {}; mode delay with its number, delay:1 to delay:{}",
                                 mode, list_names(farskip_mode_names), kMaxDelay));
  FarSkipConfig wiring = *parsed;
  if (!layers.empty()) {
    const auto selection = parse_layer_selection(layers);
    if (!selection.value) throw UsageError(fmt::format("--layers {}: {}", layers, selection.reason));
    wiring.layers = *selection.value;
  }
  check_layers(wiring, num_layers);
  return wiring;
}

TokenMatrix read_token_matrix(const std::string& path, std::int64_t vocab_size) {
  const std::string ending = fs::path(path).extension().string();
  if (ending == ".bin" || ending == ".idx" || (!fs::exists(path) && fs::exists(path + ".idx")))
    throw DataError(
        fmt::format("{}: a token file, and --tokens takes a safetensors file with tensor tokens, [batch, "
                    "sequence] of I32 or "
                    "I64",
                    path));
  const SafetensorsFile file(path);
  const TensorInfo& info = file.find("tokens");
  if (info.shape.rank() != 2 || (info.dtype != DType::i32 && info.dtype != DType::i64))
    throw DataError(fmt::format("{}: tensor tokens is {}{}; [batch, sequence] of I32 or I64 is needed", path,
                                dtype_name(info.dtype), info.shape.text()));
  TokenMatrix matrix{{}, info.shape[0], info.shape[1]};
  const HostTensor wide = convert_dtype(file.read("tokens"), DType::i64);
  for (const std::int64_t id : wide.values<std::int64_t>()) {
    if (id < 0 || id >= vocab_size)
      throw DataError(fmt::format("{}: token {} at [{}, {}] is not in the vocabulary (0 to {})", path, id,
                                  static_cast<std::int64_t>(matrix.ids.size()) / matrix.sequence_length,
                                  static_cast<std::int64_t>(matrix.ids.size()) % matrix.sequence_length,
                                  vocab_size - 1));
    matrix.ids.push_back(static_cast<std::int32_t>(id));
  }
  return matrix;
}

}  // namespace farskip
