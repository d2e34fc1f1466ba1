#include "farskip/train/trainer.h"

#include <chrono>
#include <cmath>

#include "farskip/base/environment.h"
#include "farskip/base/version.h"
#include "farskip/passes/farskip.h"
#include "farskip/train/learning_rate.h"
#include "farskip/train/metrics.h"
#include "farskip/train/run_folder.h"
#include "farskip/train/training_checkpoint.h"

namespace farskip {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

TrainEngineOptions engine_options(const RunConfig& config) {
  TrainEngineOptions options;
  options.micro_batch = config.train.micro_batch;
  options.sequence_length = config.train.sequence_length;
  options.accumulate = config.train.global_batch > config.train.micro_batch;
  options.document_mask = config.data.document_mask;
  options.balance_loss = config.train.aux_loss > 0;
  options.optimizer = config.train.optimizer;
  return options;
}

namespace {

void log_memory(const MemoryReport& m, const Logger& logger) {
  constexpr double kMiB = 1 << 20;
  const auto mib = [](std::size_t bytes) { return static_cast<double>(bytes) / kMiB; };
  logger.info(
      "planned memory: weights {:.0f}, gradients {:.0f}, moments {:.0f}, activations and scratch {:.0f}, "
      "copy for saving {:.0f}, "
      "together {:.0f} MiB",
      mib(m.weights), mib(m.gradients), mib(m.moments), mib(m.arena), mib(m.snapshot), mib(m.total()));
}

class TrainingRun {
 public:
  TrainingRun(const RunConfig& config, const ModelConfig& model, const Logger& logger)
      : config_(config),
        model_(model),
        logger_(logger),
        folder_(config.run_dir),
        data_(open_run_data(config, model, logger)),
        specs_(list_parameters(model)),
        parameters_(whole_parameters(specs_)),
        weights_(make_parameter_tensors(specs_)),
        layers_(rewire_farskip(build_layer_graph(model), model.farskip)),
        engine_(model, layers_, weights_, engine_options(config), arena_, logger),
        inference_(model, layers_, weights_, arena_, logger),
        saver_(folder_.checkpoints(), config.checkpoint.keep, config.checkpoint.async, model, data_.tokenizer,
               logger, {}, world_),
        flops_per_token_(train_flops_per_token(model, config.train.sequence_length)) {}

  TrainResult run() {
    start();
    const StopSignals signals;
    MetricsFile metrics(folder_.path() / "metrics.jsonl", state_.step);
    Progress progress(config_.train.steps, state_.step, logger_);
    while (state_.step < config_.train.steps && !signals.requested()) {
      const StepMetrics m = step();
      metrics.append(m);
      progress.show(m);
      if (saver_.open() && saver_.written()) saver_.commit();
      if (config_.checkpoint.every > 0 && state_.step % config_.checkpoint.every == 0) save();
    }
    return finish();
  }

 private:
  TrainingTensors tensors() {
    return {parameters_, weights_, engine_.first_moments(), engine_.second_moments()};
  }

  void start() {
    const MachineInfo machine = machine_info();
    write_text_file(
        folder_.path() / "config.yaml",
        resolved_yaml(config_, version(), commit(),
                      fmt::format("{}, {} cores, {}", machine.processor, machine.cores, machine.system)));
    const ParameterCounts counts = count_parameters(model_);
    logger_.info("{}: {:.2f}M parameters, {:.2f}M active per token; {} layers, {} experts, top {}",
                 model_.family, static_cast<double>(counts.total) * 1e-6,
                 static_cast<double>(counts.active) * 1e-6, model_.num_layers, model_.moe.num_experts,
                 model_.moe.top_k);
    MemoryReport memory = engine_.memory();
    memory.snapshot = saver_.snapshot_bytes(tensors());
    log_memory(memory, logger_);
    state_.seed = static_cast<std::uint64_t>(config_.seed);
    if (config_.checkpoint.resume != Resume::never)
      if (const auto resumed =
              resume_training(folder_.checkpoints(), model_, state_.seed, tensors(), world_, logger_)) {
        state_ = *resumed;
        saved_step_ = state_.step;
        logger_.info("resumed at step {}", state_.step);
        return;
      }
    if (config_.checkpoint.resume == Resume::required)
      throw MissingInputError(fmt::format("{}: no checkpoint to resume from (checkpoint.resume: required)",
                                          folder_.checkpoints().string()));
    if (config_.init_from.empty())
      initialise_weights(weights_, parameters_, state_.seed, model_.initializer_range);
    else
      load_weights(weights_, parameters_, specs_, SafetensorsFolder(config_.init_from));
  }

  StepMetrics step() {
    const Clock::time_point started = Clock::now();
    const TrainConfig& t = config_.train;
    const std::int64_t parts = t.global_batch / t.micro_batch;
    std::vector<Batch> batches;
    std::int64_t counted = 0;
    for (std::int64_t part = 0; part < parts; ++part) {
      batches.push_back(read_batch(
          *data_.train, static_cast<std::uint64_t>(state_.samples + part * t.micro_batch), t.micro_batch));
      counted += count_targets(batches.back());
    }
    StepMetrics m;
    double loss_sum = 0, balance = 0, load = 0;
    for (std::int64_t part = 0; part < parts; ++part) {
      const BatchLoss loss = engine_.micro_batch(
          batches[static_cast<std::size_t>(part)],
          1.0F / static_cast<float>(std::max<std::int64_t>(counted, 1)),
          static_cast<float>(t.aux_loss / static_cast<double>(t.global_batch)), part == 0);
      loss_sum += loss.loss_sum;
      balance += loss.balance_loss;
      load = std::max(load, loss.load_max_over_mean);
    }
    m.learning_rate = learning_rate_at(t.learning_rate, state_.step, t.steps);
    m.loss = loss_sum / static_cast<double>(std::max<std::int64_t>(counted, 1));
    m.grad_norm = engine_.update(m.learning_rate, state_.step + 1);
    check_finite(m);
    state_.step += 1;
    state_.samples += t.global_batch;
    const std::int64_t tokens = t.global_batch * t.sequence_length;
    state_.tokens += tokens;
    m.step = state_.step;
    m.tokens = state_.tokens;
    m.step_seconds = seconds_since(started);
    m.tokens_per_second = static_cast<double>(tokens) / m.step_seconds;
    m.model_tflops = flops_per_token_ * m.tokens_per_second * 1e-12;
    m.peak_memory_bytes = peak_resident_bytes();
    if (load > 0) m.load_max_over_mean = load;
    if (t.aux_loss > 0) m.aux_loss = balance / static_cast<double>(t.global_batch);
    if (!data_.validation.empty() && t.validate_every > 0 &&
        (m.step % t.validate_every == 0 || m.step == t.steps))
      m.validation_loss = validation_loss_ = validate();
    last_loss_ = m.loss;
    return m;
  }

  // Going on would only spread it. With a norm that is not finite the update changed nothing.
  void check_finite(const StepMetrics& m) const {
    if (std::isfinite(m.loss) && std::isfinite(m.grad_norm)) return;
    throw Error(
        ExitCode::bad_data,
        fmt::format(
            "step {}: loss {} and gradient norm {} are not both finite (samples {} to {}); parameters "
            "are unchanged; lower train.learning_rate.peak or look at these samples",
            state_.step + 1, m.loss, m.grad_norm, state_.samples,
            state_.samples + config_.train.global_batch - 1));
  }

  // Mean over the tokens of all validation sources, each read once.
  double validate() {
    double loss_sum = 0, tokens = 0;
    for (const auto& source : data_.validation) {
      const Evaluation e = evaluate(inference_, *source, config_.train.micro_batch, 0);
      loss_sum += e.loss * static_cast<double>(e.tokens);
      tokens += static_cast<double>(e.tokens);
    }
    return loss_sum / tokens;
  }

  void save() {
    if (saved_step_ == state_.step) return;
    saver_.save(state_, tensors());
    saved_step_ = state_.step;
  }

  TrainResult finish() {
    save();
    saver_.wait();
    const bool early = state_.step < config_.train.steps;
    folder_.write_exit(early ? "stopped on request" : "done", state_.step, early);
    return {state_.step, last_loss_, validation_loss_, early};
  }

  const RunConfig& config_;
  const ModelConfig& model_;
  Logger logger_;
  RunFolder folder_;
  RunData data_;
  Communicator world_ = make_self_communicator();
  std::vector<ParameterSpec> specs_;
  std::vector<LocalParameter> parameters_;
  TensorMap weights_;
  LayerGraph layers_;
  Arena arena_;
  TrainEngine engine_;
  InferenceEngine inference_;
  CheckpointSaver saver_;
  double flops_per_token_;
  TrainingState state_;
  std::int64_t saved_step_ = -1;
  double last_loss_ = 0;
  std::optional<double> validation_loss_;
};

}  // namespace

void refuse_unsupported(const RunConfig& config) {
  std::vector<std::string> problems;
  const auto refuse = [&](bool asked, const char* key, const char* why) {
    if (asked) problems.push_back(fmt::format("{}: {}", key, why));
  };
  refuse(config.device == DeviceChoice::cuda, "device", "this build has no CUDA backend; use cpu or auto");
  refuse(config.precision == Precision::bf16, "precision", "the CPU computes in fp32; use fp32");
  refuse(config.distill.has_value(), "distill", "this build trains on data only; remove the section");
  refuse(config.parallel.expert > 1, "parallel.expert", "this build runs on one rank; use 1");
  refuse(config.parallel.zero > 0, "parallel.zero", "this build runs on one rank; use 0");
  refuse(config.schedule.micro_batches_in_flight > 1, "schedule.micro_batches_in_flight", "use 1");
  refuse(config.schedule.recompute != Recompute::none, "schedule.recompute", "use none");
  refuse(config.train.router_bias_update > 0, "train.router_bias_update",
         "this family's router has no selection bias; use 0");
  if (problems.empty()) return;
  throw UsageError(fmt::format("not supported by this build:\n  {}", fmt::join(problems, "\n  ")));
}

TrainResult train(const RunConfig& config, const ModelConfig& model, const Logger& logger) {
  refuse_unsupported(config);
  return TrainingRun(config, model, logger).run();
}

}  // namespace farskip
