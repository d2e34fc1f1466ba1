// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <nlohmann/json.hpp>

#include "farskip/cli/command.h"
#include "farskip/cli/command_inputs.h"
#include "farskip/cli/job.h"
#include "farskip/engine/devices.h"
#include "farskip/infer/evaluate.h"
#include "farskip/run/trainer.h"

namespace farskip {
namespace {

struct Options {
  std::string model, data, farskip, layers;
  DeviceOptions device;
  std::int64_t sequence_length = 256, batch = 8, max_sequences = 0, expert = 1;
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
  JobRequest request;
  const auto set = [&](const char* name, const ConfigNode& value) { request.alike.set(name, value); };
  set("command", make_node("eval"));
  set("--model", make_node(o.model));
  set("--data", make_node(o.data));
  set("--farskip", make_node(o.farskip));
  set("--layers", make_node(o.layers));
  set("--device", make_node(o.device.device));
  set("--precision", make_node(o.device.precision));
  set("--sequence-length", make_node(o.sequence_length));
  set("--batch", make_node(o.batch));
  set("--max-sequences", make_node(o.max_sequences));
  set("--expert", make_node(o.expert));
  return request;
}

Evaluation evaluate_on(const Options& options, const Job& job) {
  const OpenedDevice device = open_device(options.device, job.world);
  ParallelConfig parallel;
  parallel.expert = static_cast<int>(options.expert);
  const Context context = job.context(make_mesh(job.world, parallel, *device.device), device.device);
  LoadedModel model = load_model(options.model, Role::constant, context, device.compute);
  if (const auto wiring = parse_wiring(options.farskip, options.layers, model.config.num_layers))
    model.config.farskip = *wiring;
  const auto tokens = std::make_shared<const TokenFile>(options.data, model.config.vocab_size);
  SamplerOptions sampling;
  sampling.sequence_length = cut_length(options.sequence_length, *tokens, job.logger);
  warn_beyond_context(model.config, "--sequence-length", sampling.sequence_length, job.logger);
  sampling.shuffle = false;
  sampling.whole_stream = true;
  std::vector<SamplerSource> sources;
  sources.push_back({tokens, 1.0});
  const Sampler sampler(std::move(sources), sampling);
  InferenceEngine engine(wire_model(model.config), model.states, context);
  return evaluate(engine, sampler, options.batch, options.max_sequences);
}

ExitCode run(const Options& options, const CommonOptions& common) {
  return run_job(common, request_of(options), [&](Job& job) {
    const Evaluation e = evaluate_on(options, job);
    if (!std::isfinite(e.loss))
      throw DataError(fmt::format("{}: the loss is {}; check the weights with farskip inspect --verify",
                                  options.model, e.loss));
    if (job.world.rank() != 0) return ExitCode::ok;
    if (common.json)
      print_json(
          {{"loss", e.loss}, {"perplexity", std::exp(e.loss)}, {"top1", e.accuracy}, {"tokens", e.tokens}});
    else
      fmt::print("loss {:.4f} nats/token, perplexity {:.2f}, top-1 {:.2f}%, {} tokens\n", e.loss,
                 std::exp(e.loss), 100.0 * e.accuracy, e.tokens);
    return ExitCode::ok;
  });
}

}  // namespace

void add_eval(Subcommand& root) {
  auto o = std::make_shared<Options>();
  Subcommand sub = root.add("eval", "Measure held-out loss, perplexity and top-1 accuracy");
  sub.required_path("--model", o->model, "Model folder, checkpoint or run directory");
  sub.required_path("--data", o->data, "Token file prefix (PREFIX.bin, PREFIX.idx)");
  sub.integer("--sequence-length", o->sequence_length, "Largest context, in tokens", 1, 1 << 20);
  sub.integer("--batch", o->batch, "Sequences at a time on each rank", 1, 1 << 16);
  sub.integer("--max-sequences", o->max_sequences, "Stop after this many sequences (0: all)", 0);
  sub.text("--farskip", o->farskip,
           fmt::format("Wiring: {} (delay:N); default: the model's own", list_names(farskip_mode_names)));
  sub.text("--layers", o->layers, "Rewired layers: all, A-B or a list");
  sub.integer("--expert", o->expert, "Ranks that the experts of a layer are dealt out to, as parallel.expert",
              1, 1 << 16);
  add_device_options(sub, o->device);
  sub.run_on_ranks([o](const CommonOptions& common) { return run(*o, common); });
}

}  // namespace farskip
