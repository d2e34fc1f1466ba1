// SPDX-License-Identifier: Apache-2.0
#include "farskip/config/run_config.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "config/distill_section.h"
#include "config/farskip_section.h"

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

void name_fields(Fields& f, RunConfig& c) {
  f.text("name", c.name);
  f.path("run_dir", c.run_dir);
  Reader* const reader = f.reader();
  if (!reader) return;
  const std::string stem = std::filesystem::path(c.file).stem().string();
  const bool is_named = !c.name.empty();
  c.named_by_file = !reader->has("name") && !reader->has("run_dir") && !c.file.empty();
  if (!is_named) c.name = stem.empty() || (!c.run_dir.empty() && !is_file_name(stem)) ? "run" : stem;
  if (reader->sound("name") && !is_file_name(c.name))
    reader->fail("name",
                 fmt::format("{}{} cannot name a folder; allowed: letters, digits, _ - and ., not beginning "
                             "with .",
                             quote_for_message(c.name),
                             is_named ? "" : ", the name of this file without its ending,"));
  if (c.run_dir.empty()) c.run_dir = "runs/" + c.name;
}

void init_fields(Fields& f, std::string& from) {
  f.path("from", from);
  if (Reader* const reader = f.reader();
      reader && reader->is_present() && from.empty() && reader->sound("from"))
    reader->fail("from", "this key is missing; allowed: the folder of a model or checkpoint");
}

void read_model(Reader& reader, ConfigNode& section, const LoadOptions& options) {
  if (const ConfigNode* model = reader.take("model", "map (see the model families)")) {
    if (model->kind != ConfigNode::Kind::map)
      reader.fail("model",
                  fmt::format("{} stands here; allowed: a map of key: value lines", describe_kind(*model)));
    else if (options.check_model)
      options.check_model(*model, reader.errors());
    section = *model;
  }
  if (reader.has("model") && reader.has("init"))
    reader.fail("model",
                "given beside init.from, whose own config gives the model; allowed: only one of the two");
}

void parallel_fields(Fields& f, ParallelConfig& c) {
  f.integer("expert", c.expert, {.min = 1, .max = 1'000'000});
  f.integer("tensor", c.tensor, {.min = 1, .max = 1'000'000});
  f.integer("zero", c.zero, {.min = 0, .max = 3});
  f.integer("timeout", c.timeout, {.min = 0, .max = 1'000'000});
  f.choice("gpu_transport", c.gpu_transport, gpu_transport_names);
}

void schedule_fields(Fields& f, ScheduleConfig& c) {
  Reader* const reader = f.reader();
  f.boolean("overlap", c.overlap);
  f.integer("micro_batches_in_flight", c.micro_batches_in_flight, {.min = 1, .max = 64});
  f.integer_or("auto", "expert_chunks", c.expert_chunks, {.min = 1, .max = c.kMostExpertChunks});
  f.choice("recompute", c.recompute, recompute_names);
  f.memory("routed_rows_memory", c.routed_rows_memory, "auto");
  if (reader && c.routed_rows_memory == std::uint64_t{0})
    reader->fail("routed_rows_memory", "0 bytes hold no rows; allowed: auto, or a size above 0");
  f.memory("memory", c.memory);
  if (reader && reader->sound("recompute") && reader->sound("memory") &&
      (c.recompute == Recompute::automatic) != c.memory.has_value())
    reader->fail(c.memory ? "memory" : "recompute",
                 c.memory ? "given without recompute: auto, which alone reads it; allowed: both or none"
                          : "auto needs schedule.memory, the bytes that a rank may take, such as 76GiB");
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
void check_data(Reader& reader, DataConfig& config, bool needs_data, bool own_tokenizer) {
  const bool sound = reader.sound("tokens") && reader.sound("text");
  if (!config.tokens.empty() && !config.text.empty())
    reader.fail("text", "given beside data.tokens; allowed: only one of the two");
  else if (sound && config.tokens.empty() && config.text.empty() && needs_data)
    reader.fail("tokens",
                "no data is named; give tokens (prefixes of .bin/.idx files) or text (files or folders)");
  if (!config.text.empty() && config.tokenizer.empty() && reader.sound("tokenizer") && !own_tokenizer)
    reader.fail("tokenizer", "this key is missing; data.text needs a tokenizer.json");
  check_weights(reader, config);
}

void data_fields(Fields& f, DataConfig& c, bool needs_data, bool own_tokenizer) {
  f.paths("tokens", c.tokens);
  f.paths("text", c.text);
  f.path("tokenizer", c.tokenizer);
  f.paths("validation", c.validation);
  f.reals("weights", c.weights, not_negative);
  f.boolean("document_mask", c.document_mask);
  f.boolean("shuffle", c.shuffle);
  f.integer("prompt_end", c.prompt_end, at_least_zero);
  f.integer("padding", c.padding, at_least_zero);
  if (Reader* const reader = f.reader()) check_data(*reader, c, needs_data, own_tokenizer);
}

void optimizer_fields(Fields& f, OptimizerConfig& c) {
  f.choice("name", c.name, optimizer_names);
  f.choice("moments", c.moments, precision_names);
  f.real("momentum", c.momentum, below_one);
  std::vector<double> betas{c.beta1, c.beta2};
  f.reals("betas", betas, below_one, {.min = 2, .max = 2});
  c.beta1 = betas[0];
  c.beta2 = betas[1];
  f.real("eps", c.eps, {.min = 1e-30, .max = 1});
  f.real("weight_decay", c.weight_decay, {.min = 0, .max = 1000});
  f.real("clip_grad_norm", c.clip_grad_norm, not_negative);
}

/// What a section for training asks the one above it.
struct StepsOfRun {
  std::int64_t steps = 0;
  bool sound = true, overridden = false;
  std::vector<std::string>* notices = nullptr;
};

/// Fits a number of steps into `room`. A run that an override of train.steps makes shorter than its file says
/// keeps working: the number is cut. Within one file it is a contradiction.
void fit_steps(Reader& reader, std::string_view key, std::int64_t& value, std::int64_t room,
               const StepsOfRun& run) {
  if (value <= room) return;
  if (run.overridden && !reader.is_override(key)) {
    if (run.notices != nullptr)
      run.notices->push_back(fmt::format("{}: cut from {} to {} to fit train.steps of the command line",
                                         reader.path_of(key), value, room));
    value = room;
  } else {
    reader.fail(key, fmt::format("{} does not fit into train.steps; allowed: at most {}", value, room));
  }
}

void check_learning_rate(Reader& reader, LearningRateConfig& config, std::optional<std::int64_t> decay_steps,
                         const StepsOfRun& run) {
  if (config.schedule != LearningRateSchedule::constant && reader.sound("peak") && reader.sound("final") &&
      config.final_rate > config.peak)
    reader.fail("final", fmt::format("{} is above the peak {}; allowed: at most the peak", config.final_rate,
                                     config.peak));
  if (run.sound && reader.sound("warmup_steps"))
    fit_steps(reader, "warmup_steps", config.warmup_steps, run.steps, run);
  const std::int64_t room = std::max<std::int64_t>(0, run.steps - config.warmup_steps);
  config.decay_steps = decay_steps.value_or(std::min(run.steps / 5, room));
  if (config.schedule == LearningRateSchedule::wsd && run.sound && reader.sound("decay_steps") &&
      reader.sound("warmup_steps"))
    fit_steps(reader, "decay_steps", config.decay_steps, room, run);
}

void learning_rate_fields(Fields& f, LearningRateConfig& c, const StepsOfRun& run) {
  f.choice("schedule", c.schedule, learning_rate_schedule_names);
  f.real("peak", c.peak, {.min = 0, .max = 100, .above_min = true});
  f.real("final", c.final_rate, {.min = 0, .max = 100});
  f.integer("warmup_steps", c.warmup_steps, at_least_zero);
  std::optional<std::int64_t> decay_steps = c.decay_steps;
  f.integer("decay_steps", decay_steps, at_least_zero);
  if (Reader* const reader = f.reader()) check_learning_rate(*reader, c, decay_steps, run);
}

void train_fields(Fields& f, TrainConfig& c, std::vector<std::string>* notices) {
  Reader* const reader = f.reader();
  f.integer("steps", c.steps, step_count);
  f.integer("sequence_length", c.sequence_length, {.min = 1, .max = 1 << 24});
  f.integer("global_batch", c.global_batch, {.min = 1, .max = 1 << 24});
  f.integer("micro_batch", c.micro_batch, {.min = 1, .max = 1 << 16});
  f.section("optimizer", c.optimizer, optimizer_fields);
  StepsOfRun run{.steps = c.steps, .notices = notices};
  if (reader) run.sound = reader->sound("steps"), run.overridden = reader->is_override("steps");
  f.section("learning_rate", [&](Fields& g) { learning_rate_fields(g, c.learning_rate, run); });
  f.real("aux_loss", c.aux_loss, coefficient);
  f.real("router_bias_update", c.router_bias_update, coefficient);
  f.real("average_decay", c.average_decay, below_one);
  f.integer("validate_every", c.validate_every, at_least_zero);
  if (reader && reader->sound("global_batch") && reader->sound("micro_batch") &&
      c.global_batch % c.micro_batch != 0)
    reader->fail("global_batch",
                 fmt::format("{} is not a multiple of train.micro_batch = {}; allowed: a multiple of "
                             "micro_batch x world size",
                             c.global_batch, c.micro_batch));
}

void checkpoint_fields(Fields& f, CheckpointConfig& c) {
  f.integer("every", c.every, at_least_zero);
  f.integer("keep", c.keep, at_least_one);
  f.choice("resume", c.resume, resume_names);
  f.boolean("async", c.async);
}

/// The sections that may be absent: what that means for the others is said where they are read.
void model_fields(Fields& f, RunConfig& c, const LoadOptions& options) {
  if (!f.writes() || !c.init_from.empty()) f.section("init", c.init_from, init_fields);
  if (Reader* const reader = f.reader())
    read_model(*reader, c.model, options);
  else if (c.model.kind != ConfigNode::Kind::null)
    f.node("model", c.model);
}

void wiring_fields(Fields& f, RunConfig& c) {
  if (f.writes() && !c.farskip) return;
  FarSkipConfig wiring = c.farskip.value_or(FarSkipConfig{});
  f.section("farskip", wiring, farskip_fields);
  // A model that is started from brings its own.
  const Reader* const reader = f.reader();
  if (!reader || reader->has("farskip") || reader->has("distill") || c.init_from.empty()) c.farskip = wiring;
}

void run_fields(Fields& f, RunConfig& c, const LoadOptions& options) {
  Reader* const reader = f.reader();
  name_fields(f, c);
  f.integer("seed", c.seed, at_least_zero);
  f.choice("device", c.device, device_names);
  f.choice("precision", c.precision, precision_names);
  f.boolean("deterministic", c.deterministic);
  model_fields(f, c, options);
  wiring_fields(f, c);
  f.section("parallel", c.parallel, parallel_fields);
  f.section("schedule", c.schedule, schedule_fields);
  const bool distills = reader ? reader->has("distill") : c.distill.has_value();
  if (reader && distills)
    c.train.aux_loss = 0;  // the teacher's routing is the model, unless the file says otherwise
  f.section("data",
            [&](Fields& g) { data_fields(g, c.data, options.needs.data, !c.init_from.empty() || distills); });
  f.section("train", [&](Fields& g) { train_fields(g, c.train, options.notices); });
  if (reader || distills) {
    DistillConfig distill = c.distill.value_or(DistillConfig{});
    f.section("distill", [&](Fields& g) { distill_fields(g, distill, options.needs.distill); });
    if (distills) c.distill = std::move(distill);
  }
  if (reader && c.distill && c.distill->early_stopping && c.data.validation.empty())
    reader->fail("distill",
                 "early_stopping evaluates held-out text, and data.validation names none; give one");
  f.section("checkpoint", c.checkpoint, checkpoint_fields);
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
  Fields fields(reader);
  run_fields(fields, config, options);
  const bool has_model = reader.has("model") || reader.has("init") || reader.has("distill");
  if (options.needs.model && !has_model && tree.kind == ConfigNode::Kind::map)
    reader.fail("model", "this key is missing; give model (the architecture) or init: {from: DIR}");
  reader.finish();
  return config;
}

ConfigNode run_config_tree(const RunConfig& config) {
  ConfigNode tree;
  Fields fields(tree);
  RunConfig written = config;  // writing changes nothing; members are references for reading
  run_fields(fields, written, {});
  return tree;
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
