// SPDX-License-Identifier: Apache-2.0
#include "farskip/run/trainer.h"

#include <array>
#include <chrono>
#include <cmath>
#include <utility>

#include "farskip/base/environment.h"
#include "farskip/base/stop_signals.h"
#include "farskip/checkpoint/training_checkpoint.h"
#include "farskip/comm/agreement.h"
#include "farskip/config/scalar.h"
#include "farskip/distill/distillation.h"
#include "farskip/engine/devices.h"
#include "farskip/engine/engine_options.h"
#include "farskip/infer/evaluate.h"
#include "farskip/measure/measure.h"
#include "farskip/measure/plan_report.h"
#include "farskip/passes/farskip.h"
#include "farskip/run/bad_numbers.h"
#include "farskip/run/learning_rate.h"
#include "farskip/run/metrics.h"
#include "farskip/run/run_config_file.h"
#include "farskip/run/run_data.h"
#include "farskip/run/run_folder.h"
#include "farskip/run/start_report.h"

namespace farskip {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Rank 0 first, then the others at once: what it leaves on disk they find there.
template <class F>
auto rank_zero_first(const Communicator& world, Heartbeat& heartbeat, const F& f) {
  const auto meet = [&] {
    const HeartbeatWait wait(&heartbeat, "files that rank 0 prepares");
    world.barrier();
  };
  if (world.rank() != 0) meet();
  auto result = f();
  if (world.rank() == 0) meet();
  return result;
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
        data_(rank_zero_first(world, heartbeat, [&] { return open_run_data(config, model, logger); })),
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
               model, data_.companions.texts, logger, mesh_.position(), world),
        flops_per_token_(train_flops_per_token(model, config.train.sequence_length)),
        dead_model_(model.vocab_size) {}

  TrainResult run(const StopSignals& signals) {
    start();
    if (is_first()) {
      metrics_.emplace(folder_->path() / "metrics.jsonl", state_.step, logger_);
      progress_.emplace(config_.train.steps, state_.step, logger_);
    }
    starting_.reset();
    signals.allow_leaving(false);
    while (state_.step < config_.train.steps && !stop_requested_ && !converged()) {
      note(step(signals));
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
    const std::string text = read_on_first_rank(world(), kept, logger_);
    const std::int64_t number = parse_integer(text.substr(0, text.find('\n'))).value.value_or(0);
    if (number >= 1 && number <= ScheduleConfig::kMostExpertChunks) return static_cast<int>(number);
    if (!text.empty() && is_first())
      logger_.warning("{}: holds \"{}\", where a number from 1 to {} is expected: it is chosen again",
                      kept.string(), printable(text), ScheduleConfig::kMostExpertChunks);
    return 0;
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

  void note(const StepMetrics& m) {
    if (metrics_) metrics_->append(m);
    if (progress_) progress_->show(m);
  }

  bool is_first() const { return world().rank() == 0; }
  bool is_deterministic() const {
    return repeats_bits(arena_.device(), options_.compute, options_.deterministic);
  }
  const Communicator& world() const { return mesh_.world(); }
  TrainingTensors tensors() {
    return {parameters_, weights_, engine_.first_moments(), engine_.second_moments()};
  }

  void start() {
    log_model(model_, mesh_, arena_.device(), options_, logger_);
    // Evaluation takes its share of the arena now: later the arena would move, which peers have open.
    for (const auto& source : data_.validation)
      inference_.prepare_loss(validation_batch(), source->options().sequence_length,
                              source->options().document_mask);
    MemoryReport memory = engine_.memory();
    memory.snapshot = saver_.snapshot_bytes(tensors());
    log_memory(memory, logger_);
    log_routed_rows(engine_.routed_rows(), logger_);
    state_.settings =
        share_settings(world(), [&] { return settings_of(config_, describe_contents(config_, data_)); });
    if (!resume()) load_or_initialise();
    if (is_first()) {  // a start that nothing refused
      write_run_config(config_, model_, world().size());
      folder_->forget_exit();
    }
    if (distill_) {
      distill_->check_shared(weights_);
      set_aside_best();
      note_start();
    }
  }

  // What conversion costs, before any training makes up for it.
  void note_start() {
    if (data_.validation.empty() || state_.step > 0) return;
    const Evaluation e = validate(inference_);
    if (e.tokens == 0) return;
    KeptTeacher* const kept = distill_->kept_teacher();
    distill_->note_start(e.loss, kept != nullptr ? validate(kept->engine()).loss : e.means.at("teacher_loss"),
                         state_.numbers);
  }

  bool resume() {
    const fs::path checkpoints = fs::path(config_.run_dir) / "checkpoints";
    if (config_.checkpoint.resume != Resume::never)
      if (const auto resumed =
              resume_training(checkpoints, model_, state_.settings, tensors(), world(), logger_)) {
        engine_.upload_weights();
        engine_.upload_moments();
        take_over(*resumed);
        logger_.info("resumed at step {}", state_.step);
        const auto jump = describe_rate_jump(config_.train, state_.step, state_.learning_rate);
        if (jump && is_first()) logger_.warning("{}", *jump);
        if (state_.step >= config_.train.steps)
          logger_.info("train.steps is {}: nothing is left to do", config_.train.steps);
        return true;
      }
    if (config_.checkpoint.resume == Resume::required)
      throw MissingInputError(fmt::format("{}: no checkpoint to resume from (checkpoint.resume: required)",
                                          checkpoints.string()));
    if (config_.checkpoint.resume == Resume::never) set_aside_all_checkpoints(checkpoints, world(), logger_);
    return false;
  }

  void take_over(const TrainingState& resumed) {
    const RunSettings now = std::exchange(state_.settings, {});
    state_ = resumed;
    saved_step_ = state_.step;
    if (distill_) distill_->forget_old_numbers(resumed.settings, now, state_.numbers);
    state_.settings = now;
  }

  // A best checkpoint of steps that will be done again, or of looks that begin anew.
  void set_aside_best() const {
    if (!is_first() || !fs::exists(best_folder())) return;
    set_aside_newer_checkpoints(best_folder(), state_.numbers.contains("best") ? state_.step : -1, logger_,
                                "replaced");
  }

  void load_or_initialise() {
    if (!distill_) {  // whose weights are there: what the teacher shares depends on them
      if (config_.init_from.empty()) {
        initialise_weights(weights_, parameters_, static_cast<std::uint64_t>(config_.seed),
                           model_.initializer_range);
      } else {
        verify_model_folder(config_.init_from, world());
        load_weights(weights_, parameters_, specs_, SafetensorsFolder(config_.init_from));
      }
    }
    engine_.upload_weights();
  }

  /// Of this rank, in micro-batch `part` of the next step.
  std::int64_t first_sample(std::int64_t part) const {
    return state_.samples + (part * world().size() + world().rank()) * config_.train.micro_batch;
  }

  /// This rank's micro-batches of the step: in each, `micro_batch` consecutive samples a rank.
  std::vector<Batch> read_batches() const {
    const std::int64_t count = config_.train.micro_batch;
    std::vector<Batch> batches;
    for (std::int64_t part = 0; part < options_.micro_batches; ++part)
      batches.push_back(read_batch(*data_.train, static_cast<std::uint64_t>(first_sample(part)), count));
    return batches;
  }

  StepMetrics step(const StopSignals& signals) {
    const Clock::time_point started = Clock::now();
    heartbeat_.begin_step(state_.step + 1);
    const TrainConfig& t = config_.train;
    if (distill_) engine_.rewire(distill_->layers_at(state_.step));
    const auto [batches, counted] = read_step();
    // What all ranks must know at the end of a step travels with its sums.
    std::array<double, 2> flags{signals.requested() ? 1.0 : 0.0,
                                saver_.open() && saver_.written() ? 1.0 : 0.0};
    StepMetrics m;
    m.learning_rate = learning_rate_at(t.learning_rate, state_.step, t.steps);
    m.step = state_.step + 1;
    if (counted > 0)
      compute_step(batches, counted, flags, m);
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
    if (counted > 0) last_loss_ = m.loss;
    return m;
  }

  /// `counted`: targets of all ranks.
  void compute_step(std::span<const Batch> batches, double counted, std::span<double> flags, StepMetrics& m) {
    const double exposed_before = engine_.exposed_seconds(), transport_before = engine_.transport_seconds();
    const std::int64_t repeated_before = engine_.num_repeated();
    const TrainConfig& t = config_.train;
    const StepResult result = engine_.step(
        batches, static_cast<float>(1.0 / counted),
        static_cast<float>(t.aux_loss / static_cast<double>(t.global_batch)), m.learning_rate, m.step, flags);
    take_flags(flags);
    const BatchLoss& loss = result.loss;
    m.loss = loss.loss_sum / counted;
    m.grad_norm = result.grad_norm;
    if (!result.updated || !result.loss_is_finite) end_at_bad_numbers(result, m);
    // Between GPUs a recorded step does not say where it waits (farskip bench overlap does).
    if (world().size() == 1 || arena_.device().kind() == DeviceKind::cpu) {
      const double exposed = engine_.exposed_seconds() - exposed_before;
      m.exposed_comm_seconds = exposed;
      m.hidden_comm_seconds = std::max(0.0, engine_.transport_seconds() - transport_before - exposed);
    }
    m.repeated_steps = engine_.num_repeated() - repeated_before;
    describe_load(loss, m);
    if (distill_) distill_->describe(loss, counted, m);
    if (t.aux_loss > 0) m.aux_loss = loss.balance_loss / static_cast<double>(t.global_batch);
    look_for_death(m);
  }

  /// There is nothing to learn from; an update would move weights by their decay and by old gradients.
  void skip_step(std::span<double> flags, StepMetrics& m) {
    {
      const HeartbeatWait wait(&heartbeat_, "the end of a step without targets");
      world().all_reduce(flags);
    }
    take_flags(flags);
    m.loss = m.grad_norm = kNoNumber;
    if (num_skipped_++ == 0 && is_first())
      logger_.warning(
          "step {}: in samples {} to {} {}; weights stay as they are in such steps, and loss is null", m.step,
          state_.samples, state_.samples + config_.train.global_batch - 1, kNoTargets);
  }

  /// `flags`: summed over ranks.
  void take_flags(std::span<const double> flags) {
    stop_requested_ = flags[0] > 0;
    all_written_ = flags[1] == world().size();
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

  void look_for_death(const StepMetrics& m) {
    const auto student = m.distill.find("student_loss");  // a distance to a teacher has no uniform guess
    const auto warning =
        dead_model_.look(m.step, student == m.distill.end() ? m.loss : student->second, m.grad_norm);
    if (warning && is_first()) logger_.warning("{}", *warning);
  }

  /// What this rank read for the next step, or the error of one of them on all ranks.
  std::pair<std::vector<Batch>, double> read_step() {
    std::vector<Batch> batches;
    std::array<double, 2> sums{};  // counted targets, ranks that failed
    std::exception_ptr failure;
    try {
      batches = read_batches();
      for (const Batch& batch : batches) sums[0] += static_cast<double>(count_targets(batch));
    } catch (...) {
      failure = std::current_exception();
      sums[1] = 1;
    }
    {
      const HeartbeatWait wait(&heartbeat_, "number of tokens of a step");
      world().all_reduce(std::span<double>(sums));
    }
    try {
      if (sums[1] > 0) throw_together(world(), failure);
      if (KeptTeacher* const kept = distill_ ? distill_->kept_teacher() : nullptr) kept->complete(batches);
    } catch (const UserError& error) {
      end_with(error.code(), error.what());
    }
    return {std::move(batches), sums[0]};
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

  /// Samples of this rank in the next step: "64 to 65, 68 to 69".
  std::string own_samples() const {
    std::string text;
    for (std::int64_t part = 0; part < options_.micro_batches; ++part) {
      const std::int64_t first = first_sample(part);
      text +=
          fmt::format("{}{} to {}", text.empty() ? "" : ", ", first, first + config_.train.micro_batch - 1);
    }
    return text;
  }

  // All ranks see the same sums and come here together.
  [[noreturn]] void end_at_bad_numbers(const StepResult& result, const StepMetrics& m) {
    engine_.download_state();
    const bool own = !std::isfinite(engine_.own_loss().loss_sum);
    const std::string why = describe_bad_step(
        world(), {state_.step + 1, result.loss_is_finite, result.updated,
                  describe_bad_tensors(tensors(), engine_.gradients()), own ? own_samples() : "",
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
    if (distill_ && distill_->early_stopping() && distill_->early_stopping()->looks_at(step)) return true;
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
    if (!distill_) return;
    distill_->describe_validation(e, state_.numbers, m);
    const auto& stopping = distill_->early_stopping();
    if (!stopping || !stopping->looks_at(m.step)) return;
    const double value = distill_->metric_value(e);
    if (!std::isfinite(value)) {
      logger_.warning("step {}: the metric of early stopping is {}: this evaluation does not count", m.step,
                      value);
      return;
    }
    if (stopping->look(m.step, value, state_.numbers)) save_best();
    if (converged())
      logger_.info(
          "no improvement of the validation metric since step {:.0f}: stopping; the best checkpoint is in {}",
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
      if (e.tokens == 0) continue;
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
    CheckpointSaver saver(best_folder(), 1, false, model_, data_.companions.texts, logger_, mesh_.position(),
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
    if (num_skipped_ > 1 && is_first())
      logger_.warning("in {} steps {}: weights stayed as they were", num_skipped_, kNoTargets);
    const bool early = state_.step < config_.train.steps && !converged();
    if (is_first())
      folder_->write_exit(early         ? "stopped on request"
                          : converged() ? "no more improvement of the validation metric"
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
  DeadModelWatch dead_model_;
  std::optional<MetricsFile> metrics_;  // of rank 0
  std::optional<Progress> progress_;
  std::int64_t num_skipped_ = 0;  // steps without targets
  std::optional<double> last_loss_;
  std::optional<double> validation_loss_;
};

/// The folder of a run that may begin there, held by rank 0; the others have none.
std::unique_ptr<RunFolder> open_run_folder(const RunConfig& config, const ModelConfig& model,
                                           const Logger& logger) {
  auto folder = std::make_unique<RunFolder>(config.run_dir, logger);
  refuse_other_run(config, model);
  // Where a run begins anew, what has the name of a checkpoint is set aside.
  if (config.checkpoint.resume != Resume::never) check_can_save(folder->checkpoints());
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
