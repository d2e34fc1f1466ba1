// SPDX-License-Identifier: Apache-2.0
#pragma once
// What several commands do first: read a run configuration, load a model.

#include <memory>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "distill/distill_setup.h"
#include "farskip/base/log.h"
#include "farskip/config/run_config.h"
#include "farskip/runtime/context.h"
#include "farskip/state/weights.h"
#include "state/hub_sources.h"

namespace farskip {

class Subcommand;
struct Companions;

struct LoadedRun {
  RunConfig config;
  ModelConfig model;  // with the wiring that the configuration asks for
  std::optional<DistillSetup> distill;
};
/// Reads and checks everything, model section included, before anything is loaded.
LoadedRun load_run(const std::string& path, const std::vector<std::string>& overrides, const RunNeeds& needs,
                   const Logger& logger);
/// The option --dump-graphs, whose value goes into RunConfig::dump_graphs.
void add_dump_option(Subcommand& command, std::string& folder);
/// Before anything is begun: makes the folder that it names, if it names one. UsageError where that is no
/// folder, IoError where it cannot be written.
void prepare_dump_folder(const std::string& folder);
/// Of each rank of the mesh, for measuring: a teacher has random weights, on the device.
TrainEngineOptions random_step_options(const LoadedRun& run, const Context& context);

struct LoadedModel {
  ModelConfig config;
  std::shared_ptr<States> states;  // weights (weight_states), or constants for inference alone
  fs::path folder;                 // where they were read from
};
struct OpenedDevice {
  std::shared_ptr<Device> device = make_cpu_device();
  DType compute = DType::f32;
};
/// A hub-layout folder or a checkpoint (step-N, or a run or checkpoints folder: its newest one). `role`: of
/// what is loaded, weight or constant.
LoadedModel load_model(const std::string& folder, Role role, const Logger& logger,
                       const OpenedDevice& on = {});
/// This rank's part, on the context's device. Collective.
LoadedModel load_model(const std::string& folder, Role role, const Context& context, DType compute);
/// The same, whose weights stay in their files until they are asked for: names, shapes and hashes were
/// checked.
struct OpenedModel {
  OpenedModel(const std::string& name, const Logger& logger);
  OpenedModel(const OpenedModel&) = delete;
  OpenedModel& operator=(const OpenedModel&) = delete;
  /// "FOLDER: model.safetensors: TENSOR".
  std::string place(const ParameterSpec& spec, const std::string& tensor) const;

  fs::path folder;
  ModelConfig config;
  std::vector<ParameterSpec> parameters;
  SafetensorsFolder files;
  ModelFolder weights;
};
/// These files travel with a loaded model's weights; their tokenizer is the file `tokenizer`, or the folder's
/// where this is empty. DataError for one of a kind that is not built, MissingInputError without any.
Companions require_tokenizer(const LoadedModel& model, const std::string& tokenizer);
/// The folder that load_model would read.
fs::path resolve_model_folder(const std::string& folder, const Logger& logger);
/// DataError naming file and tensor of a weight that is not finite.
void refuse_not_finite(const OpenedModel& model);
/// Warns where sequences of `length` tokens are longer than what the model was made for.
void warn_beyond_context(const ModelConfig& config, std::string_view setting, std::int64_t length,
                         const Logger& logger);

/// The options --device and --precision of commands that run a model. UsageError for a value that is not
/// allowed, or not to be had here.
struct DeviceOptions {
  std::string device = "auto", precision = "fp32";
};
void add_device_options(Subcommand& command, DeviceOptions& options);
OpenedDevice open_device(const DeviceOptions& options, const Communicator& world = make_self_communicator());

/// The options --expert and --tensor of commands that may run on many ranks without a run configuration.
struct LayoutOptions {
  int expert = 1, tensor = 1;
};
void add_layout_options(Subcommand& command, LayoutOptions& options);
ParallelConfig parallel_config(const LayoutOptions& options);
/// For JobRequest::alike.
void set_alike(ConfigNode& alike, const LayoutOptions& layout, const DeviceOptions& device);

/// The options --emulate and --payload of commands that measure.
struct EmulateOptions {
  int ranks = 0;
  double payload = 1;
};
void add_emulate_options(Subcommand& command, EmulateOptions& options);
/// The mesh of the job, or rank 0 of one that this GPU emulates.
Mesh mesh_to_measure(const EmulateOptions& options, const ParallelConfig& config, const Communicator& world,
                     const Device& device);

/// Wiring from --farskip and --layers; nullopt without --farskip. UsageError for a bad value.
std::optional<FarSkipConfig> parse_wiring(const std::string& mode, const std::string& layers,
                                          std::int64_t num_layers);

/// Token ids of a safetensors file with tensor `tokens` [B, S], i32 or i64.
struct TokenMatrix {
  std::vector<std::int32_t> ids;
  std::int64_t batch = 0, sequence_length = 0;
};
TokenMatrix read_token_matrix(const std::string& path, std::int64_t vocab_size);

}  // namespace farskip
