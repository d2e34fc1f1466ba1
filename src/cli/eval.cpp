// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "cli/command_inputs.h"
#include "cli/job.h"
#include "cli/record.h"
#include "distill/distill_setup.h"
#include "engine/devices.h"
#include "hub/companions.h"
#include "infer/evaluate.h"
#include "infer/multiple_choice.h"
#include "run/trainer.h"

namespace farskip {
namespace {

struct Options {
  std::string model, data, teacher, tokenizer, farskip, layers;
  std::vector<std::string> tasks;
  DeviceOptions device;
  LayoutOptions layout;
  std::int64_t sequence_length = 256, batch = 8, max_sequences = 0;
};

/// A text that is shorter than one sequence would be filled up to it, and attention computed over all of
/// that.
std::int64_t cut_length(std::int64_t length, const TokenFile& tokens, const Logger& logger) {
  const auto targets = static_cast<std::int64_t>(tokens.num_tokens()) - 1;
  if (targets < 1 || length <= targets) return length;
  logger.warning("--sequence-length: cut from {} to {}: {} holds {} tokens", length, targets, tokens.prefix(),
                 tokens.num_tokens());
  return targets;
}

/// What ranks of a job must be asked alike.
JobRequest request_of(const Options& o) {
  JobRequest request =
      request_job("eval", {{"--model", make_node(o.model)},
                           {"--data", make_node(o.data)},
                           {"--teacher", make_node(o.teacher)},
                           {"--tasks", make_node(fmt::format("{}", fmt::join(o.tasks, " ")))},
                           {"--tokenizer", make_node(o.tokenizer)},
                           {"--farskip", make_node(o.farskip)},
                           {"--layers", make_node(o.layers)},
                           {"--sequence-length", make_node(o.sequence_length)},
                           {"--batch", make_node(o.batch)},
                           {"--max-sequences", make_node(o.max_sequences)}});
  set_alike(request.alike, o.layout, o.device);
  return request;
}

void check_finite(double value, const char* what, const Options& options) {
  if (!std::isfinite(value))
    throw DataError(fmt::format("{}: {} is {}; check the weights with farskip inspect --verify",
                                options.model, what, value));
}

Evaluation evaluate_text(const Options& options, InferenceEngine& engine, const Logger& logger) {
  const auto tokens = std::make_shared<const TokenFile>(options.data, engine.config().vocab_size);
  SamplerOptions sampling;
  sampling.sequence_length = cut_length(options.sequence_length, *tokens, logger);
  warn_beyond_context(engine.config(), "--sequence-length", sampling.sequence_length, logger);
  sampling.shuffle = false;
  sampling.whole_stream = true;
  std::vector<SamplerSource> sources;
  sources.push_back({tokens, 1.0});
  const Sampler sampler(std::move(sources), sampling);
  const Evaluation e = evaluate(engine, sampler, options.batch, options.max_sequences);
  check_finite(e.loss, "the loss", options);
  return e;
}

/// The choices of all items.
std::vector<Continuation> encode_task(const Task& task, const Companions& companions,
                                      const ModelConfig& model, const Job& job) {
  const auto prefix = find_prefix_token(companions);
  std::vector<Continuation> all;
  for (const TaskItem& item : task.items)
    for (Continuation& choice : encode_choices(item, *companions.tokenizer, prefix, model))
      all.push_back(std::move(choice));
  const auto cut = std::count_if(
      all.begin(), all.end(), [&](const Continuation& c) { return c.num_positions() > model.max_positions; });
  if (cut > 0 && job.world.rank() == 0)
    job.logger.warning(
        "{}: {} of {} choices are with their context longer than the model's max_position_embeddings, {}; "
        "these contexts lose their first tokens",
        task.name, cut, all.size(), model.max_positions);
  return all;
}

TaskScore evaluate_task(const Options& options, const Task& task, std::span<const Continuation> choices,
                        const Model& model, const std::shared_ptr<const States>& weights,
                        const Context& context) {
  const std::vector<double> found = log_likelihoods(model, weights, context, choices, options.batch);
  for (const double log_likelihood : found) check_finite(log_likelihood, "a log-likelihood", options);
  return score_task(task, found);
}

struct Results {
  std::optional<Evaluation> text;
  std::vector<TaskScore> tasks;  // in the order of --tasks
};

Record make_record(const Results& results, const std::vector<Task>& tasks) {
  Record record;
  if (const auto& e = results.text)
    record = {
        {"loss", e->loss}, {"perplexity", std::exp(e->loss)}, {"top1", e->accuracy}, {"tokens", e->tokens}};
  if (const auto& e = results.text; e && e->means.contains("kl"))
    for (const char* name : {"teacher_loss", "kl", "agreement"}) record[name] = e->means.at(name);
  const auto or_null = [](std::optional<double> x) { return x ? Record(*x) : Record(); };
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    const auto& [accuracy, normalized] = results.tasks[i];
    record["tasks"].push_back({{"name", tasks[i].name},
                               {"accuracy", accuracy.mean},
                               {"accuracy_stderr", or_null(accuracy.standard_error)},
                               {"accuracy_norm", normalized.mean},
                               {"accuracy_norm_stderr", or_null(normalized.standard_error)},
                               {"samples", tasks[i].items.size()}});
  }
  return record;
}

/// A share with its standard error, where that is known.
std::string percent(const Record& task, const std::string& share) {
  const std::string error = share + "_stderr";
  return text_of(task, "{" + share + "|%:.2f}%") +
         (task[error].is_null() ? "" : text_of(task, " ± {" + error + "|%:.2f}"));
}

void print_text(const Record& record) {
  if (record.contains("loss"))
    print_line(
        record,
        "loss {loss:.4f} nats/token, perplexity {perplexity:.2f}, top-1 {top1|%:.2f}%, {tokens} tokens");
  if (record.contains("kl"))
    print_line(record,
               "teacher's loss {teacher_loss:.4f}, KL {kl:.4f} nats/token, agreement {agreement|%:.2f}%");
  if (!record.contains("tasks")) return;
  for (const Record& task : record["tasks"])
    fmt::print("{}: accuracy {}, normalized by length {}, {} samples\n", text_of(task, "{name}"),
               percent(task, "accuracy"), percent(task, "accuracy_norm"), text_of(task, "{samples}"));
}

ExitCode run(const Options& options, const CommonOptions& common) {
  if (options.data.empty() && options.tasks.empty())
    throw UsageError("nothing to evaluate on; give --data PREFIX, --tasks FILE, or both");
  return run_job(common, request_of(options), [&](Job& job) {
    std::vector<Task> tasks;
    for (const std::string& path : options.tasks) tasks.push_back(read_task(path));
    const OpenedDevice device = open_device(options.device, job.world);
    const Context context =
        job.context(make_mesh(job.world, parallel_config(options.layout), *device.device), device.device);
    LoadedModel model = load_model(options.model, Role::constant, context, device.compute);
    if (const auto wiring = parse_wiring(options.farskip, options.layers, model.config.num_layers))
      model.config.farskip = *wiring;
    std::vector<std::vector<Continuation>> choices;  // all, before anything is computed: an item may be wrong
    if (!tasks.empty()) {
      const Companions companions = require_tokenizer(model, options.tokenizer);
      for (const Task& task : tasks) choices.push_back(encode_task(task, companions, model.config, job));
    }
    const Model wired = wire_model(model.config);
    Results results;
    if (!options.data.empty()) {
      const auto comparison = options.teacher.empty()
                                  ? nullptr
                                  : open_comparison(resolve_model_folder(options.teacher, job.logger),
                                                    model.config, device.compute, context);
      InferenceEngine engine(wired, model.states, context, comparison);
      results.text = evaluate_text(options, engine, job.logger);
    }
    for (std::size_t i = 0; i < tasks.size(); ++i)
      results.tasks.push_back(evaluate_task(options, tasks[i], choices[i], wired, model.states, context));
    if (job.world.rank() != 0) return ExitCode::ok;
    print_result(make_record(results, tasks), print_text, common);
    return ExitCode::ok;
  });
}

}  // namespace

void add_eval(Subcommand& root) {
  auto o = std::make_shared<Options>();
  Subcommand sub = root.add(
      "eval", "Measure held-out loss, perplexity and top-1 accuracy, or accuracy on multiple choice");
  sub.required_path("--model", o->model, "Model folder, checkpoint or run directory");
  sub.path("--data", o->data, "Token file prefix (PREFIX.bin, PREFIX.idx)");
  sub.path(
      "--teacher", o->teacher,
      "Model folder, checkpoint or run directory to compare with on --data: KL, share of equal top-1 tokens");
  sub.paths(
      "--tasks", o->tasks,
      "Multiple-choice tasks, JSONL of {\"context\", \"choices\", \"gold\"}; the likeliest choice wins");
  sub.path("--tokenizer", o->tokenizer, "tokenizer.json for --tasks (default: the model folder's)");
  sub.integer("--sequence-length", o->sequence_length, "Largest context of --data, in tokens", 1, 1 << 20);
  sub.integer("--batch", o->batch, "Sequences, or choices of tasks, at a time on each rank", 1, 1 << 16);
  sub.integer("--max-sequences", o->max_sequences, "Stop after this many sequences of --data (0: all)", 0);
  sub.text("--farskip", o->farskip,
           fmt::format("Wiring: {} (delay:N); default: the model's own", list_names(farskip_mode_names)));
  sub.text("--layers", o->layers, "Rewired layers: all, A-B or a list");
  add_layout_options(sub, o->layout);
  sub.needs("--tokenizer", "--tasks");
  sub.needs("--teacher", "--data");
  sub.needs("--sequence-length", "--data");
  sub.needs("--max-sequences", "--data");
  add_device_options(sub, o->device);
  sub.run_on_ranks([o](const CommonOptions& common) { return run(*o, common); });
}

}  // namespace farskip
