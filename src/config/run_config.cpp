// SPDX-License-Identifier: Apache-2.0
#include "farskip/config/run_config.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "config/distill_section.h"
#include "config/farskip_section.h"
#include "farskip/config/reader.h"

namespace farskip {
namespace {

constexpr IntegerRange step_count{.min = 1, .max = 1'000'000'000'000};

bool is_file_name(const std::string& name) {
  return !name.empty() && name.size() <= 200 && name[0] != '.' &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
                  c == '-' || c == '.';
         });
}

void read_name(Reader& reader, RunConfig& config, const std::string& stem) {
  const auto name = reader.optional_string("name"), folder = reader.optional_path("run_dir");
  config.named_by_file = !reader.has("name") && !reader.has("run_dir") && !config.file.empty();
  config.name = name.value_or(stem.empty() || (folder && !is_file_name(stem)) ? "run" : stem);
  if (reader.sound("name") && !is_file_name(config.name))
    reader.fail("name",
                fmt::format("{}{} cannot name a folder; allowed: letters, digits, _ - and ., not beginning "
                            "with .",
                            quote_for_message(config.name),
                            name ? "" : ", the name of this file without its ending,"));
  config.run_dir = folder.value_or("runs/" + config.name);
}

ParallelConfig read_parallel(Reader reader) {
  ParallelConfig config;
  config.expert = reader.integer<int>("expert", {.min = 1, .max = 1'000'000}, config.expert);
  config.tensor = reader.integer<int>("tensor", {.min = 1, .max = 1'000'000}, config.tensor);
  config.zero = reader.integer("zero", {.min = 0, .max = 3}, config.zero);
  config.timeout = reader.integer("timeout", {.min = 0, .max = 1'000'000}, config.timeout);
  config.gpu_transport = reader.choice("gpu_transport", gpu_transport_names, config.gpu_transport);
  reader.finish();
  return config;
}

ScheduleConfig read_schedule(Reader reader) {
  ScheduleConfig config;
  config.overlap = reader.boolean("overlap", config.overlap);
  config.micro_batches_in_flight =
      reader.integer<int>("micro_batches_in_flight", {.min = 1, .max = 64}, config.micro_batches_in_flight);
  config.expert_chunks =
      reader.integer_or<int>("auto", "expert_chunks", {.min = 1, .max = config.kMostExpertChunks}, 1);
  config.recompute = reader.choice("recompute", recompute_names, config.recompute);
  config.routed_rows_memory = reader.optional_memory("routed_rows_memory", "auto");
  if (config.routed_rows_memory == std::uint64_t{0})
    reader.fail("routed_rows_memory", "0 bytes hold no rows; allowed: auto, or a size above 0");
  config.memory = reader.optional_memory("memory");
  if (reader.sound("recompute") && reader.sound("memory") &&
      (config.recompute == Recompute::automatic) != config.memory.has_value())
    reader.fail(config.memory ? "memory" : "recompute",
                config.memory ? "given without recompute: auto, which alone reads it; allowed: both or none"
                              : "auto needs schedule.memory, the bytes that a rank may take, such as 76GiB");
  reader.finish();
  return config;
}

void check_weights(Reader& reader, DataConfig& config) {
  const std::size_t num_sources = config.tokens.size() + config.text.size();
  if (!reader.has("weights") && reader.sound("weights")) config.weights.assign(num_sources, 1.0);
  if (!reader.sound("weights") || !reader.sound("tokens") || !reader.sound("text")) return;
  if (config.weights.size() != num_sources)
    reader.fail("weights",
                fmt::format("{} weights for {} sources; allowed: one weight per entry of {}",
                            config.weights.size(), num_sources, config.text.empty() ? "tokens" : "text"));
  else if (num_sources > 0 &&
           std::all_of(config.weights.begin(), config.weights.end(), [](double w) { return w == 0; }))
    reader.fail("weights", "all weights are 0; allowed: at least one above 0");
}

/// `own_tokenizer`: a model is started from that may bring its tokenizer.
DataConfig read_data(Reader reader, const RunNeeds& needs, bool own_tokenizer) {
  DataConfig config;
  config.tokens = reader.paths("tokens");
  config.text = reader.paths("text");
  config.tokenizer = reader.optional_path("tokenizer").value_or("");
  config.validation = reader.paths("validation");
  config.weights = reader.reals("weights", not_negative, {}, {});
  config.document_mask = reader.boolean("document_mask", config.document_mask);
  config.shuffle = reader.boolean("shuffle", config.shuffle);
  config.prompt_end = reader.optional_integer<std::int32_t>("prompt_end", at_least_zero);
  config.padding = reader.optional_integer<std::int32_t>("padding", at_least_zero);
  const bool sound = reader.sound("tokens") && reader.sound("text");
  if (!config.tokens.empty() && !config.text.empty())
    reader.fail("text", "given beside data.tokens; allowed: only one of the two");
  else if (sound && config.tokens.empty() && config.text.empty() && needs.data)
    reader.fail("tokens",
                "no data is named; give tokens (prefixes of .bin/.idx files) or text (files or folders)");
  if (!config.text.empty() && config.tokenizer.empty() && reader.sound("tokenizer") && !own_tokenizer)
    reader.fail("tokenizer", "this key is missing; data.text needs a tokenizer.json");
  check_weights(reader, config);
  reader.finish();
  return config;
}

OptimizerConfig read_optimizer(Reader reader) {
  OptimizerConfig config;
  config.name = reader.choice("name", optimizer_names, config.name);
  config.moments = reader.choice("moments", precision_names, config.moments);
  config.momentum = reader.real("momentum", below_one, config.momentum);
  const auto betas = reader.reals("betas", below_one, {.min = 2, .max = 2}, {config.beta1, config.beta2});
  config.beta1 = betas[0];
  config.beta2 = betas[1];
  config.eps = reader.real("eps", {.min = 1e-30, .max = 1}, config.eps);
  config.weight_decay = reader.real("weight_decay", {.min = 0, .max = 1000}, config.weight_decay);
  config.clip_grad_norm = reader.real("clip_grad_norm", not_negative, config.clip_grad_norm);
  reader.finish();
  return config;
}

/// Fits a number of steps into `room`. A run that an override of train.steps makes shorter than its file says
/// keeps working: the number is cut. Within one file it is a contradiction.
void fit_steps(Reader& reader, std::string_view key, std::int64_t& value, std::int64_t room,
               bool steps_overridden, std::vector<std::string>* notices) {
  if (value <= room) return;
  if (steps_overridden && !reader.is_override(key)) {
    if (notices != nullptr)
      notices->push_back(fmt::format("{}: cut from {} to {} to fit train.steps of the command line",
                                     reader.path_of(key), value, room));
    value = room;
  } else {
    reader.fail(key, fmt::format("{} does not fit into train.steps; allowed: at most {}", value, room));
  }
}

LearningRateConfig read_learning_rate(Reader reader, std::int64_t steps, bool steps_sound,
                                      bool steps_overridden, std::vector<std::string>* notices) {
  LearningRateConfig config;
  config.schedule = reader.choice("schedule", learning_rate_schedule_names, config.schedule);
  config.peak = reader.real("peak", {.min = 0, .max = 100, .above_min = true}, config.peak);
  config.final_rate = reader.real("final", {.min = 0, .max = 100}, config.final_rate);
  config.warmup_steps = reader.integer("warmup_steps", at_least_zero, config.warmup_steps);
  const auto decay_steps = reader.optional_integer("decay_steps", at_least_zero);
  if (config.schedule != LearningRateSchedule::constant && reader.sound("peak") && reader.sound("final") &&
      config.final_rate > config.peak)
    reader.fail("final", fmt::format("{} is above the peak {}; allowed: at most the peak", config.final_rate,
                                     config.peak));
  if (steps_sound && reader.sound("warmup_steps"))
    fit_steps(reader, "warmup_steps", config.warmup_steps, steps, steps_overridden, notices);
  const std::int64_t room = std::max<std::int64_t>(0, steps - config.warmup_steps);
  config.decay_steps = decay_steps.value_or(std::min(steps / 5, room));
  if (config.schedule == LearningRateSchedule::wsd && steps_sound && reader.sound("decay_steps") &&
      reader.sound("warmup_steps"))
    fit_steps(reader, "decay_steps", config.decay_steps, room, steps_overridden, notices);
  reader.finish();
  return config;
}

/// `distills`: the teacher's routing is the model, unless the section says otherwise.
TrainConfig read_train(Reader reader, bool distills, std::vector<std::string>* notices) {
  TrainConfig config;
  config.steps = reader.integer("steps", step_count, config.steps);
  config.sequence_length =
      reader.integer("sequence_length", {.min = 1, .max = 1 << 24}, config.sequence_length);
  config.global_batch = reader.integer("global_batch", {.min = 1, .max = 1 << 24}, config.global_batch);
  config.micro_batch = reader.integer("micro_batch", {.min = 1, .max = 1 << 16}, config.micro_batch);
  config.optimizer = read_optimizer(reader.section("optimizer"));
  config.learning_rate = read_learning_rate(reader.section("learning_rate"), config.steps,
                                            reader.sound("steps"), reader.is_override("steps"), notices);
  config.aux_loss = reader.real("aux_loss", coefficient, distills ? 0.0 : config.aux_loss);
  config.router_bias_update = reader.real("router_bias_update", coefficient, config.router_bias_update);
  config.validate_every = reader.integer("validate_every", at_least_zero, config.validate_every);
  if (reader.sound("global_batch") && reader.sound("micro_batch") &&
      config.global_batch % config.micro_batch != 0)
    reader.fail("global_batch",
                fmt::format("{} is not a multiple of train.micro_batch = {}; allowed: a multiple of "
                            "micro_batch x world size",
                            config.global_batch, config.micro_batch));
  reader.finish();
  return config;
}

CheckpointConfig read_checkpoint(Reader reader) {
  CheckpointConfig config;
  config.every = reader.integer("every", at_least_zero, config.every);
  config.keep = reader.integer("keep", at_least_one, config.keep);
  config.resume = reader.choice("resume", resume_names, config.resume);
  config.async = reader.boolean("async", config.async);
  reader.finish();
  return config;
}

void read_model_source(Reader& reader, RunConfig& config, const LoadOptions& options) {
  Reader init = reader.section("init");
  config.init_from = init.optional_path("from").value_or("");
  if (reader.has("init") && config.init_from.empty() && init.sound("from"))
    init.fail("from", "this key is missing; allowed: the folder of a model or checkpoint");
  init.finish();
  if (const ConfigNode* model = reader.take("model", "map (see the model families)")) {
    if (model->kind != ConfigNode::Kind::map)
      reader.fail("model",
                  fmt::format("{} stands here; allowed: a map of key: value lines", describe_kind(*model)));
    else if (options.check_model)
      options.check_model(*model, reader.errors());
    config.model = *model;
  }
  if (reader.has("model") && reader.has("init"))
    reader.fail("model",
                "given beside init.from, whose own config gives the model; allowed: only one of the two");
}

}  // namespace

std::string wiring_name(const FarSkipConfig& config) {
  const std::string_view name = name_of(farskip_mode_names, config.mode);
  return config.mode == FarSkipMode::delay ? fmt::format("{}:{}", name, config.delay) : std::string(name);
}

std::optional<FarSkipConfig> parse_wiring_name(std::string_view text) {
  const std::size_t colon = text.find(':');
  const auto mode = find_choice(farskip_mode_names, text.substr(0, colon));
  const bool has_delay = colon != std::string_view::npos;
  if (!mode || has_delay != (*mode == FarSkipMode::delay)) return std::nullopt;
  if (!has_delay) return FarSkipConfig{*mode, {}};
  const auto delay = parse_integer(text.substr(colon + 1)).value;
  if (!delay || *delay < 1 || *delay > kMaxDelay) return std::nullopt;
  return FarSkipConfig{*mode, {}, static_cast<int>(*delay)};
}

RunConfig read_run_config(const ConfigNode& tree, ErrorList& errors, const LoadOptions& options) {
  RunConfig config;
  Reader reader(tree, errors);
  if (tree.position.file) config.file = *tree.position.file;
  read_name(reader, config, std::filesystem::path(config.file).stem().string());
  config.seed = reader.integer("seed", at_least_zero, config.seed);
  config.device = reader.choice("device", device_names, config.device);
  config.precision = reader.choice("precision", precision_names, config.precision);
  config.deterministic = reader.boolean("deterministic", config.deterministic);
  read_model_source(reader, config, options);
  const bool distills = reader.has("distill");
  const FarSkipConfig farskip = read_farskip_section(reader.section("farskip"));
  if (reader.has("farskip") || config.init_from.empty() || distills) config.farskip = farskip;
  config.parallel = read_parallel(reader.section("parallel"));
  config.schedule = read_schedule(reader.section("schedule"));
  config.data = read_data(reader.section("data"), options.needs, !config.init_from.empty() || distills);
  config.train = read_train(reader.section("train"), distills, options.notices);
  config.distill = read_distill_section(reader, options.needs.distill);
  if (config.distill && config.distill->early_stopping && config.data.validation.empty())
    reader.fail("distill",
                "early_stopping evaluates held-out text, and data.validation names none; give one");
  config.checkpoint = read_checkpoint(reader.section("checkpoint"));
  const bool has_model = reader.has("model") || reader.has("init") || distills;
  if (options.needs.model && !has_model && tree.kind == ConfigNode::Kind::map)
    reader.fail("model", "this key is missing; give model (the architecture) or init: {from: DIR}");
  reader.finish();
  return config;
}

namespace {

/// "train.steps 5": a key, and in the next word its value.
bool is_key_without_equals(const std::string& word, const std::string& next) {
  constexpr const char* key_characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.";
  const auto has_equals = [](const std::string& text) { return text.find('=') != std::string::npos; };
  return !word.empty() && !has_equals(word) && !has_equals(next) &&
         word.find_first_not_of(key_characters) == std::string::npos && !word.ends_with(".yaml") &&
         !word.ends_with(".yml");
}

void apply_overrides(ConfigNode& tree, const std::vector<std::string>& overrides, ErrorList& errors) {
  const auto place = [](const std::string& words) {
    return Position{std::make_shared<const std::string>("command line: " + words.substr(0, 200)), 0, 0};
  };
  std::set<std::string> seen;
  for (std::size_t i = 0; i < overrides.size(); ++i) {
    const std::string& assignment = overrides[i];
    const std::string key = assignment.substr(0, assignment.find('='));
    if (i + 1 < overrides.size() && is_key_without_equals(assignment, overrides[i + 1])) {
      const std::string& value = overrides[++i];
      errors.add(place(key + " " + value), "", fmt::format("write {}={}", key, value.substr(0, 200)));
    } else if (!seen.insert(key).second) {
      errors.add(place(assignment), key, "set twice on the command line");
    } else {
      apply_override(tree, assignment, errors);
    }
  }
}

}  // namespace

RunConfig load_run_config(const std::filesystem::path& path, const std::vector<std::string>& overrides,
                          const LoadOptions& options) {
  ErrorList errors;
  ConfigNode tree = parse_yaml_file(path, errors);
  apply_overrides(tree, overrides, errors);
  RunConfig config = read_run_config(tree, errors, options);
  errors.throw_if_any();
  return config;
}

}  // namespace farskip
