// SPDX-License-Identifier: Apache-2.0
#include "distill/distillation.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "checkpoint/training_checkpoint.h"
#include "distill/distill_setup.h"
#include "engine/devices.h"
#include "fold_start.h"
#include "passes/farskip.h"
#include "tensor/hash.h"

namespace farskip {
namespace {

/// A constant, and whether it is the same as a folder's to the bit, as the states keep it. Part by part: both
/// may be large.
struct Comparison {
  std::string hash;
  std::size_t bytes = 0;
  bool same = true;
};
Comparison compare(const States& states, const StateSpec& constant, const ModelFolder* folder) {
  Comparison result;
  Hasher hasher;
  const LocalParameter& p = *constant.parameter;
  const TensorView weight = states.at(constant.name);
  const Range kept = constant.rows();
  for_each_part(p.spec, kept, [&](const Range& wanted, const Range& read) {
    const HostTensor here =
        copy_to_host(states.device(), rows_view(weight, wanted.first - kept.first, wanted.count));
    hasher.update(here.bytes());
    result.bytes += here.bytes().size();
    if (folder == nullptr || !result.same) return;
    const HostTensor exact(DType::f32, shape_of_rows(p.spec.shape, read.count));
    load_parameter(exact.view(), p, *folder, read.first);
    const HostTensor stored = convert_dtype(exact, here.dtype());
    const TensorView there = rows_view(stored.view(), wanted.first - read.first, wanted.count);
    result.same = std::memcmp(here.bytes().data(), there.data, here.bytes().size()) == 0;
  });
  result.hash = hasher.hex();
  return result;
}

/// A folder may have frozen tensors in more bits than they are computed with.
void warn_of_rounding(const States& states, const SafetensorsFolder& folder, const Logger& logger) {
  const auto is_wide = [&](const std::string& tensor) {
    return folder.contains(tensor) && folder.find(tensor).dtype == DType::f32;
  };
  const auto num_rounded =
      std::count_if(states.specs().begin(), states.specs().end(), [&](const StateSpec& s) {
        const ParameterSpec& p = s.parameter->spec;
        return s.role == Role::constant && is_low(s.dtype) &&
               (is_wide(p.name) || is_wide(p.packed_transposed) || is_wide(p.pieces.front().name));
      });
  if (num_rounded > 0)
    logger.warning(
        "{} frozen parameters are F32 in {}, and bf16 from here on, in checkpoints too; precision: fp32 "
        "keeps "
        "their bits",
        num_rounded, folder.path().string());
}

}  // namespace

Distillation::Distillation(const RunConfig& config, const ModelConfig& student, States& states,
                           const Context& context)
    : run_(config),
      config_(*config.distill),
      student_(student),
      context_(context),
      frozen_(frozen_parameters(config_.freeze, student)) {
  const DistillSetup setup = read_distill_setup(config);
  const DistillTerms terms = make_terms(config_, student, setup.teacher);
  if (config_.early_stopping) early_stopping_.emplace(*config_.early_stopping);
  const std::string& start = setup.from_teacher ? config_.teacher : config.init_from;
  if (start.empty()) {
    initialise_weights(states, static_cast<std::uint64_t>(config.seed), student.initializer_range);
  } else {
    if (start != config_.teacher || config_.cache)
      verify_model_folder(start, context.world());  // else it is below
    const SafetensorsFolder folder(start);
    load_weights(states, list_parameters(student), folder);
    warn_of_rounding(states, folder, context.logger);
  }
  if (config_.cache) {
    objective_ = std::make_shared<CachedDistillObjective>(terms.loss);
    kept_ = std::make_unique<KeptTeacher>(config, student.vocab_size, context);
    return;
  }
  Teacher teacher = open_teacher(config_.teacher, context);
  teacher.zero = static_cast<int>(config.parallel.zero);
  const SafetensorsFolder folder(config_.teacher);
  share_frozen(teacher, folder, states);
  const auto constants = load_teacher_states(teacher, folder, compute_type(config.precision), context);
  std::shared_ptr<const StepObjective> local;
  if (config_.local_share > 0)
    local = std::make_shared<DistillObjective>(local_terms(terms), teacher, constants);
  objective_ = live_ = std::make_shared<DistillObjective>(terms, teacher, constants, std::move(local));
  DistillTerms compared = terms;  // held-out text is not learned from
  compared.hidden_loss = {};
  validation_ = std::make_shared<DistillObjective>(std::move(compared), std::move(teacher), constants);
}

// A tensor that stays as it is and is the same in both models is kept once. All ranks must decide alike, also
// where each holds other experts: their graphs are to be the same.
void Distillation::share_frozen(Teacher& teacher, const SafetensorsFolder& folder, const States& states) {
  std::vector<std::string> candidates;
  std::vector<double> equal;
  std::map<std::string, Comparison> mine;
  const auto model = list_parameters(teacher.model.config);
  const ModelFolder names(folder, model);
  for (const StateSpec& constant : states.specs()) {
    const auto is_same = [&](const ParameterSpec& theirs) {
      return theirs.name == constant.parameter->spec.name && theirs.shape == constant.parameter->full_shape;
    };
    if (constant.role != Role::constant || std::none_of(model.begin(), model.end(), is_same)) continue;
    const std::string& name = constant.parameter->spec.name;
    const Comparison& mine_of = mine[name] = compare(states, constant, &names);
    candidates.push_back(name);
    equal.push_back(mine_of.same ? 1.0 : 0.0);
  }
  if (candidates.empty()) return;
  context_.world().all_reduce(std::span(equal), Reduction::min);
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (equal[i] == 0.0) continue;
    const std::string& name = candidates[i];
    bytes += mine.at(name).bytes;
    teacher.shared.insert(name);
    shared_hashes_[name] = mine.at(name).hash;
  }
  if (!frozen_.empty())
    context_.logger.info("{} parameters are frozen; teacher and student share {} of them, {:.0f} MiB",
                         frozen_.size(), teacher.shared.size(), static_cast<double>(bytes) / (1 << 20));
}

void Distillation::fill_weights(States& states) const {
  if (config_.fold) fold_start(run_, student_, frozen_, context_, states);
}

void Distillation::check_weights(const States& states) const {
  for (const StateSpec& spec : states.specs()) {
    const std::string& name = spec.parameter->spec.name;
    const auto shared = shared_hashes_.find(name);
    if (spec.role == Role::constant && shared != shared_hashes_.end() &&
        compare(states, spec, nullptr).hash != shared->second)
      throw UsageError(fmt::format(
          "{} is frozen (distill.freeze), and the checkpoint has trained it; use the list that the "
          "checkpoint was made with, or another run_dir",
          name));
  }
}

void Distillation::forget_old_numbers(const RunSettings& saved, const RunSettings& now,
                                      RunNumbers& numbers) const {
  const auto changed = [&](const std::string& key) {
    const auto before = saved.find(key), after = now.find(key);
    return before != saved.end() && after != now.end() && before->second != after->second;
  };
  const bool other_text = changed(kValidationContents);
  if (other_text || changed("distill.early_stopping.metric")) EarlyStopping::forget(numbers);
  if (!other_text) return;
  numbers.erase("teacher_loss");
  numbers.erase("untrained_loss");
}

std::optional<LayerGraph> Distillation::layers_at(std::int64_t step) const {
  const LayerGraph standard = build_layer_graph(student_);
  FarSkipConfig wiring = student_.farskip;
  if (config_.curriculum_every > 0) {
    std::vector<std::int64_t> selected;  // last first
    for (std::int64_t layer = student_.num_layers; layer-- > 0;)
      if (wiring.layers.contains(layer)) selected.push_back(layer);
    const std::int64_t count = 1 + step / config_.curriculum_every;
    if (count < static_cast<std::int64_t>(selected.size())) selected.resize(static_cast<std::size_t>(count));
    std::sort(selected.begin(), selected.end());
    wiring.layers = {.kind = LayerSelection::Kind::list, .layers = selected};
  }
  return rewire_farskip(standard, wiring);
}

std::shared_ptr<const StepObjective> Distillation::objective_at(std::int64_t step) const {
  const double steps = config_.local_share * static_cast<double>(run_.train.steps);
  return static_cast<double>(step) < std::round(steps) ? objective_->first_stage() : objective_;
}

void Distillation::add_to(TrainingOptions& options) const {
  options.objective = objective_;
}

void Distillation::record_baseline(const Validate& validate, InferenceEngine& student, RunNumbers& numbers) {
  const Evaluation e = validate(student);
  if (e.tokens == 0) return;
  // With a cache the student runs alone.
  const double teacher = kept_ ? validate(kept_->engine()).loss : e.means.at("teacher_loss");
  numbers["teacher_loss"] = teacher;
  numbers["untrained_loss"] = e.loss;
  context_.logger.info("validation loss: teacher {:.4f}, student before training {:.4f} (+{:.4f})", teacher,
                       e.loss, e.loss - teacher);
}

void Distillation::complete(std::vector<Batch>& batches, std::int64_t step) {
  if (kept_) kept_->complete(batches);
  if (!live_) return;
  const double left = static_cast<double>(run_.train.steps - step),
               falling = config_.hidden_loss.anneal * static_cast<double>(run_.train.steps);
  for (Batch& batch : batches) live_->add_hidden_factors(batch, left < falling ? left / falling : 1.0);
}

void Distillation::describe(const BatchLoss& loss, double counted, StepMetrics& m) const {
  constexpr std::string_view flips = "routing_flips.";
  for (const auto& [name, sum] : loss.sums) {
    const double mean = sum / counted;
    if (name == "reverse_kl" && config_.loss.reverse_kl == 0) continue;
    if (name == "jsd" && config_.loss.jsd == 0) continue;
    if (name.starts_with(flips))
      m.routing_flips[std::stoi(name.substr(flips.size()))] = mean / static_cast<double>(student_.moe.top_k);
    else
      m.distill[name == "correct" ? "accuracy" : name] = mean;
  }
  for (const char* term : {"hidden_loss", "router_agreement", "local_loss"})
    if (m.distill.contains(term)) m.loss += m.distill.at(term);
}

void Distillation::describe_validation(const Evaluation& e, const RunNumbers& numbers, StepMetrics& m) const {
  m.distill["validation_accuracy"] = e.accuracy;
  for (const char* name : {"kl", "agreement", "teacher_loss"})
    if (const auto it = e.means.find(name); it != e.means.end())
      m.distill[fmt::format("validation_{}", name)] = it->second;
  if (!numbers.contains("untrained_loss")) return;  // there was no held-out text when it began
  const double teacher = numbers.at("teacher_loss"), untrained = numbers.at("untrained_loss");
  m.distill["validation_teacher_loss"] = teacher;
  m.distill["validation_untrained_loss"] = untrained;
  if (std::abs(untrained - teacher) > 1e-6)
    m.distill["recovered"] = (untrained - e.loss) / (untrained - teacher);
}

double Distillation::metric_value(const Evaluation& e) const {
  switch (config_.early_stopping->metric) {
    case HeldOutMetric::validation_loss:
      return e.loss;
    case HeldOutMetric::validation_accuracy:
      return e.accuracy;
    case HeldOutMetric::validation_kl:
      return e.means.at("kl");
    case HeldOutMetric::validation_agreement:
      return e.means.at("agreement");
  }
  throw InternalError("a metric without value");
}

bool Distillation::looks_at(std::int64_t step) const {
  return early_stopping_ && early_stopping_->looks_at(step);
}

bool Distillation::observe(std::int64_t step, const Evaluation& e, RunNumbers& numbers) const {
  if (!looks_at(step)) return false;
  const double value = metric_value(e);
  if (std::isfinite(value)) return early_stopping_->observe(step, value, numbers);
  context_.logger.warning("step {}: the metric of early stopping is {}: this evaluation does not count", step,
                          value);
  return false;
}

bool Distillation::over(const RunNumbers& numbers) const {
  return early_stopping_ && early_stopping_->over(numbers);
}

}  // namespace farskip
