// SPDX-License-Identifier: Apache-2.0
#include "distill/kept_teacher.h"

#include <algorithm>
#include <exception>
#include <span>

#include "comm/collective_errors.h"
#include "distill/distill_objective.h"
#include "engine/devices.h"
#include "tensor/hash.h"

namespace farskip {
namespace {

/// Steps without a missing sequence after which the teacher's memory is given back. Loading it again takes as
/// long as a few steps.
constexpr int kIdleSteps = 50;

/// Every byte of a model's configuration and weights.
std::string hash_model(const fs::path& folder) {
  Hasher hasher;
  hasher.update(hash_file(folder / "config.json"));
  const SafetensorsFolder weights(folder);
  for (const SafetensorsFile& file : weights.files()) hasher.update(file.hash());
  return hasher.hex();
}

/// Rank 0 makes the folder, the others find it. Collective; all ranks throw together.
std::unique_ptr<TeacherCache> open_cache(const DistillConfig& config, std::int64_t sequence_length,
                                         std::int64_t vocab_size, const Communicator& world,
                                         const Logger& logger) {
  std::string teacher;
  run_together(world, [&] {
    if (world.rank() == 0) teacher = hash_model(config.teacher);
  });
  const TeacherCacheIdentity identity{all_gather_text(world, teacher)[0], sequence_length,
                                      config.cache->top_k, vocab_size, config.temperature};
  std::unique_ptr<TeacherCache> cache;
  for (const bool first : {true, false})
    run_together(world, [&] {
      if ((world.rank() == 0) == first)
        cache = std::make_unique<TeacherCache>(config.cache->path, identity, world.rank(), logger);
    });
  return cache;
}

/// The records of a batch as tensors. `length`: tokens of a sequence.
std::map<std::string, HostTensor> as_inputs(const std::vector<std::optional<TeacherRecord>>& records,
                                            std::size_t length, std::int64_t top_k, double temperature) {
  const auto tokens = static_cast<std::int64_t>(records.size() * length);
  HostTensor indices(DType::i32, {tokens, top_k}), log_probs(DType::f32, {tokens, top_k});
  HostTensor tail(DType::f32, {tokens}), target(DType::f32, {tokens});
  for (std::size_t s = 0; s < records.size(); ++s) {
    const TeacherRecord& r = *records[s];
    const std::size_t width = r.indices.size();
    std::copy(r.indices.begin(), r.indices.end(),
              indices.values<std::int32_t>().subspan(s * width, width).begin());
    r.distributions(temperature, log_probs.values<float>().subspan(s * width, width),
                    tail.values<float>().subspan(s * length, length));
    std::copy(r.target_log_prob.begin(), r.target_log_prob.end(),
              target.values<float>().subspan(s * length, length).begin());
  }
  std::map<std::string, HostTensor> inputs;
  inputs.emplace(kCachedIndices, std::move(indices));
  inputs.emplace(kCachedLogProbs, std::move(log_probs));
  inputs.emplace(kCachedLogTail, std::move(tail));
  inputs.emplace(kCachedTargetLogProb, std::move(target));
  return inputs;
}

}  // namespace

/// The teacher without a student: its graph for records, and an engine.
class KeptTeacher::StandaloneTeacher {
 public:
  StandaloneTeacher(Teacher teacher, const fs::path& folder, const KeptTeacher& owner)
      : owner_(owner),
        teacher_(std::move(teacher)),
        context_(owner.context_.with_own_arena()),
        states_(load_states(folder)),
        runner_(context_, {states_}) {
    stage();  // its memory is taken now
  }

  InferenceEngine& engine() {
    if (!engine_) engine_.emplace(teacher_.model, states_, context_);
    return *engine_;
  }

  /// One record a sequence.
  std::vector<TeacherRecord> ask(const Batch& batch) {
    Stage& said = stage();
    said.set_batch(batch);
    runner_.run(said);
    const auto read = [&](std::string_view name) { return said.read(name); };
    const HostTensor indices = read(kCachedIndices), log_probs = read(kCachedLogProbs),
                     log_tail = read(kCachedLogTail), target_log_prob = read(kCachedTargetLogProb);
    const std::int64_t top_k = owner_.config_.cache->top_k;
    std::vector<TeacherRecord> records;
    for (std::int64_t s = 0; s < owner_.micro_batch_; ++s)
      records.push_back({rows<std::int32_t>(indices, s, top_k),
                         TeacherRecord::round(rows<float>(log_probs, s, top_k),
                                              static_cast<std::size_t>(top_k), owner_.config_.temperature),
                         rows<float>(log_tail, s, 1), rows<float>(target_log_prob, s, 1)});
    return records;
  }

 private:
  std::shared_ptr<const States> load_states(const fs::path& folder) const {
    const auto model = list_parameters(teacher_.model.config);
    auto states = std::make_shared<States>(
        context_.device(),
        constant_states(local_parameters(model, context_.mesh.position(), teacher_.zero), owner_.compute_));
    load_weights(*states, model, SafetensorsFolder(folder));
    return states;
  }

  Stage& stage() {
    return runner_.stage("teacher", [&] { return pipeline(); }, {});
  }

  PassPipeline pipeline() const {
    LowerOptions lowering;
    lowering.batch = owner_.micro_batch_;
    lowering.sequence_length = owner_.sequence_length_;
    lowering.document_mask = owner_.document_mask_;
    lowering.dtype = owner_.compute_;
    const StepSharding sharding{
        context_.mesh.position(), false,
        owner_.micro_batch_ * owner_.sequence_length_ * teacher_.model.config.moe.top_k};
    return teacher_pipeline(teacher_, lowering, sharding,
                            {owner_.config_.cache->top_k, owner_.config_.temperature});
  }

  /// Rows of an output [T, width] that belong to a sequence.
  template <class T>
  std::vector<T> rows(const HostTensor& from, std::int64_t sequence, std::int64_t width) const {
    const std::int64_t count = owner_.sequence_length_ * width;
    const T* data = from.view().as<const T>() + sequence * count;
    return {data, data + count};
  }

  const KeptTeacher& owner_;
  Teacher teacher_;
  Context context_;
  std::shared_ptr<const States> states_;
  ProgramRunner runner_;
  std::optional<InferenceEngine> engine_;
};

KeptTeacher::KeptTeacher(const RunConfig& config, std::int64_t vocab_size, const Context& context)
    : config_(*config.distill),
      micro_batch_(config.train.micro_batch),
      sequence_length_(config.train.sequence_length),
      document_mask_(config.data.document_mask),
      compute_(compute_type(config.precision)),
      zero_(static_cast<int>(config.parallel.zero)),
      context_(context),
      cache_(open_cache(config_, sequence_length_, vocab_size, context.world(), context.logger)) {
  context_.logger.info("{}: holds outputs of this teacher for {} sequences", config_.cache->path,
                       cache_->size());
}

KeptTeacher::~KeptTeacher() = default;

KeptTeacher::StandaloneTeacher& KeptTeacher::alone() {
  if (alone_) return *alone_;
  Teacher teacher = open_teacher(config_.teacher, context_);
  teacher.zero = zero_;
  alone_ = std::make_unique<StandaloneTeacher>(std::move(teacher), config_.teacher, *this);
  return *alone_;
}

InferenceEngine& KeptTeacher::engine() {
  return alone().engine();
}

void KeptTeacher::note_use(bool used) {
  steps_without_use_ = used ? 0 : steps_without_use_ + 1;
  if (!alone_ || steps_without_use_ < kIdleSteps) return;
  context_.mesh.forget_device_addresses();  // before memory is given back that peers have open
  alone_.reset();
  context_.logger.info("the teacher was not needed for {} steps; its memory is released", kIdleSteps);
}

std::vector<std::string> KeptTeacher::keys_of(const Batch& batch) const {
  const auto length = static_cast<std::size_t>(sequence_length_);
  const auto part = [&](const std::vector<std::int32_t>& values, std::size_t s) {
    return values.empty() ? std::span<const std::int32_t>() : std::span(values).subspan(s * length, length);
  };
  std::vector<std::string> keys;
  for (std::size_t s = 0; s * length < batch.tokens.size(); ++s)
    keys.push_back(
        TeacherCache::key_of(part(batch.tokens, s), part(batch.targets, s), part(batch.document_start, s)));
  return keys;
}

bool KeptTeacher::find_records(Known& known) const {
  bool all = true;
  for (std::size_t s = 0; s < known.keys.size(); ++s) {
    if (!known.records[s]) known.records[s] = cache_->find(known.keys[s]);
    all = all && known.records[s];
  }
  return all;
}

// The teacher's experts may be on all ranks: they ask together, and fail together.
void KeptTeacher::ask(const Batch& batch, Known& known) {
  std::vector<TeacherRecord> said = alone().ask(batch);
  run_together(context_.world(), [&] {
    for (std::size_t s = 0; s < said.size(); ++s) {
      if (known.records[s]) continue;
      if (context_.mesh.position().counts_sequences()) cache_->add(known.keys[s], said[s]);
      known.records[s] = std::move(said[s]);
    }
  });
}

void KeptTeacher::complete(std::vector<Batch>& batches) {
  std::vector<Known> known;
  bool all = true;
  for (const Batch& batch : batches) {
    Known& k = known.emplace_back();
    k.keys = keys_of(batch);
    k.records.resize(k.keys.size());
    all = find_records(k) && all;
  }
  if (!all) cache_->refresh();
  std::vector<double> missing;  // ranks that miss something, by micro-batch
  for (Known& k : known) missing.push_back(find_records(k) ? 0.0 : 1.0);
  {
    const HeartbeatWait wait(context_.heartbeat, "cached outputs of the teacher");
    context_.world().all_reduce(std::span(missing));
  }
  for (std::size_t i = 0; i < batches.size(); ++i) {
    if (missing[i] > 0) ask(batches[i], known[i]);
    batches[i].objective_inputs = as_inputs(known[i].records, static_cast<std::size_t>(sequence_length_),
                                            config_.cache->top_k, config_.temperature);
  }
  note_use(std::any_of(missing.begin(), missing.end(), [](double ranks) { return ranks > 0; }));
}

}  // namespace farskip
