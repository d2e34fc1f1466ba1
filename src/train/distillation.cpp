#include "farskip/train/distillation.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "farskip/comm/agreement.h"
#include "farskip/passes/farskip.h"
#include "farskip/tensor/hash.h"

namespace farskip {
namespace {

void check_fit(const ModelConfig& student, const ModelConfig& teacher, const DistillConfig& config) {
  if (student.vocab_size != teacher.vocab_size)
    throw UsageError(fmt::format(
        "distill.teacher {} has {} tokens in its vocabulary, the student {}; they must be the same "
        "tokens",
        config.teacher, teacher.vocab_size, student.vocab_size));
  const std::int64_t top_k = config.cache ? config.cache->top_k : config.top_k;
  if (top_k > teacher.vocab_size)
    throw UsageError(fmt::format("{} is {}, and the vocabulary has {} tokens; use at most that, or 0 for all",
                                 config.cache ? "distill.cache.top_k" : "distill.top_k", top_k,
                                 teacher.vocab_size));
  if (config.hidden_l2 > 0 && student.hidden_size != teacher.hidden_size)
    throw UsageError(
        fmt::format("distill.hidden_l2 compares hidden states of {} and {} elements; use 0 with this teacher",
                    student.hidden_size, teacher.hidden_size));
}

/// Which layers hidden_l2 compares.
std::vector<std::pair<std::int64_t, std::int64_t>> compared_layers(const DistillConfig& config,
                                                                   const ModelConfig& student,
                                                                   const ModelConfig& teacher) {
  std::vector<std::pair<std::int64_t, std::int64_t>> pairs;
  if (config.hidden_l2 == 0) return pairs;
  if (config.hidden_layers.empty() && student.num_layers != teacher.num_layers)
    throw UsageError(
        fmt::format("the student has {} layers and the teacher {}; say with distill.hidden_layers and "
                    "distill.teacher_layers which are compared",
                    student.num_layers, teacher.num_layers));
  const auto count = config.hidden_layers.empty() ? static_cast<std::size_t>(student.num_layers)
                                                  : config.hidden_layers.size();
  for (std::size_t i = 0; i < count; ++i) {
    const std::int64_t own =
        config.hidden_layers.empty() ? static_cast<std::int64_t>(i) : config.hidden_layers[i];
    const std::int64_t other = config.teacher_layers.empty() ? own : config.teacher_layers[i];
    if (own >= student.num_layers || other >= teacher.num_layers)
      throw UsageError(
          fmt::format("distill.hidden_layers compares layer {} of the student with {} of the teacher; they "
                      "have 0 to {} and 0 "
                      "to {}",
                      own, other, student.num_layers - 1, teacher.num_layers - 1));
    pairs.emplace_back(own, other);
  }
  return pairs;
}

ops::DistillLoss loss_of(const DistillConfig& config) {
  return {.kl = config.loss.kl,
          .reverse_kl = config.loss.reverse_kl,
          .jsd = config.loss.jsd,
          .sft = config.loss.sft,
          .temperature = config.temperature,
          .top_k = config.cache ? config.cache->top_k : config.top_k};
}

/// Of the files that make up a model.
std::string hash_model(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().filename() == "config.json" || entry.path().extension() == ".safetensors")
      if (!entry.path().filename().string().starts_with("optimizer")) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  Hasher hasher;
  for (const fs::path& file : files) hasher.update(hash_file(file));
  return hasher.hex();
}

std::string hash_tensor(const HostTensor& tensor) {
  Hasher hasher;
  hasher.update(tensor.bytes());
  return hasher.hex();
}

bool lower_is_better(HeldOutMetric metric) {
  return metric == HeldOutMetric::validation_loss || metric == HeldOutMetric::validation_kl;
}

}  // namespace

bool EarlyStopping::look(std::int64_t step, double value, RunNumbers& numbers) const {
  const double sign = lower_is_better(config_.metric) ? 1.0 : -1.0;
  const auto best = numbers.find("best");
  const bool progress =
      best == numbers.end() || sign * value < sign * best->second - config_.delta * std::abs(best->second);
  numbers["looks_without"] = progress ? 0.0 : numbers["looks_without"] + 1.0;
  if (!progress) return false;
  numbers["best"] = value;
  numbers["best_step"] = static_cast<double>(step);
  return true;
}

bool EarlyStopping::over(const RunNumbers& numbers) const {
  const auto it = numbers.find("looks_without");
  return it != numbers.end() && it->second >= static_cast<double>(config_.patience);
}

/// The teacher without a student.
struct Distillation::TeacherAlone {
  TeacherAlone(Teacher loaded, const Mesh& mesh, Heartbeat* heartbeat, const Logger& logger)
      : teacher(std::move(loaded)) {
    for (const auto& [name, tensor] : teacher.tensors)
      weights.emplace(name.substr(std::string_view("teacher.").size()), tensor);
    engine = std::make_unique<InferenceEngine>(teacher.config, teacher.layers, weights, arena, logger, mesh,
                                               heartbeat);
  }

  Teacher teacher;
  TensorMap weights;  // the same memory, by the model's own names
  Arena arena;
  std::unique_ptr<InferenceEngine> engine;
  std::optional<BatchRunner> runner;  // gives what is kept
};

Distillation::Distillation(const RunConfig& config, const ModelConfig& student,
                           const std::vector<LocalParameter>& parameters, TensorMap& weights,
                           const Mesh& mesh, Heartbeat& heartbeat, const Logger& logger)
    : config_(*config.distill),
      student_(student),
      mesh_(mesh),
      heartbeat_(heartbeat),
      logger_(logger),
      sequence_length_(config.train.sequence_length),
      micro_batch_(config.train.micro_batch),
      document_mask_(config.data.document_mask),
      frozen_(frozen_parameters(config_.freeze, student)) {
  const ModelConfig teacher_config = read_hub_config(config_.teacher);
  check_fit(student, teacher_config, config_);
  if (config_.early_stopping) early_stopping_.emplace(*config_.early_stopping);
  const bool from_teacher = config.init_from.empty() && config.model.kind == ConfigNode::Kind::null;
  const std::string& start = from_teacher ? config_.teacher : config.init_from;
  if (start.empty())
    initialise_weights(weights, parameters, static_cast<std::uint64_t>(config.seed),
                       student.initializer_range);
  else
    load_weights(weights, parameters, list_parameters(student), SafetensorsFolder(start));
  if (config_.cache) {
    objective_ = std::make_shared<CachedDistillObjective>(loss_of(config_));
    open_cache();
    return;
  }
  Teacher teacher = load_teacher();
  share_frozen(teacher, parameters, weights);
  objective_ = std::make_shared<DistillObjective>(make_terms(teacher.config), std::move(teacher));
}

Distillation::~Distillation() = default;

Teacher Distillation::load_teacher() const {
  Teacher teacher;
  teacher.config = read_hub_config(config_.teacher);
  teacher.layers = rewire_farskip(build_layer_graph(teacher.config), teacher.config.farskip);
  const auto specs = list_parameters(teacher.config);
  const auto local = local_parameters(specs, mesh_.position(), false);
  TensorMap weights = make_parameter_tensors(specs_of(local));
  load_weights(weights, local, specs, SafetensorsFolder(config_.teacher));
  for (auto& [name, tensor] : weights)
    teacher.tensors.emplace(teacher.external_name(name), std::move(tensor));
  logger_.info("teacher {}: {:.2f}M parameters, {} wiring", config_.teacher,
               static_cast<double>(count_parameters(teacher.config).total) * 1e-6,
               wiring_name(teacher.config.farskip));
  return teacher;
}

DistillTerms Distillation::make_terms(const ModelConfig& teacher) const {
  return {loss_of(config_), config_.hidden_l2, compared_layers(config_, student_, teacher),
          config_.router_agreement};
}

// A tensor that stays as it is and is the same in both models is kept once. All ranks must decide alike, also
// where each holds other experts: their graphs are to be the same.
void Distillation::share_frozen(Teacher& teacher, const std::vector<LocalParameter>& parameters,
                                const TensorMap& weights) {
  std::vector<const LocalParameter*> candidates;
  std::vector<double> equal;
  for (const LocalParameter& p : parameters) {
    const auto it = teacher.tensors.find(fmt::format("teacher.{}", p.spec.name));
    if (!frozen_.contains(p.spec.name) || it == teacher.tensors.end() || it->second.shape() != p.spec.shape)
      continue;
    const std::span<const std::byte> mine = weights.at(p.spec.name).bytes(), theirs = it->second.bytes();
    candidates.push_back(&p);
    equal.push_back(std::memcmp(mine.data(), theirs.data(), mine.size()) == 0 ? 1.0 : 0.0);
  }
  if (candidates.empty()) return;
  mesh_.world().all_reduce(std::span(equal), Reduction::min);
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (equal[i] == 0.0) continue;
    const std::string& name = candidates[i]->spec.name;
    bytes += weights.at(name).bytes().size();
    teacher.tensors.erase(fmt::format("teacher.{}", name));
    teacher.shared.insert(name);
    shared_hashes_[name] = hash_tensor(weights.at(name));
  }
  if (!frozen_.empty())
    logger_.info("{} parameters are frozen; teacher and student share {} of them, {:.0f} MiB", frozen_.size(),
                 teacher.shared.size(), static_cast<double>(bytes) / (1 << 20));
}

void Distillation::check_shared(const TensorMap& weights) const {
  for (const auto& [name, hash] : shared_hashes_)
    if (hash_tensor(weights.at(name)) != hash)
      throw UsageError(fmt::format(
          "{} is frozen (distill.freeze), and the checkpoint has trained it; use the list that the "
          "checkpoint was made with, or another run_dir",
          name));
}

LayerGraph Distillation::layers_at(std::int64_t step) const {
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

void Distillation::note_start(double student_loss, double teacher_loss, RunNumbers& numbers) const {
  numbers["teacher_loss"] = teacher_loss;
  numbers["untrained_loss"] = student_loss;
  logger_.info("held-out loss: teacher {:.4f}, student before training {:.4f} (+{:.4f})", teacher_loss,
               student_loss, student_loss - teacher_loss);
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
  for (const char* term : {"hidden_l2", "router_agreement"})
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

// ---- with a cache ------------------------------------------------------------------------------------

void Distillation::open_cache() {
  const Communicator& world = mesh_.world();
  std::exception_ptr failure;
  std::string teacher;
  try {
    if (world.rank() == 0) teacher = hash_model(config_.teacher);
  } catch (...) {
    failure = std::current_exception();
  }
  throw_together(world, failure);
  TeacherCacheIdentity identity{all_gather_text(world, teacher)[0], sequence_length_, config_.cache->top_k,
                                student_.vocab_size, config_.temperature};
  for (const bool first : {true, false}) {  // rank 0, then the others
    try {
      if ((world.rank() == 0) == first)
        cache_ = std::make_unique<TeacherCache>(config_.cache->path, identity, world.rank());
    } catch (...) {
      failure = std::current_exception();
    }
    throw_together(world, failure);
  }
  logger_.info("{}: {} sequences are kept of this teacher", config_.cache->path, cache_->size());
}

Distillation::TeacherAlone& Distillation::alone() {
  if (!alone_) alone_ = std::make_unique<TeacherAlone>(load_teacher(), mesh_, &heartbeat_, logger_);
  return *alone_;
}

InferenceEngine* Distillation::teacher_alone() {
  return cache_ ? alone().engine.get() : nullptr;
}

/// One record a sequence.
std::vector<TeacherRecord> Distillation::ask_teacher(const Batch& batch) {
  TeacherAlone& t = alone();
  const std::int64_t top_k = config_.cache->top_k;
  if (!t.runner) {
    LowerOptions lowering;
    lowering.batch = micro_batch_;
    lowering.sequence_length = sequence_length_;
    lowering.document_mask = document_mask_;
    const StepSharding sharding{mesh_.position(), false,
                                micro_batch_ * sequence_length_ * t.teacher.config.moe.top_k};
    auto executor = compile(build_teacher_graph(t.teacher, lowering, sharding, {top_k, config_.temperature}),
                            t.arena, {}, logger_, {&mesh_, &heartbeat_});
    for (const auto& [name, tensor] : t.teacher.tensors)
      if (executor->has_external(name)) executor->bind(name, tensor.view());
    t.runner.emplace(std::move(executor));
  }
  t.runner->set_batch(batch);
  t.runner->executor().run();
  const auto rows = [&]<class T>(std::string_view name, std::int64_t sequence, std::int64_t width, T) {
    const T* data = t.runner->executor().output(name).as<T>() + sequence * sequence_length_ * width;
    return std::vector<T>(data, data + sequence_length_ * width);
  };
  std::vector<TeacherRecord> records;
  for (std::int64_t s = 0; s < micro_batch_; ++s)
    records.push_back({rows(kCachedIndices, s, top_k, std::int32_t{}),
                       TeacherRecord::round(rows(kCachedLogProbs, s, top_k, float{})),
                       rows(kCachedLogTail, s, 1, float{}), rows(kCachedTargetLogProb, s, 1, float{})});
  return records;
}

void Distillation::add_teacher(std::vector<Batch>& batches) {
  if (!cache_) return;
  const auto length = static_cast<std::size_t>(sequence_length_);
  std::vector<std::vector<std::string>> keys;
  std::vector<std::vector<std::optional<TeacherRecord>>> found;
  std::vector<double> missing;  // sequences, by micro-batch
  for (const Batch& batch : batches) {
    const auto part = [&](const std::vector<std::int32_t>& values, std::size_t s) {
      return values.empty() ? std::span<const std::int32_t>() : std::span(values).subspan(s * length, length);
    };
    auto& k = keys.emplace_back();
    auto& f = found.emplace_back();
    missing.push_back(0.0);
    for (std::size_t s = 0; s * length < batch.tokens.size(); ++s) {
      k.push_back(
          TeacherCache::key_of(part(batch.tokens, s), part(batch.targets, s), part(batch.document_start, s)));
      f.push_back(cache_->find(k.back()));
      if (!f.back()) missing.back() += 1.0;
    }
  }
  {
    const HeartbeatWait wait(&heartbeat_, "what is kept of the teacher");
    mesh_.world().all_reduce(std::span(missing));
  }
  for (std::size_t i = 0; i < batches.size(); ++i) {
    if (missing[i] > 0) {  // the teacher's experts may be on all ranks: they ask together
      const std::vector<TeacherRecord> records = ask_teacher(batches[i]);
      for (std::size_t s = 0; s < records.size(); ++s) {
        if (found[i][s]) continue;
        cache_->add(keys[i][s], records[s]);
        found[i][s] = records[s];
      }
    }
    Batch& batch = batches[i];
    const auto tokens = static_cast<std::int64_t>(batch.tokens.size()), top_k = config_.cache->top_k;
    HostTensor indices(DType::i32, {tokens, top_k}), log_probs(DType::f32, {tokens, top_k});
    HostTensor tail(DType::f32, {tokens}), target(DType::f32, {tokens});
    for (std::size_t s = 0; s < found[i].size(); ++s) {
      const TeacherRecord& r = *found[i][s];
      const std::size_t first = s * length, width = r.indices.size();
      std::copy(r.indices.begin(), r.indices.end(),
                indices.values<std::int32_t>().begin() + static_cast<std::ptrdiff_t>(s * width));
      r.distributions(log_probs.values<float>().subspan(s * width, width),
                      tail.values<float>().subspan(first, length));
      std::copy(r.target_log_prob.begin(), r.target_log_prob.end(),
                target.values<float>().begin() + static_cast<std::ptrdiff_t>(first));
    }
    batch.more = {{std::string(kCachedIndices), std::move(indices)},
                  {std::string(kCachedLogProbs), std::move(log_probs)},
                  {std::string(kCachedLogTail), std::move(tail)},
                  {std::string(kCachedTargetLogProb), std::move(target)}};
  }
}

}  // namespace farskip
