// SPDX-License-Identifier: Apache-2.0
#include "run/trainer.h"

#include <array>
#include <chrono>
#include <cmath>
#include <functional>
#include <optional>
#include <utility>

#include "base/environment.h"
#include "base/stop_signals.h"
#include "checkpoint/training_checkpoint.h"
#include "comm/collective_errors.h"
#include "distill/distillation.h"
#include "engine/devices.h"
#include "engine/engine_options.h"
#include "engine/router_bias.h"
#include "infer/evaluate.h"
#include "run/bad_numbers.h"
#include "run/learning_rate.h"
#include "run/metrics.h"
#include "run/next_batches.h"
#include "run/resume_run.h"
#include "run/run_config_file.h"
#include "run/run_folder.h"
#include "run/run_schedule.h"
#include "run/start_report.h"
#include "run/text_objective.h"

namespace farskip {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class TrainingRun {
 public:
  TrainingRun(const RunConfig& config, const ModelConfig& model, const Context& context,
              const RunFolder* folder)
      : config_(config),
        model_(wire_model(model)),
        context_(context),
        folder_(folder),
        data_(open_run_data(config, model, context.world(), context.logger)),
        states_(make_states()),
        objective_(make_objective()),
        options_(make_options()),
        next_(make_batches()),
        engine_(model_, states_, options_, context),
        inference_(model_, states_, context, objective_->validation_objective()),
        saver_({fs::path(config.run_dir) / "checkpoints", config.checkpoint.keep, config.checkpoint.async},
               model, data_.companions.texts, context),
        flops_per_token_(train_flops_per_token(model, config.train.sequence_length)),
        dead_model_(model.vocab_size) {}

  /// `starting`: ends with the first step.
  TrainResult run(const StopSignals& signals, std::unique_ptr<HeartbeatPatience> starting) {
    start();
    if (is_first()) {
      metrics_.emplace(folder_->path() / "metrics.jsonl", state_.step, context_.logger);
      progress_.emplace(config_.train.steps, state_.step, context_.logger);
    }
    starting.reset();
    signals.allow_leaving(false);
    while (state_.step < config_.train.steps && !stop_requested_ && !converged()) {
      note(step(signals));
      if (all_written_) saver_.commit();
      if (config_.checkpoint.every > 0 && state_.step % config_.checkpoint.every == 0) save();
    }
    return finish();
  }

 private:
  /// What all ranks must know at the end of a step travels with its sums.
  enum Flag : std::size_t { kStopRequested, kWritten, kTargets, kFailed, kNumFlags };
  using Flags = std::array<double, kNumFlags>;

  TrainEngineOptions configured_options() const {
    TrainEngineOptions options = engine_options(config_, world().size());
    options.frozen = frozen_in_run(config_, model_.config);
    return options;
  }

  std::shared_ptr<States> make_states() const {
    const TrainingProgram program(model_, configured_options(), context_.mesh.position());
    return std::make_shared<States>(context_.device(), program.weight_states());
  }

  std::unique_ptr<RunObjective> make_objective() {
    if (config_.distill) return std::make_unique<Distillation>(config_, model_.config, *states_, context_);
    return std::make_unique<TextObjective>(config_, model_.config, context_);
  }

  TrainEngineOptions make_options() const {
    TrainEngineOptions options = configured_options();
    objective_->add_to(options);
    choose_schedule(config_, model_, context_, options);
    return options;
  }

  bool converged() const { return objective_->over(state_.numbers); }

  /// A line that cannot be written ends the run where all ranks hear of it, with the sums of the next step:
  /// the step itself was done.
  void note(const StepMetrics& m) {
    try {
      if (metrics_) metrics_->append(m);
    } catch (const IoError&) {
      note_failure_ = std::current_exception();
    }
    if (progress_) progress_->show(m);
  }

  bool is_first() const { return world().rank() == 0; }
  bool is_deterministic() const { return repeats_bits(device(), options_.compute, options_.deterministic); }
  const Communicator& world() const { return context_.world(); }
  Device& device() const { return *context_.device(); }
  NextBatches make_batches() const {
    const Communicator& readers = context_.mesh.batch();
    return {*data_.train,
            {config_.train.micro_batch, options_.micro_batches, readers.rank(), readers.size()},
            context_.mesh.position().counts_sequences()};
  }

  void start() {
    log_model(model_.config, options_, context_);
    // Evaluation takes its share of the arena now: later the arena would move, which peers have open.
    for (const auto& source : data_.validation)
      inference_.prepare_loss(validation_batch(), source->options().sequence_length,
                              source->options().document_mask);
    MemoryReport memory = engine_.memory();
    memory.snapshot = saver_.snapshot_bytes(*states_);
    log_memory(memory, context_.logger);
    check_free_memory(memory);
    log_routed_rows(engine_.routed_rows(), context_.logger);
    state_.settings =
        share_settings(world(), [&] { return settings_of(config_, describe_contents(config_, data_)); });
    if (resume()) {
      engine_.exchange_average();  // the model of a checkpoint is the average
    } else {
      objective_->fill_weights(*states_);
      engine_.begin_average();
    }
    if (is_first()) {  // a start that nothing refused
      write_run_config(config_, model_.config, world().size());
      folder_->forget_exit();
    }
    objective_->check_weights(*states_);
    set_aside_best(best_folder(), state_, context_);
    if (!data_.validation.empty() && state_.step == 0)
      objective_->record_baseline([&](InferenceEngine& engine) { return validate(engine); }, inference_,
                                  state_.numbers);
  }

  bool resume() {
    const auto resumed = resume_run(config_, model_.config, state_.settings, *states_, context_);
    if (!resumed) return false;
    take_over(*resumed);
    report_resumed(config_, state_, resumed->settings, converged(), context_);
    return true;
  }

  void take_over(const TrainingState& resumed) {
    const RunSettings now = std::exchange(state_.settings, {});
    state_ = resumed;
    saved_step_ = state_.step;
    objective_->forget_old_numbers(resumed.settings, now, state_.numbers);
    state_.settings = now;
  }

  StepMetrics step(const StopSignals& signals) {
    const Clock::time_point started = Clock::now();
    context_.heartbeat->begin_step(state_.step + 1);
    const TrainConfig& t = config_.train;
    if (const auto layers = objective_->layers_at(state_.step)) engine_.rewire(*layers);
    if (const auto objective = objective_->objective_at(state_.step)) engine_.minimise(objective);
    const StepBatches now = take_batches();
    Flags flags{};
    flags[kStopRequested] = signals.requested() ? 1.0 : 0.0;
    flags[kWritten] = saver_.open() && saver_.written() ? 1.0 : 0.0;
    StepMetrics m;
    m.learning_rate = learning_rate_at(t.learning_rate, state_.step, t.steps);
    m.step = state_.step + 1;
    if (now.targets > 0)
      compute_step(now, flags, m);
    else
      skip_step(flags, m);
    advance(m);
    const std::int64_t tokens = t.global_batch * t.sequence_length;
    m.tokens = state_.tokens;
    m.step_seconds = seconds_since(started);
    m.tokens_per_second = static_cast<double>(tokens) / m.step_seconds;
    m.model_tflops = flops_per_token_ * m.tokens_per_second * 1e-12;
    m.deterministic = is_deterministic();
    m.peak_memory_bytes = memory_in_use();
    if (looks_at_validation(m.step)) look_at_validation(m);
    if (now.targets > 0) last_loss_ = m.loss;
    return m;
  }

  void compute_step(const StepBatches& now, Flags& flags, StepMetrics& m) {
    const double counted = now.targets;
    const double exposed_before = engine_.exposed_seconds(), transport_before = engine_.transport_seconds();
    const std::int64_t repeated_before = engine_.num_repeated();
    const TrainConfig& t = config_.train;
    const StepResult result =
        engine_.step(now.batches, static_cast<float>(1.0 / counted),
                     static_cast<float>(t.aux_loss / static_cast<double>(t.global_batch)), m.learning_rate,
                     m.step, flags, [&] { read_next(flags); });
    take_flags(flags);
    const BatchLoss& loss = result.loss;
    m.loss = loss.loss_sum / counted;
    m.grad_norm = result.grad_norm;
    if (!result.updated || !result.loss_is_finite) end_at_bad_numbers(result, m);
    if (t.router_bias_update > 0)
      move_router_biases(*engine_.states(), loss.expert_rows, t.router_bias_update);
    // Between GPUs a recorded step does not say where it waits (farskip bench overlap does).
    if (world().size() == 1 || device().kind() == DeviceKind::cpu) {
      const double exposed = engine_.exposed_seconds() - exposed_before;
      m.exposed_comm_seconds = exposed;
      m.hidden_comm_seconds = std::max(0.0, engine_.transport_seconds() - transport_before - exposed);
    }
    m.repeated_steps = engine_.num_repeated() - repeated_before;
    describe_load(loss, m);
    objective_->describe(loss, counted, m);
    if (t.aux_loss > 0) m.aux_loss = loss.balance_loss / static_cast<double>(t.global_batch);
    look_for_death(m);
  }

  /// There is nothing to learn from; an update would move weights by their decay and by old gradients.
  void skip_step(Flags& flags, StepMetrics& m) {
    read_next(flags);
    {
      const HeartbeatWait wait(context_.heartbeat, "the end of a step without targets");
      world().all_reduce(std::span<double>(flags));
    }
    take_flags(flags);
    m.loss = m.grad_norm = kNoNumber;
    if (num_skipped_++ == 0 && is_first())
      context_.logger.warning(
          "step {}: in samples {} to {} {}; weights stay as they are in such steps, and loss is null", m.step,
          state_.samples, state_.samples + config_.train.global_batch - 1, kNoTargets);
  }

  /// `flags`: summed over ranks.
  void take_flags(const Flags& flags) {
    stop_requested_ = flags[kStopRequested] > 0;
    all_written_ = flags[kWritten] == world().size();
    hear_of_next(flags);
  }
  void hear_of_next(const Flags& flags) {
    next_.set_targets(flags[kTargets]);
    next_failed_ = flags[kFailed] > 0;
  }

  /// Of the process; on a GPU, of the device.
  std::uint64_t memory_in_use() const {
    if (device().shares_host_memory()) return peak_resident_bytes();
    const DeviceMemory memory = device().memory();
    return memory.total - memory.free;
  }

  void describe_load(const BatchLoss& loss, StepMetrics& m) const {
    constexpr std::int64_t every = 10;  // steps; the rows of all experts are long
    if (loss.expert_rows.empty()) return;
    m.load_max_over_mean = loss.load_max_over_mean();
    if (m.step % every == 0 || m.step == config_.train.steps) m.expert_rows = loss.expert_rows;
  }

  void look_for_death(const StepMetrics& m) {
    const auto student = m.distill.find("student_loss");  // a distance to a teacher has no uniform guess
    const auto warning =
        dead_model_.look(m.step, student == m.distill.end() ? m.loss : student->second, m.grad_norm);
    if (warning && is_first()) context_.logger.warning("{}", *warning);
  }

  /// Reads the next step's batches, if there is one; how many targets it has, and whether a rank failed, all
  /// ranks hear of with the sums of the step before.
  void read_next(Flags& flags) {
    if (state_.step + 1 == config_.train.steps) return next_.clear();
    read_batches(state_.samples + config_.train.global_batch, flags);
  }

  /// `first`: sample of the step.
  void read_batches(std::int64_t first, Flags& flags) {
    flags[kTargets] = next_.read(first);
    if (next_.failure() || note_failure_) flags[kFailed] = 1;
  }

  /// Gives those of the step that begins now; throws the error of one rank on all of them.
  StepBatches take_batches() {
    if (!std::exchange(has_read_, true)) {
      Flags flags{};
      read_batches(state_.samples, flags);
      const HeartbeatWait wait(context_.heartbeat, "number of tokens of a step");
      world().all_reduce(std::span<double>(flags));
      hear_of_next(flags);
    }
    if (next_failed_) end_if_failed(note_failure_ ? note_failure_ : next_.failure());
    try {
      objective_->complete(next_.batches(), state_.step);
    } catch (const UserError& error) {
      end_with(error.code(), error.what());
    }
    return next_.take();
  }

  /// Ends the run of all ranks if one of them has an error. Collective.
  void end_if_failed(const std::exception_ptr& failure) {
    try {
      throw_together(world(), failure);
    } catch (const UserError& error) {
      end_with(error.code(), error.what());
    }
  }

  /// Ends the run of all ranks with an error that they have together, after the last whole step was saved.
  /// Checkpoints from before stay: that state may be worth less than they are.
  [[noreturn]] void end_with(ExitCode code, const std::string& why) {
    std::string saved = "no step was done";
    if (state_.step > 0) {
      try {
        saver_.keep_all();
        save();
        saver_.wait();
        saved = fmt::format("the state of step {} is saved", state_.step);
      } catch (const Error& error) {
        saved = fmt::format("the state of step {} is not saved: {}", state_.step, error.what());
      }
    }
    throw Error(code, fmt::format("{}; {}", why, saved));
  }

  // All ranks see the same sums and come here together.
  [[noreturn]] void end_at_bad_numbers(const StepResult& result, const StepMetrics& m) {
    engine_.gather_weights();
    const bool own = !std::isfinite(engine_.own_loss().loss_sum);
    const std::string why = describe_bad_step(
        world(), {state_.step + 1, result.loss_is_finite, result.updated, describe_bad_tensors(*states_),
                  own ? next_.samples_text(state_.samples) : "",
                  fmt::format("{} to {}", state_.samples, state_.samples + config_.train.global_batch - 1)});
    if (result.updated) advance(m);
    end_with(ExitCode::bad_data, why);
  }

  /// The step was done.
  void advance(const StepMetrics& m) {
    state_.step += 1;
    state_.samples += config_.train.global_batch;
    state_.tokens += config_.train.global_batch * config_.train.sequence_length;
    state_.learning_rate = m.learning_rate;
  }

  bool looks_at_validation(std::int64_t step) const {
    const std::int64_t every = config_.train.validate_every;
    if (data_.validation.empty()) return false;
    if (objective_->looks_at(step)) return true;
    return every > 0 && (step % every == 0 || step == config_.train.steps);
  }

  void look_at_validation(StepMetrics& m) {
    Evaluation e;
    try {
      e = validate(inference_);
    } catch (const UserError& error) {  // of all ranks; the step itself was done
      note(m);
      end_with(error.code(), error.what());
    }
    m.validation_loss = validation_loss_ = e.loss;
    objective_->describe_validation(e, state_.numbers, m);
    if (objective_->observe(m.step, e, state_.numbers)) save_best();
    if (converged())
      context_.logger.info(
          "no improvement of the validation metric since step {:.0f}: stopping; the best checkpoint is in {}",
          state_.numbers.at("best_step"), best_folder().string());
  }

  /// Sequences that a rank evaluates at once: no more than a step has room for.
  std::int64_t validation_batch() const {
    const std::int64_t fallback = engine_.routed_rows().fallback_batch;
    return fallback > 0 ? fallback : config_.train.micro_batch;
  }

  /// Of averaged weights, where there are any.
  Evaluation validate(InferenceEngine& engine) {
    Evaluation result;
    with_average([&] { result = evaluate_all(engine, data_.validation, validation_batch()); });
    return result;
  }

  /// `f`: a collective call; an error of the user in it is one of all ranks.
  void with_average(const std::function<void()>& f) {
    engine_.exchange_average();
    try {
      f();
    } catch (const UserError&) {
      engine_.exchange_average();
      throw;
    }
    engine_.exchange_average();
  }

  fs::path best_folder() const { return fs::path(config_.run_dir) / "best"; }

  // Late training can lose again what it had won.
  void save_best() {
    CheckpointSaver saver({best_folder()}, model_.config, data_.companions.texts, context_);
    save_to(saver);
  }

  void save() {
    if (saved_step_ == state_.step) return;
    save_to(saver_);
    saved_step_ = state_.step;
  }

  void save_to(CheckpointSaver& saver) {
    with_average([&] {
      engine_.gather_weights();
      saver.save(state_, *states_);
    });
  }

  TrainResult finish() {
    end_if_failed(note_failure_);
    save();
    saver_.wait();
    if (num_skipped_ > 1 && is_first())
      context_.logger.warning("in {} steps {}: weights stayed as they were", num_skipped_, kNoTargets);
    const bool early = state_.step < config_.train.steps && !converged();
    if (is_first())
      folder_->write_exit(early         ? "stopped on request"
                          : converged() ? "no more improvement of the validation metric"
                                        : "done",
                          state_.step, early);
    return {state_.step, last_loss_, validation_loss_, early, converged()};
  }

  const RunConfig& config_;
  Model model_;
  Context context_;
  const RunFolder* folder_;  // of rank 0
  RunData data_;
  std::shared_ptr<States> states_;
  std::unique_ptr<RunObjective> objective_;
  TrainEngineOptions options_;
  NextBatches next_;
  TrainEngine engine_;
  InferenceEngine inference_;
  CheckpointSaver saver_;
  double flops_per_token_;
  TrainingState state_;
  std::int64_t saved_step_ = -1;
  bool stop_requested_ = false, all_written_ = false;  // agreed by all ranks
  DeadModelWatch dead_model_;
  std::optional<MetricsFile> metrics_;  // of rank 0
  bool has_read_ = false, next_failed_ = false;
  std::exception_ptr note_failure_;  // of this rank
  std::optional<Progress> progress_;
  std::int64_t num_skipped_ = 0;  // steps without targets
  std::optional<double> last_loss_;
  std::optional<double> validation_loss_;
};

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
    auto starting = std::make_unique<HeartbeatPatience>(heartbeat);
    const Context context{make_mesh(world, config.parallel, *device), std::make_shared<Arena>(device),
                          &heartbeat, logger};
    return TrainingRun(config, model, context, folder.get()).run(signals, std::move(starting));
  } catch (const Error& error) {  // of this rank or, where they throw together, of another
    signals.allow_leaving(false);
    if (folder && error.code() == ExitCode::resumable)
      folder->write_exit("stopped on request", newest_step(folder->checkpoints()).value_or(0), true);
    throw;
  }
}

}  // namespace farskip
