// SPDX-License-Identifier: Apache-2.0
#include "distill/distill_setup.h"

#include <algorithm>

#include "distill/freeze.h"

namespace farskip {
namespace {

void check_fit(const DistillConfig& config, const ModelConfig& student, const ModelConfig& teacher) {
  if (student.vocab_size != teacher.vocab_size)
    throw UsageError(
        fmt::format("the teacher {} has {} tokens in its vocabulary, the student {}; they must be the same "
                    "tokens",
                    config.teacher, teacher.vocab_size, student.vocab_size));
  const std::int64_t top_k = config.cache ? config.cache->top_k : config.top_k;
  if (top_k > teacher.vocab_size)
    throw UsageError(fmt::format("{} is {}, and the vocabulary has {} tokens; use at most that, or 0 for all",
                                 config.cache ? "distill.cache.top_k" : "distill.top_k", top_k,
                                 teacher.vocab_size));
  if (config.hidden_loss.weight > 0 && student.hidden_size != teacher.hidden_size)
    throw UsageError(fmt::format(
        "distill.hidden_loss compares hidden states of {} and {} elements; leave it out with this teacher",
        student.hidden_size, teacher.hidden_size));
  if (config.local_share > 0) {
    const auto blocks = [](const ModelConfig& model) {
      std::vector<std::pair<int, SubBlock>> list;
      for (const LayerBlock& block : build_layer_graph(model).blocks)
        list.emplace_back(block.layer, block.kind);
      return list;
    };
    if (student.hidden_size != teacher.hidden_size || blocks(student) != blocks(teacher))
      throw UsageError(fmt::format(
          "distill.local_stage trains each block to add what the teacher's block adds, and {} has other "
          "layers or another hidden size than the student; leave it out with this teacher",
          config.teacher));
  }
  const MoeConfig &ours = student.moe, &theirs = teacher.moe;
  if (config.router_agreement > 0 && (ours.num_experts != theirs.num_experts || ours.top_k != theirs.top_k))
    throw UsageError(
        fmt::format("distill.router_agreement compares routers that choose {} of {} experts and {} of {}; "
                    "use 0 with this "
                    "teacher",
                    ours.top_k, ours.num_experts, theirs.top_k, theirs.num_experts));
}

/// Which layers the hidden loss compares.
std::vector<std::pair<std::int64_t, std::int64_t>> compared_layers(const DistillConfig& config,
                                                                   const ModelConfig& student,
                                                                   const ModelConfig& teacher) {
  std::vector<std::pair<std::int64_t, std::int64_t>> pairs;
  if (config.hidden_loss.weight == 0) return pairs;
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

}  // namespace

DistillSetup read_distill_setup(const RunConfig& config) {
  return {*config.distill, read_hub_config(config.distill->teacher),
          config.model.kind == ConfigNode::Kind::null &&
              (config.init_from.empty() || config.init_from == config.distill->teacher)};
}

DistillTerms make_terms(const DistillConfig& config, const ModelConfig& student, const ModelConfig& teacher) {
  check_fit(config, student, teacher);
  return {{.kl = config.loss.kl,
           .reverse_kl = config.loss.reverse_kl,
           .jsd = config.loss.jsd,
           .sft = config.loss.sft,
           .temperature = config.temperature,
           .top_k = config.cache ? config.cache->top_k : config.top_k},
          config.hidden_loss,
          compared_layers(config, student, teacher),
          config.router_agreement};
}

DistillTerms local_terms(const DistillTerms& terms) {
  DistillTerms local;
  local.loss = terms.loss;
  local.local = true;
  return local;
}

std::set<std::string> shared_parameters(const DistillSetup& setup, const ModelConfig& student) {
  std::set<std::string> shared;
  if (!setup.from_teacher || setup.config.cache) return shared;
  const std::set<std::string> frozen = frozen_parameters(setup.config.freeze, student);
  const std::vector<ParameterSpec> theirs = list_parameters(setup.teacher);
  for (const ParameterSpec& mine : list_parameters(student))
    if (frozen.contains(mine.name) && std::any_of(theirs.begin(), theirs.end(), [&](const ParameterSpec& p) {
          return p.name == mine.name && p.shape == mine.shape;
        }))
      shared.insert(mine.name);
  return shared;
}

Teacher plan_teacher(const DistillSetup& setup, const ModelConfig& student, int zero) {
  return {wire_model(setup.teacher), shared_parameters(setup, student), zero};
}

void add_distillation(TrainEngineOptions& options, const DistillSetup& setup, const ModelConfig& student,
                      const MakeTeacherStates& make_states) {
  const DistillTerms terms = make_terms(setup.config, student, setup.teacher);
  options.frozen = frozen_parameters(setup.config.freeze, student);
  if (setup.config.cache) {
    options.objective = std::make_shared<CachedDistillObjective>(terms.loss);
    return;
  }
  const Teacher teacher = plan_teacher(setup, student, options.zero);
  options.objective =
      std::make_shared<DistillObjective>(terms, teacher, make_states ? make_states(teacher) : nullptr);
}

std::shared_ptr<const StepObjective> open_comparison(const fs::path& folder, const ModelConfig& student,
                                                     DType compute, const Context& context) {
  DistillConfig config;
  config.teacher = folder.string();
  Teacher teacher = open_teacher(folder, context);
  const DistillTerms terms = make_terms(config, student, teacher.model.config);
  auto states = load_teacher_states(teacher, SafetensorsFolder(folder), compute, context);
  return std::make_shared<DistillObjective>(terms, std::move(teacher), std::move(states));
}

void add_random_distillation(TrainEngineOptions& options, const DistillSetup& setup,
                             const ModelConfig& student, const Context& context, std::uint64_t seed) {
  add_distillation(options, setup, student, [&](const Teacher& teacher) {
    return make_random_states(teacher, options.compute, context, seed);
  });
}

}  // namespace farskip
