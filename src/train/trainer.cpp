#include "farskip/train/trainer.h"

#include <array>
#include <chrono>
#include <cmath>
#include <functional>
#include <optional>

#include "farskip/base/environment.h"
#include "farskip/base/stop_signals.h"
#include "farskip/comm/agreement.h"
#include "farskip/config/scalar.h"
#include "farskip/passes/farskip.h"
#include "farskip/train/devices.h"
#include "farskip/train/distillation.h"
#include "farskip/train/learning_rate.h"
#include "farskip/train/measure.h"
#include "farskip/train/metrics.h"
#include "farskip/train/plan_report.h"
#include "farskip/train/run_config_file.h"
#include "farskip/train/run_folder.h"
#include "farskip/train/training_checkpoint.h"

namespace farskip {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void log_memory(const MemoryReport& m, const Logger& logger) {
  constexpr double kMiB = 1 << 20;
  const auto mib = [](std::size_t bytes) { return static_cast<double>(bytes) / kMiB; };
  logger.info(
      "planned memory: weights {:.0f}, gradients {:.0f}, moments {:.0f}, activations and scratch {:.0f}, "
      "copy for saving {:.0f}, "
      "together {:.0f} MiB",
      mib(m.weights), mib(m.gradients), mib(m.moments), mib(m.arena), mib(m.snapshot), mib(m.total()));
}

/// Libraries crash where they find no memory for the kernels that they make at the first step.
void check_free_memory(const MemoryReport& memory) {
  constexpr std::uint64_t kLibraries = std::uint64_t{64} << 20;
  const std::uint64_t needed = memory.snapshot + kLibraries;
  const auto left = free_address_space();
  if (left && *left < needed)
    throw IoError(fmt::format(
        "the limit of memory (ulimit -v) leaves {} MiB for the first steps and saves, which need {}; "
        "raise it by at least {} MiB",
        *left >> 20, needed >> 20, ((needed - *left) >> 20) + 1));
}

void log_routed_rows(const RoutedRowsPlan& rows, const Logger& logger) {
  if (rows.max_rows == 0) return;
  std::string text = fmt::format(
      "routed rows: room for {} from one rank to one other ({:.2f} times an even share), {:.0f} MiB over all "
      "layers",
      rows.max_rows, static_cast<double>(rows.max_rows) / static_cast<double>(rows.even_rows),
      static_cast<double>(std::max(rows.bytes, rows.fallback_bytes)) / (1 << 20));
  if (rows.fallback_batch > 0)
    text += fmt::format("; a step with more is repeated {} sequences at a time", rows.fallback_batch);
  logger.info("{}", text);
}

/// Rank 0 first, then the others at once: what it leaves on disk they find there.
template <class F>
auto rank_zero_first(const Communicator& world, const F& f) {
  std::optional<decltype(f())> result;
  const std::function<void()> own = [&] { result.emplace(f()); };
  work_together(world, "files that rank 0 prepares", world.rank() == 0 ? own : nullptr);
  if (!result) own();
  return std::move(*result);
}

class TrainingRun {
 public:
  TrainingRun(const RunConfig& config, const ModelConfig& model, const Communicator& world,
              Heartbeat& heartbeat, const Logger& logger, std::shared_ptr<Device> device,
              const RunFolder* folder)
      : config_(config),
        model_(model),
        heartbeat_(heartbeat),
        starting_(std::in_place, heartbeat),
        logger_(logger),
        arena_(std::move(device)),
        mesh_(make_mesh(world, config.parallel, arena_.device())),
        specs_(list_parameters(model)),
        parameters_(local_parameters(specs_, mesh_.position(), engine_options(config, world.size()).zero)),
        folder_(folder),
        data_(rank_zero_first(world, [&] { return open_run_data(config, model, logger); })),
        layers_(rewire_farskip(build_layer_graph(model), model.farskip)),
        weights_(make_parameter_tensors(specs_of(parameters_))),
        distill_(config.distill
                     ? std::make_unique<Distillation>(config, model, parameters_, weights_,
                                                      arena_.shared_device(), mesh_, heartbeat, logger)
                     : nullptr),
        options_(with_costs(with_objective(engine_options(config, world.size())))),
        engine_(model, layers_, weights_, options_, arena_, logger, mesh_, &heartbeat),
        inference_(model, layers_, engine_.weights(), arena_, logger, mesh_, &heartbeat,
                   distill_ ? distill_->validation_objective() : nullptr),
        saver_(fs::path(config.run_dir) / "checkpoints", config.checkpoint.keep, config.checkpoint.async,
               model, data_.tokenizer, logger, mesh_.position(), world),
        flops_per_token_(train_flops_per_token(model, config.train.sequence_length)) {}

  TrainResult run(const StopSignals& signals) {
    start();
    std::optional<MetricsFile> metrics;
    std::optional<Progress> progress;
    if (is_first()) {
      metrics.emplace(folder_->path() / "metrics.jsonl", state_.step);
      progress.emplace(config_.train.steps, state_.step, logger_);
    }
    starting_.reset();
    signals.allow_leaving(false);
    while (state_.step < config_.train.steps && !stop_requested_ && !converged()) {
      const StepMetrics m = step(signals);
      if (metrics) metrics->append(m);
      if (progress) progress->show(m);
      if (all_written_) saver_.commit();
      if (config_.checkpoint.every > 0 && state_.step % config_.checkpoint.every == 0) save();
    }
    return finish();
  }

 private:
  TrainEngineOptions with_costs(TrainEngineOptions options) const {
    // Chosen once a run: bits depend on it, and not on what later starts measure.
    const fs::path kept = fs::path(config_.run_dir) / "expert_chunks.txt";
    const TrainEngineOptions configured = options;  // what is measured, at every start
    if (options.expert_chunks == 0) options.expert_chunks = read_chunks(kept);
    const bool chooses = options.expert_chunks == 0 && can_chunk(model_, options, mesh_.position());
    if (options.overlap && world().size() > 1)
      plan_by(kept_step_costs(fs::path(config_.run_dir) / "costs.txt", cost_key(), model_, layers_,
                              configured, mesh_, arena_.shared_device(), &heartbeat_, logger_),
              model_, mesh_, &heartbeat_, logger_, options);
    if (chooses && options.expert_chunks > 0 && is_first())
      write_text_file(kept, fmt::format("{}\n", options.expert_chunks));
    return options;
  }

  /// The number that was chosen before; 0: none.
  int read_chunks(const fs::path& kept) const {
    const std::string text = read_on_first_rank(world(), kept);
    const std::int64_t number = parse_integer(text.substr(0, text.find('\n'))).value.value_or(0);
    return number >= 1 && number <= ScheduleConfig::kMostExpertChunks ? static_cast<int>(number) : 0;
  }

  /// Of which shapes these costs are, beside what kept_step_costs knows.
  std::string cost_key() const {
    return config_.distill ? to_yaml(*run_config_tree(config_).find("distill")) : "";
  }

  TrainEngineOptions with_objective(TrainEngineOptions options) const {
    if (!distill_) return options;
    options.objective = distill_->objective();
    options.frozen = distill_->frozen();
    return options;
  }

  /// Early stopping has ended the run, in this process or before.
  bool converged() const {
    return distill_ && distill_->early_stopping() && distill_->early_stopping()->over(state_.numbers);
  }

  bool is_first() const { return world().rank() == 0; }
  const Communicator& world() const { return mesh_.world(); }
  TrainingTensors tensors() {
    return {parameters_, weights_, engine_.first_moments(), engine_.second_moments()};
  }

  void start() {
    const ParameterCounts counts = count_parameters(model_);
    logger_.info("{}: {:.2f}M parameters, {:.2f}M active per token; {} layers, {} experts, top {}",
                 model_.family, static_cast<double>(counts.total) * 1e-6,
                 static_cast<double>(counts.active) * 1e-6, model_.num_layers, model_.moe.num_experts,
                 model_.moe.top_k);
    if (world().size() > 1)
      logger_.info("{} ranks: experts over {}, data over {}, {} micro-batches a step on each", world().size(),
                   mesh_.expert().size(), mesh_.data().size(), options_.micro_batches);
    logger_.info("device {}, computing in {}", arena_.device().name(), dtype_name(options_.compute));
    // Evaluation takes its share of the arena now: later the arena would move, which peers have open.
    for (const auto& source : data_.validation)
      inference_.prepare_loss(validation_batch(), source->options().sequence_length,
                              source->options().document_mask);
    MemoryReport memory = engine_.memory();
    memory.snapshot = saver_.snapshot_bytes(tensors());
    log_memory(memory, logger_);
    check_free_memory(memory);
    log_routed_rows(engine_.routed_rows(), logger_);
    state_.seed = static_cast<std::uint64_t>(config_.seed);
    if (!resume()) load_or_initialise();
    if (is_first()) {  // a start that nothing refused
      write_run_config(config_, model_, world().size());
      folder_->forget_exit();
    }
    note_order();
    if (distill_) {
      distill_->check_shared(weights_);
      if (is_first() && fs::exists(best_folder()))
        set_aside_newer_checkpoints(best_folder(), state_.step, logger_);
      note_start();
    }
  }

  // Data may be changed on purpose, but not unnoticed.
  void note_order() {
    const std::string order = data_.train->order_text();
    if (!state_.order.empty() && state_.order != order)
      logger_.warning(
          "the checkpoint's samples were {}; the configuration's are {}: from step {} on samples may come "
          "again or be left out",
          state_.order, order, state_.step + 1);
    state_.order = order;
  }

  // What conversion costs, before any training makes up for it.
  void note_start() {
    if (data_.validation.empty() || state_.step > 0) return;
    const Evaluation e = validate(inference_);
    KeptTeacher* const kept = distill_->kept_teacher();
    distill_->note_start(e.loss, kept != nullptr ? validate(kept->engine()).loss : e.means.at("teacher_loss"),
                         state_.numbers);
  }

  bool resume() {
    const fs::path checkpoints = fs::path(config_.run_dir) / "checkpoints";
    if (config_.checkpoint.resume != Resume::never)
      if (const auto resumed =
              resume_training(checkpoints, model_, state_.seed, tensors(), world(), logger_)) {
        engine_.upload_weights();
        engine_.upload_moments();
        state_ = *resumed;
        saved_step_ = state_.step;
        logger_.info("resumed at step {}", state_.step);
        if (state_.step >= config_.train.steps || converged()) {
          if (is_first()) refuse_other_work(config_, model_);
          logger_.info("train.steps is {}: nothing is left to do", config_.train.steps);
        }
        return true;
      }
    if (config_.checkpoint.resume == Resume::required)
      throw MissingInputError(fmt::format("{}: no checkpoint to resume from (checkpoint.resume: required)",
                                          checkpoints.string()));
    if (config_.checkpoint.resume == Resume::never) set_aside_all_checkpoints(checkpoints, world(), logger_);
    return false;
  }

  void load_or_initialise() {
    if (!distill_) {  // whose weights are there: what the teacher shares depends on them
      if (config_.init_from.empty()) {
        initialise_weights(weights_, parameters_, state_.seed, model_.initializer_range);
      } else {
        verify_if_checkpoint(config_.init_from, world());
        load_weights(weights_, parameters_, specs_, SafetensorsFolder(config_.init_from));
      }
    }
    engine_.upload_weights();
  }

  /// This rank's micro-batches of the step: in each, `micro_batch` consecutive samples a rank.
  std::vector<Batch> read_batches() const {
    const std::int64_t count = config_.train.micro_batch;
    std::vector<Batch> batches;
    for (std::int64_t part = 0; part < options_.micro_batches; ++part) {
      const std::int64_t first = state_.samples + (part * world().size() + world().rank()) * count;
      batches.push_back(read_batch(*data_.train, static_cast<std::uint64_t>(first), count));
    }
    return batches;
  }

  StepMetrics step(const StopSignals& signals) {
    const Clock::time_point started = Clock::now();
    const double exposed_before = engine_.exposed_seconds(), transport_before = engine_.transport_seconds();
    const std::int64_t repeated_before = engine_.num_repeated();
    heartbeat_.begin_step(state_.step + 1);
    const TrainConfig& t = config_.train;
    std::vector<Batch> batches = read_batches();
    if (distill_) {
      engine_.rewire(distill_->layers_at(state_.step));
      if (KeptTeacher* const kept = distill_->kept_teacher()) kept->complete(batches);
    }
    double counted = 0;
    for (const Batch& batch : batches) counted += static_cast<double>(count_targets(batch));
    {
      const HeartbeatWait wait(&heartbeat_, "number of tokens of a step");
      world().all_reduce(std::span(&counted, 1));
    }
    counted = std::max(counted, 1.0);
    // What all ranks must know at the end of a step travels with its sums.
    std::array<double, 2> flags{signals.requested() ? 1.0 : 0.0,
                                saver_.open() && saver_.written() ? 1.0 : 0.0};
    StepMetrics m;
    m.learning_rate = learning_rate_at(t.learning_rate, state_.step, t.steps);
    const auto [loss, grad_norm] =
        engine_.step(batches, static_cast<float>(1.0 / counted),
                     static_cast<float>(t.aux_loss / static_cast<double>(t.global_batch)), m.learning_rate,
                     state_.step + 1, flags);
    stop_requested_ = flags[0] > 0;
    all_written_ = flags[1] == world().size();
    m.loss = loss.loss_sum / counted;
    m.grad_norm = grad_norm;
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
    // Between GPUs a recorded step does not say where it waits (farskip bench overlap does).
    if (world().size() == 1 || arena_.device().kind() == DeviceKind::cpu) {
      const double exposed = engine_.exposed_seconds() - exposed_before;
      m.exposed_comm_seconds = exposed;
      m.hidden_comm_seconds = std::max(0.0, engine_.transport_seconds() - transport_before - exposed);
    }
    m.repeated_steps = engine_.num_repeated() - repeated_before;
    m.peak_memory_bytes = memory_in_use();
    describe_load(loss, m);
    if (distill_) distill_->describe(loss, counted, m);
    if (t.aux_loss > 0) m.aux_loss = loss.balance_loss / static_cast<double>(t.global_batch);
    if (looks_at_validation(m.step)) look_at_validation(m);
    last_loss_ = m.loss;
    return m;
  }

  /// Of the process; on a GPU, of the device.
  std::uint64_t memory_in_use() const {
    if (arena_.device().shares_host_memory()) return peak_resident_bytes();
    const DeviceMemory memory = arena_.device().memory();
    return memory.total - memory.free;
  }

  void describe_load(const BatchLoss& loss, StepMetrics& m) const {
    constexpr std::int64_t every = 10;  // steps; the rows of all experts are long
    if (loss.expert_rows.empty()) return;
    m.load_max_over_mean = loss.load_max_over_mean();
    if (m.step % every == 0 || m.step == config_.train.steps) m.expert_rows = loss.expert_rows;
  }

  // Going on would only spread it. With a norm that is not finite the update changed nothing.
  // All ranks see the same numbers and come here together, so that a save under way is not lost.
  void check_finite(const StepMetrics& m) {
    if (std::isfinite(m.loss) && std::isfinite(m.grad_norm)) return;
    saver_.wait();
    throw Error(
        ExitCode::bad_data,
        fmt::format(
            "step {}: loss {} and gradient norm {} are not both finite (samples {} to {}); parameters "
            "are unchanged; lower train.learning_rate.peak or look at these samples",
            state_.step + 1, m.loss, m.grad_norm, state_.samples,
            state_.samples + config_.train.global_batch - 1));
  }

  bool looks_at_validation(std::int64_t step) const {
    const std::int64_t every = config_.train.validate_every;
    if (data_.validation.empty()) return false;
    if (distill_ && distill_->early_stopping() && distill_->early_stopping()->looks_at(step)) return true;
    return every > 0 && (step % every == 0 || step == config_.train.steps);
  }

  void look_at_validation(StepMetrics& m) {
    const Evaluation e = validate(inference_);
    m.validation_loss = validation_loss_ = e.loss;
    if (!distill_) return;
    distill_->describe_validation(e, state_.numbers, m);
    const auto& stopping = distill_->early_stopping();
    if (!stopping || !stopping->looks_at(m.step)) return;
    if (stopping->look(m.step, distill_->metric_value(e), state_.numbers)) save_best();
    if (converged())
      logger_.info("no progress on held-out text since step {:.0f}: stopping; its checkpoint is in {}",
                   state_.numbers.at("best_step"), best_folder().string());
  }

  /// Sequences that a rank evaluates at once: no more than a step has room for.
  std::int64_t validation_batch() const {
    const std::int64_t fallback = engine_.routed_rows().fallback_batch;
    return fallback > 0 ? fallback : config_.train.micro_batch;
  }

  /// Mean over the tokens of all validation sources, each read once.
  Evaluation validate(InferenceEngine& engine) {
    Evaluation sum;
    for (const auto& source : data_.validation) {
      const Evaluation e = evaluate(engine, *source, validation_batch(), 0);
      const auto weight = static_cast<double>(e.tokens);
      sum.loss += e.loss * weight;
      sum.accuracy += e.accuracy * weight;
      for (const auto& [name, mean] : e.means) sum.means[name] += mean * weight;
      sum.tokens += e.tokens;
    }
    const auto tokens = static_cast<double>(sum.tokens);
    sum.loss /= tokens;
    sum.accuracy /= tokens;
    for (auto& [name, value] : sum.means) value /= tokens;
    return sum;
  }

  fs::path best_folder() const { return fs::path(config_.run_dir) / "best"; }

  // Late training can lose again what it had won.
  void save_best() {
    engine_.download_state();
    CheckpointSaver saver(best_folder(), 1, false, model_, data_.tokenizer, logger_, mesh_.position(),
                          world());
    saver.save(state_, tensors());
  }

  void save() {
    if (saved_step_ == state_.step) return;
    engine_.download_state();
    saver_.save(state_, tensors());
    saved_step_ = state_.step;
  }

  TrainResult finish() {
    save();
    saver_.wait();
    const bool early = state_.step < config_.train.steps && !converged();
    if (is_first())
      folder_->write_exit(early         ? "stopped on request"
                          : converged() ? "no more progress on held-out text"
                                        : "done",
                          state_.step, early);
    return {state_.step, last_loss_, validation_loss_, early, converged()};
  }

  const RunConfig& config_;
  const ModelConfig& model_;
  Heartbeat& heartbeat_;
  std::optional<HeartbeatPatience> starting_;  // until the first step
  Logger logger_;
  Arena arena_;
  Mesh mesh_;
  std::vector<ParameterSpec> specs_;
  std::vector<LocalParameter> parameters_;
  const RunFolder* folder_;  // of rank 0
  RunData data_;
  LayerGraph layers_;
  TensorMap weights_;
  std::unique_ptr<Distillation> distill_;  // none: training on data
  TrainEngineOptions options_;
  TrainEngine engine_;
  InferenceEngine inference_;
  CheckpointSaver saver_;
  double flops_per_token_;
  TrainingState state_;
  std::int64_t saved_step_ = -1;
  bool stop_requested_ = false, all_written_ = false;  // agreed by all ranks
  double last_loss_ = 0;
  std::optional<double> validation_loss_;
};

/// The folder of a run that may begin there, held by rank 0; the others have none.
std::unique_ptr<RunFolder> open_run_folder(const RunConfig& config, const ModelConfig& model,
                                           const Logger& logger) {
  auto folder = std::make_unique<RunFolder>(config.run_dir, logger);
  refuse_other_file(config, model);
  check_can_save(folder->checkpoints());
  if (config.distill && config.distill->early_stopping) check_can_save(folder->best());
  return folder;
}

}  // namespace

TrainResult train(const RunConfig& config, const ModelConfig& model, const Communicator& world,
                  Heartbeat& heartbeat, const Logger& logger, std::shared_ptr<Device> device) {
  const StopSignals signals;
  if (!device) {
    refuse_unsupported(config);
    device = open_device(config.device, config.precision, world);
  }
  const auto folder = world.rank() == 0 ? open_run_folder(config, model, logger) : nullptr;
  signals.allow_leaving(true);
  try {
    return TrainingRun(config, model, world, heartbeat, logger, std::move(device), folder.get()).run(signals);
  } catch (const Error& error) {  // of this rank or, where they throw together, of another
    signals.allow_leaving(false);
    if (folder && error.code() == ExitCode::resumable)
      folder->write_exit("stopped on request", newest_step(folder->checkpoints()).value_or(0), true);
    throw;
  }
}

}  // namespace farskip
