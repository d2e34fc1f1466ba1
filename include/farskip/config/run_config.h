// SPDX-License-Identifier: Apache-2.0
#pragma once
// The configuration of a run as typed values. Every default, range and unit is here and in
// src/config/run_config.cpp; docs/configuration.md is held to them by a test. Strings end here: the rest of
// the program sees these structs only (and the `model` tree, which layer model reads).

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "farskip/config/choice.h"
#include "farskip/config/layer_selection.h"
#include "farskip/config/tree.h"

namespace farskip {

enum class DeviceChoice { automatic, cpu, cuda };
inline constexpr Choice<DeviceChoice> device_names[] = {
    {"auto", DeviceChoice::automatic}, {"cpu", DeviceChoice::cpu}, {"cuda", DeviceChoice::cuda}};

/// Of the computation; parameters and moments stay fp32.
enum class Precision { fp32, bf16 };
inline constexpr Choice<Precision> precision_names[] = {{"fp32", Precision::fp32}, {"bf16", Precision::bf16}};

/// Wirings of the residual stream; what each of them means: passes/farskip.h.
enum class FarSkipMode { off, attention, mlp, full, ladder, parallel, shortcut, delay };
inline constexpr Choice<FarSkipMode> farskip_mode_names[] = {
    {"off", FarSkipMode::off},           {"attention", FarSkipMode::attention},
    {"mlp", FarSkipMode::mlp},           {"full", FarSkipMode::full},
    {"ladder", FarSkipMode::ladder},     {"parallel", FarSkipMode::parallel},
    {"shortcut", FarSkipMode::shortcut}, {"delay", FarSkipMode::delay}};

/// What the backward pass computes again instead of keeping it; automatic: what fits ScheduleConfig::memory.
enum class Recompute { none, attention, experts, full, automatic };
inline constexpr Choice<Recompute> recompute_names[] = {{"none", Recompute::none},
                                                        {"attention", Recompute::attention},
                                                        {"experts", Recompute::experts},
                                                        {"full", Recompute::full},
                                                        {"auto", Recompute::automatic}};

/// What connects the GPUs of a group; automatic: copy engines where they reach all of it, else NCCL.
enum class GpuTransport { automatic, nccl, copy_engines };
inline constexpr Choice<GpuTransport> gpu_transport_names[] = {{"auto", GpuTransport::automatic},
                                                               {"nccl", GpuTransport::nccl},
                                                               {"copy_engines", GpuTransport::copy_engines}};

enum class OptimizerName { adamw, muon };
inline constexpr Choice<OptimizerName> optimizer_names[] = {{"adamw", OptimizerName::adamw},
                                                            {"muon", OptimizerName::muon}};

enum class LearningRateSchedule { constant, cosine, wsd };
inline constexpr Choice<LearningRateSchedule> learning_rate_schedule_names[] = {
    {"constant", LearningRateSchedule::constant},
    {"cosine", LearningRateSchedule::cosine},
    {"wsd", LearningRateSchedule::wsd}};

enum class DistillTerm { kl, reverse_kl, jsd, sft };
inline constexpr Choice<DistillTerm> distill_term_names[] = {{"kl", DistillTerm::kl},
                                                             {"reverse_kl", DistillTerm::reverse_kl},
                                                             {"jsd", DistillTerm::jsd},
                                                             {"sft", DistillTerm::sft}};

/// How the streams of student and teacher are compared: mean squared difference; that relative to the
/// teacher's squares (ops::relative_weights); 1 - cosine.
enum class HiddenLossKind { l2, normalised, cosine };
inline constexpr Choice<HiddenLossKind> hidden_loss_names[] = {{"l2", HiddenLossKind::l2},
                                                               {"normalised", HiddenLossKind::normalised},
                                                               {"cosine", HiddenLossKind::cosine}};

/// What early stopping looks at, on the held-out sources.
enum class HeldOutMetric { validation_loss, validation_kl, validation_accuracy, validation_agreement };
inline constexpr Choice<HeldOutMetric> held_out_metric_names[] = {
    {"validation_loss", HeldOutMetric::validation_loss},
    {"validation_kl", HeldOutMetric::validation_kl},
    {"validation_accuracy", HeldOutMetric::validation_accuracy},
    {"validation_agreement", HeldOutMetric::validation_agreement}};

/// Groups of parameters that distillation can leave as they are.
enum class ParameterGroup { embedding, head, attention, router, experts, shared_experts, dense_mlp, norms };
inline constexpr Choice<ParameterGroup> parameter_group_names[] = {
    {"embedding", ParameterGroup::embedding}, {"head", ParameterGroup::head},
    {"attention", ParameterGroup::attention}, {"router", ParameterGroup::router},
    {"experts", ParameterGroup::experts},     {"shared_experts", ParameterGroup::shared_experts},
    {"dense_mlp", ParameterGroup::dense_mlp}, {"norms", ParameterGroup::norms}};

/// automatic: from the newest whole checkpoint of the run directory if there is one; required: it must exist.
enum class Resume { automatic, never, required };
inline constexpr Choice<Resume> resume_names[] = {
    {"auto", Resume::automatic}, {"never", Resume::never}, {"required", Resume::required}};

struct FarSkipConfig {
  FarSkipMode mode = FarSkipMode::full;
  LayerSelection layers;
  int delay = 1;  // of mode delay: sub-blocks that are omitted
  bool operator==(const FarSkipConfig&) const = default;
};
inline constexpr int kMaxDelay = 8;
/// The mode as messages and command lines have it: "ladder", "delay:2".
std::string wiring_name(const FarSkipConfig& config);
/// The same back, without layers; nothing for any other text. Mode delay needs its number.
std::optional<FarSkipConfig> parse_wiring_name(std::string_view text);

struct ParallelConfig {
  int expert = 1;              // ranks that share one set of experts
  int tensor = 1;              // ranks that share every matrix and read the same sequences
  std::int64_t zero = 0;       // dealt out: 1 optimizer state, 2 gradients and f32 weights too, 3 all
  std::int64_t timeout = 600;  // seconds without progress after which a rank gives up; 0: never
  GpuTransport gpu_transport = GpuTransport::automatic;
  bool operator==(const ParallelConfig&) const = default;
};

struct ScheduleConfig {
  bool overlap = true;
  int micro_batches_in_flight = 1;
  static constexpr int kMostExpertChunks = 16;
  std::optional<int> expert_chunks = 1;  // absent: chosen by a plan at the first start (auto)
  Recompute recompute = Recompute::none;
  std::optional<std::uint64_t> routed_rows_memory;  // bytes; absent: chosen by the planner (auto)
  std::optional<std::uint64_t> memory;              // bytes of a rank that recompute: auto has to fit
  bool operator==(const ScheduleConfig&) const = default;
};

struct DataConfig {
  std::vector<std::string> tokens;  // prefixes of .bin/.idx pairs, or
  std::vector<std::string> text;    // files and folders; never both
  std::string tokenizer;            // empty: that of the model started from
  std::vector<std::string> validation;
  std::vector<double> weights;  // one per source
  bool document_mask = false;
  bool shuffle = true;
  std::optional<std::int32_t> prompt_end;  // token that ends a document's prompt, which is not counted
  std::optional<std::int32_t> padding;     // token that is not counted
  bool operator==(const DataConfig&) const = default;
};

struct OptimizerConfig {
  OptimizerName name = OptimizerName::adamw;
  Precision moments = Precision::fp32;  // in which what it keeps of a weight is kept
  double momentum = 0.95;               // of Muon
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;    // on tensors of rank >= 2
  double clip_grad_norm = 1.0;  // 0: no clipping
  bool operator==(const OptimizerConfig&) const = default;
};

struct LearningRateConfig {
  LearningRateSchedule schedule = LearningRateSchedule::cosine;
  double peak = 1e-3;
  double final_rate = 0.0;        // `final`; the constant schedule does not use it
  std::int64_t warmup_steps = 0;  // linear from 0
  std::int64_t decay_steps = 0;   // last steps of wsd, from peak to final
  bool operator==(const LearningRateConfig&) const = default;
};

struct TrainConfig {
  std::int64_t steps = 1000;
  std::int64_t sequence_length = 256;  // S, tokens
  std::int64_t global_batch = 32;      // sequences over all ranks
  std::int64_t micro_batch = 1;        // sequences of one rank at a time
  OptimizerConfig optimizer;
  LearningRateConfig learning_rate;
  double aux_loss = 0.001;            // coefficient; 0: off
  double router_bias_update = 0.0;    // by which a step moves the biases of routers; 0: off
  double average_decay = 0.0;         // of the running average of weights, which is evaluated; 0: none
  std::int64_t validate_every = 100;  // steps; 0: never
  bool operator==(const TrainConfig&) const = default;
};

struct EarlyStoppingConfig {
  std::int64_t every = 1000;   // steps between looks
  std::int64_t patience = 20;  // looks without progress
  double delta = 0.02;         // relative improvement that counts as progress
  HeldOutMetric metric = HeldOutMetric::validation_loss;
  bool operator==(const EarlyStoppingConfig&) const = default;
};

/// Weights of the terms of a mixture. `loss: kl` is kl alone with weight 1.
struct DistillWeights {
  double kl = 0.0, reverse_kl = 0.0, jsd = 0.0, sft = 0.0;
  bool operator==(const DistillWeights&) const = default;
};

/// Outputs of a teacher kept on disk and used instead of it.
struct TeacherCacheConfig {
  std::string path;
  std::int64_t top_k = 64;  // logits kept of each token
  bool operator==(const TeacherCacheConfig&) const = default;
};

/// Weights that a distillation begins with, fitted to the student's wiring (fold/fold.h).
struct FoldConfig {
  std::string text, tokens;      // one of them: a text file or folder, or the prefix of token files
  std::int64_t sequences = 512;  // at most, of train.sequence_length tokens
  bool operator==(const FoldConfig&) const = default;
};

/// The intermediate loss, on the residual streams behind layers.
struct HiddenLossConfig {
  HiddenLossKind kind = HiddenLossKind::l2;
  double weight = 0.0;  // 0: off
  double anneal = 0.0;  // share of the steps over which the weight falls to 0 at the end
  bool operator==(const HiddenLossConfig&) const = default;
};

struct DistillConfig {
  std::string teacher;  // folder of a model
  DistillWeights loss{.kl = 1.0};
  HiddenLossConfig hidden_loss;
  std::vector<std::int64_t> hidden_layers;   // of the student, that hidden_loss compares; empty: all
  std::vector<std::int64_t> teacher_layers;  // with which layer of the teacher each; empty: the same
  double router_agreement = 0.0;             // coefficient of KL(teacher, student) of the routers; 0: off
  double temperature = 1.0;
  std::int64_t top_k = 0;             // teacher logits used; 0: the full vocabulary
  std::vector<std::string> freeze;    // names of parameter groups, or patterns of parameter names
  std::int64_t curriculum_every = 0;  // curriculum.every: steps between rewired layers; 0: all at once
  std::optional<EarlyStoppingConfig> early_stopping;
  std::optional<TeacherCacheConfig> cache;
  std::optional<FoldConfig> fold;
  double local_share = 0.0;  // local_stage.share: of the steps; blocks then learn one by one
  bool operator==(const DistillConfig&) const = default;
};

struct CheckpointConfig {
  std::int64_t every = 200;  // steps; 0: at the end only
  std::int64_t keep = 3;     // newest checkpoints kept
  Resume resume = Resume::automatic;
  bool async = true;
  bool operator==(const CheckpointConfig&) const = default;
};

struct RunConfig {
  std::string file;            // that it was read from, as it was named; no key
  bool named_by_file = false;  // neither name nor run_dir is given, and the file's name stands for both
  std::string dump_graphs;     // --dump-graphs: the folder for the text of graphs; empty: none; no key
  std::string name;
  std::string run_dir;
  std::int64_t seed = 1;
  DeviceChoice device = DeviceChoice::automatic;
  Precision precision = Precision::fp32;
  bool deterministic = true;  // false: kernels that do not repeat their bits may be taken (ops::Attention)
  std::string init_from;      // init.from: a model or checkpoint; empty: none
  ConfigNode model;  // the section as written; null where init.from or distill.teacher gives the model
  /// Absent only beside init.from: then the wiring is the one that the model's own config names.
  std::optional<FarSkipConfig> farskip;
  ParallelConfig parallel;
  ScheduleConfig schedule;
  DataConfig data;
  TrainConfig train;
  std::optional<DistillConfig> distill;
  CheckpointConfig checkpoint;
  bool operator==(const RunConfig&) const = default;
};

/// What a command cannot do without. Sections that are present are always checked.
struct RunNeeds {
  bool model = true;     // `model`, or init.from, or a teacher to begin as
  bool data = false;     // data.tokens or data.text
  bool distill = false;  // the section `distill`
};

struct LoadOptions {
  RunNeeds needs = {};
  /// Reads the section `model`, where there is one, into the same list, so that its mistakes are reported
  /// with the others.
  std::function<void(const ConfigNode& model, ErrorList& errors)> check_model = {};
  /// If given, receives sentences on values that were fitted to an override, for the log.
  std::vector<std::string>* notices = nullptr;
};

/// Reads a whole tree and adds every mistake to `errors`; the result is of use only if there is none.
RunConfig read_run_config(const ConfigNode& tree, ErrorList& errors, const LoadOptions& options = {});

/// File, then overrides (`train.steps=20`, each path once), then checks. UsageError with all mistakes at
/// once, or MissingInputError if there is no such file.
RunConfig load_run_config(const std::filesystem::path& path, const std::vector<std::string>& overrides,
                          const LoadOptions& options = {});

/// The configuration with every default spelled out.
ConfigNode run_config_tree(const RunConfig& config);

/// The same as YAML that loads to an equal RunConfig, but for `file`; provenance stands in comments at the
/// top.
std::string resolved_yaml(const RunConfig& config, const std::string& version, const std::string& commit,
                          const std::string& machine, std::int64_t ranks = 1);
/// The file that a text of resolved_yaml says it was made from; empty where it does not.
std::string resolved_from(std::string_view yaml);

}  // namespace farskip
