// SPDX-License-Identifier: Apache-2.0
#include "distill/distill_objective.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "farskip/engine/engine.h"
#include "ops/collective_ops.h"
#include "passes/join_models.h"

namespace farskip {
namespace {

std::string contribution_name(std::size_t block) {
  return fmt::format("contribution.{}", block);
}

std::vector<std::string> contribution_names(const LayerGraph& layers) {
  std::vector<std::string> names;
  for (std::size_t i = 0; i + 1 < layers.blocks.size(); ++i) names.push_back(contribution_name(i));
  return names;
}

/// The layers behind whose blocks the teacher's stream is what differences are measured by.
std::vector<std::int64_t> all_layers(const ModelConfig& config) {
  std::vector<std::int64_t> layers(static_cast<std::size_t>(config.num_layers));
  std::iota(layers.begin(), layers.end(), 0);
  return layers;
}

LowerOptions hidden_options(const LowerOptions& options, std::vector<std::int64_t> streams) {
  LowerOptions hidden = options;
  hidden.head = HeadOutput::hidden;
  hidden.streams = std::move(streams);
  return hidden;
}

/// A forward graph that ends before the head, as the first half of an objective's.
JoinedModels student_alone(const Graph& student) {
  return join_models(student, Graph(), [](std::string_view name) { return std::string(name); });
}

/// Counts of rows and overflow, and the balance loss, leave the graph as those of a plain forward do.
void add_common_outputs(JoinedModels& joined) {
  const std::string overflow = teacher_name("row_overflow.");
  for (const auto& [name, value] : joined.values) {
    if (name == "balance_loss" || name.starts_with("expert_offsets.") || name.starts_with("row_overflow."))
      joined.graph.add_output(name, value);
    if (name.starts_with(overflow))
      joined.graph.add_output(fmt::format("row_overflow.{}", teacher_name(name.substr(overflow.size()))),
                              value);
  }
}

void add_loss_outputs(Graph& graph, const ops::DistillResult& loss) {
  graph.add_output("loss_sum", loss.loss_sum);
  graph.add_output("distill_stats", loss.stats);
}

/// Room for a teacher's routed rows as there is for the student's, in the ratio of their choices.
StepSharding teacher_sharding(const StepSharding& sharding, const ModelConfig& student,
                              const ModelConfig& teacher, const LowerOptions& options) {
  StepSharding out = sharding;
  const std::int64_t all = options.batch * options.sequence_length * teacher.moe.top_k;
  const std::int64_t ours = student.moe.num_experts > 0 ? student.moe.top_k : 0;
  out.max_rows = ours == 0 ? all : std::min(all, (sharding.max_rows * teacher.moe.top_k + ours - 1) / ours);
  return out;
}

Scope head_scope() {
  return {0, 0, -1, SubBlock::head, Phase::forward};
}

/// The tensor that the head multiplies with, as graphs that compute in `compute` read it.
std::string read_head_name(const ModelConfig& config, DType compute) {
  const std::string name(head_name(config));
  return is_low(compute) ? compute_copy_name(name) : name;
}

// ---- vocabularies that are cut over the axis tensor

ops::Replicas over_parts(const MeshPosition& mesh) {
  return {.axis = MeshAxis::tensor, .size = mesh.tensor_size, .rank = mesh.rank(MeshAxis::tensor)};
}

/// Each rank gives tensors of the same shapes → those of all ranks, one below the other.
std::vector<ValueId> gather_parts(Builder& b, std::vector<ValueId> parts, const MeshPosition& mesh) {
  ops::Replicas attributes = over_parts(mesh);
  for (const ValueId part : parts)
    attributes.add(cut_evenly(MeshAxis::tensor, mesh.tensor_size * b.shape(part)[0], mesh.tensor_size));
  return ops::all_gather(b, std::move(parts), attributes);
}

/// A head for losses that compare whole rows of logits: every rank computes them all.
ValueId whole_head(Builder& b, ValueId head, std::int64_t vocab_size, const MeshPosition& mesh) {
  if (mesh.tensor_size == 1) return head;
  if (vocab_size % mesh.tensor_size != 0)
    throw UsageError(fmt::format(
        "parallel.tensor is {}, which does not divide the vocabulary of {}; distill.loss.jsd, distill.top_k "
        "and distill.cache need that",
        mesh.tensor_size, vocab_size));
  return gather_parts(b, {head}, mesh)[0];
}

/// What a loss of distillation reads.
struct HeadPair {
  ValueId h, w, teacher_h, teacher_w, targets;
};

ops::DistillResult distill_loss_of_parts(Builder& b, const HeadPair& in, const ops::DistillLoss& loss,
                                         std::int64_t vocab_size, const MeshPosition& mesh) {
  const ops::JointParts parts{b.shape(in.w)[0]};
  const ValueId h = ops::fan_out(b, {in.h}, over_parts(mesh))[0];
  const ops::DistillStats own =
      ops::distill_stats(b, h, in.w, in.teacher_h, in.teacher_w, in.targets,
                         {loss, {parts.rows * mesh.rank(MeshAxis::tensor), vocab_size}});
  const std::vector<ValueId> all = gather_parts(b, {own.sums, own.fixed}, mesh);
  return ops::joint_distill_loss(b, {all[0], all[1]}, in.targets, {loss, parts});
}

ops::DistillResult distill_loss(Builder& b, const HeadPair& in, const ops::DistillLoss& loss,
                                std::int64_t vocab_size, const MeshPosition& mesh) {
  if (mesh.tensor_size > 1 && loss.jsd == 0 && loss.top_k == 0)
    return distill_loss_of_parts(b, in, loss, vocab_size, mesh);
  return ops::distill_loss(b, in.h, whole_head(b, in.w, vocab_size, mesh), in.teacher_h,
                           whole_head(b, in.teacher_w, vocab_size, mesh), in.targets, loss);
}

}  // namespace

DistillObjective::DistillObjective(DistillTerms terms, Teacher teacher, std::shared_ptr<const States> states,
                                   std::shared_ptr<const StepObjective> first_stage)
    : terms_(std::move(terms)),
      teacher_(std::move(teacher)),
      states_(std::move(states)),
      first_stage_(std::move(first_stage)) {}

std::vector<std::string> DistillObjective::terms() const {
  std::vector<std::string> names;
  if (terms_.hidden_loss.weight > 0) names.emplace_back("sum.hidden_loss");
  if (terms_.router_agreement > 0) names.emplace_back("sum.router_agreement");
  if (terms_.local) names.emplace_back("sum.local_loss");
  return names;
}

PassPipeline DistillObjective::forward(const Model& model, const LowerOptions& options,
                                       const StepSharding& sharding) const {
  std::vector<std::int64_t> compared;
  if (terms_.hidden_loss.weight > 0)
    for (const auto& [own, other] : terms_.hidden) compared.push_back(own);
  LowerOptions hidden = hidden_options(options, std::move(compared));
  hidden.contributions = terms_.local;
  PassPipeline pipeline = forward_pipeline(model, hidden, sharding);
  pipeline.passes.push_back(
      {"join_models", [=, this](const Graph& student) { return join(student, model, options, sharding); }});
  return pipeline;
}

Graph DistillObjective::join(const Graph& student_graph, const Model& student_model,
                             const LowerOptions& options, const StepSharding& sharding) const {
  const ModelConfig &student = student_model.config, &teacher = teacher_.model.config;
  std::vector<std::int64_t> compared;
  if (terms_.hidden_loss.weight > 0)
    for (const auto& [own, other] : terms_.hidden) compared.push_back(other);
  if (terms_.local) compared = all_layers(teacher);
  LowerOptions teacher_options = hidden_options(options, std::move(compared));
  teacher_options.contributions = terms_.local;
  teacher_options.balance_loss = false;
  JoinedModels joined = join_models(
      student_graph,
      build_graph(forward_pipeline(teacher_.model, teacher_options,
                                   teacher_sharding(sharding, student, teacher, options))),
      [&](std::string_view name) { return teacher_.external_name(name); },
      terms_.local ? contribution_names(student_model.layers) : std::vector<std::string>());
  Graph& graph = joined.graph;
  const auto parameter = [&](const std::string& name) { return *graph.find_external(name); };
  Builder b{graph, head_scope()};
  add_loss_outputs(
      graph, distill_loss(b,
                          {joined.values.at("hidden"), parameter(read_head_name(student, options.dtype)),
                           joined.values.at(teacher_name("hidden")),
                           parameter(teacher_.external_name(read_head_name(teacher, options.dtype))),
                           *graph.find_external("targets")},
                          terms_.loss, student.vocab_size, sharding.mesh));
  compare_streams(graph, joined.values, options.sequence_length);
  if (terms_.local)
    compare_contributions(graph, joined.values, student_model.layers, options.sequence_length);
  compare_routers(graph, joined.values, student);
  add_common_outputs(joined);
  return std::move(joined.graph);
}

namespace {

ValueId find(const std::map<std::string, ValueId, std::less<>>& values, const std::string& name) {
  const auto it = values.find(name);
  return it == values.end() ? ValueId() : it->second;
}

void add_term(Builder& b, ValueId& sum, ValueId term) {
  sum = sum ? ops::add(b, sum, term) : term;
}

/// How two streams differ, as the kind says; `weight` times a mean over the elements of each token.
ValueId stream_difference(Builder& b, HiddenLossKind kind, ValueId student, ValueId teacher, ValueId targets,
                          double weight, std::int64_t sequence_length, ValueId factors) {
  if (kind == HiddenLossKind::normalised)
    factors = ops::relative_weights(b, teacher, sequence_length, factors);
  if (kind == HiddenLossKind::cosine) {
    // Of rows x and y with a mean square of 1, the mean of (x - y)² is 2 (1 - cosine).
    constexpr double eps = 1e-12;
    const ValueId ones = ops::ones(b, b.shape(student)[1]);
    student = ops::rms_norm(b, student, ones, eps);
    teacher = ops::rms_norm(b, teacher, ones, eps);
    weight /= 2.0;
  }
  return ops::squared_difference(b, student, teacher, targets, weight, factors);
}

}  // namespace

void DistillObjective::compare_streams(Graph& graph, const Values& values,
                                       std::int64_t sequence_length) const {
  if (terms_.hidden_loss.weight == 0) return;
  const ValueId targets = *graph.find_external("targets");
  const ValueId factors = terms_.hidden_loss.anneal == 0
                              ? ValueId()
                              : graph.add_external(ExternalKind::input, std::string(kHiddenFactors),
                                                   {DType::f32, graph.type(targets).shape, {}});
  Builder b{graph, head_scope()};
  ValueId sum;
  for (const auto& [own, other] : terms_.hidden) {
    b.scope = {0, 0, static_cast<std::int32_t>(own), SubBlock::none, Phase::forward};
    add_term(b, sum,
             stream_difference(b, terms_.hidden_loss.kind, find(values, fmt::format("stream.{}", own)),
                               find(values, teacher_name(fmt::format("stream.{}", other))), targets,
                               terms_.hidden_loss.weight / static_cast<double>(terms_.hidden.size()),
                               sequence_length, factors));
  }
  graph.add_output("sum.hidden_loss", sum);
}

/// Relative to the teacher's stream behind the layer, as the normalised hidden loss: errors add up in the
/// stream. Before the layers it is the embedding alone.
void DistillObjective::compare_contributions(Graph& graph, const Values& values, const LayerGraph& layers,
                                             std::int64_t sequence_length) const {
  const ValueId targets = *graph.find_external("targets");
  Builder b{graph, head_scope()};
  std::map<int, ValueId> factors;  // by layer
  ValueId sum;
  const std::size_t count = layers.blocks.size() - 1;
  for (std::size_t i = 0; i < count; ++i) {
    const int layer = layers.blocks[i].layer;
    const ValueId teacher = find(values, teacher_name(contribution_name(i)));
    b.scope = {0, 0, layer, SubBlock::none, Phase::forward};
    ValueId& factor = factors[layer];
    if (!factor) {
      const ValueId stream = find(values, teacher_name(fmt::format("stream.{}", layer)));
      factor = ops::relative_weights(b, stream ? stream : teacher, sequence_length);
    }
    add_term(b, sum,
             ops::squared_difference(b, find(values, contribution_name(i)), teacher, targets,
                                     1.0 / static_cast<double>(count), factor));
  }
  graph.add_output("sum.local_loss", sum);
}

void DistillObjective::compare_routers(Graph& graph, const Values& values, const ModelConfig& student) const {
  const ValueId targets = *graph.find_external("targets");
  Builder b{graph, head_scope()};
  ValueId routers;
  std::vector<std::int32_t> moe;
  for (std::int32_t layer = 0; layer < student.num_layers; ++layer) {
    const ValueId theirs = find(values, teacher_name(fmt::format("router_choice.{}", layer)));
    const ValueId ours = find(values, fmt::format("router_choice.{}", layer));
    if (ours && theirs && graph.type(ours) == graph.type(theirs)) moe.push_back(layer);
  }
  for (const std::int32_t layer : moe) {
    b.scope = {0, 0, layer, SubBlock::none, Phase::forward};
    graph.add_output(fmt::format("sum.routing_flips.{}", layer),
                     ops::count_routing_flips(
                         b, find(values, fmt::format("router_choice.{}", layer)),
                         find(values, teacher_name(fmt::format("router_choice.{}", layer))), targets));
    if (terms_.router_agreement > 0)
      add_term(b, routers,
               ops::router_divergence(b, find(values, fmt::format("router_logits.{}", layer)),
                                      find(values, teacher_name(fmt::format("router_logits.{}", layer))),
                                      targets, terms_.router_agreement / static_cast<double>(moe.size())));
  }
  if (routers) graph.add_output("sum.router_agreement", routers);
}

void DistillObjective::add_hidden_factors(Batch& batch, double factor) const {
  if (terms_.hidden_loss.weight == 0 || terms_.hidden_loss.anneal == 0) return;
  HostTensor factors(DType::f32, {static_cast<std::int64_t>(batch.tokens.size())});
  std::fill(factors.values<float>().begin(), factors.values<float>().end(), static_cast<float>(factor));
  batch.objective_inputs.insert_or_assign(std::string(kHiddenFactors), std::move(factors));
}

PassPipeline CachedDistillObjective::forward(const Model& model, const LowerOptions& options,
                                             const StepSharding& sharding) const {
  PassPipeline pipeline = forward_pipeline(model, hidden_options(options, {}), sharding);
  pipeline.passes.push_back({"add_loss", [=, this](const Graph& student) {
                               return add_loss(student, model.config, options, sharding.mesh);
                             }});
  return pipeline;
}

Graph CachedDistillObjective::add_loss(const Graph& student, const ModelConfig& config,
                                       const LowerOptions& options, const MeshPosition& mesh) const {
  JoinedModels joined = student_alone(student);
  Graph& graph = joined.graph;
  const std::int64_t tokens = options.batch * options.sequence_length;
  const auto input = [&](std::string_view name, DType dtype, Shape shape) {
    return graph.add_external(ExternalKind::input, std::string(name), {dtype, std::move(shape), {}});
  };
  ops::TeacherTopK teacher;
  teacher.indices = input(kCachedIndices, DType::i32, {tokens, loss_.top_k});
  teacher.log_probs = input(kCachedLogProbs, DType::f32, {tokens, loss_.top_k});
  teacher.log_tail = input(kCachedLogTail, DType::f32, {tokens});
  teacher.target_log_prob = input(kCachedTargetLogProb, DType::f32, {tokens});
  Builder b{graph, head_scope()};
  const ValueId head = *graph.find_external(read_head_name(config, options.dtype));
  add_loss_outputs(graph, ops::cached_distill_loss(b, joined.values.at("hidden"),
                                                   whole_head(b, head, config.vocab_size, mesh), teacher,
                                                   *graph.find_external("targets"), loss_));
  add_common_outputs(joined);
  return std::move(joined.graph);
}

void CachedDistillObjective::complete_random_batch(Batch& batch) const {
  const auto tokens = static_cast<std::int64_t>(batch.tokens.size());
  const auto fill = [&](std::string_view name, Shape shape, float value) {
    HostTensor tensor(DType::f32, std::move(shape));
    std::fill(tensor.values<float>().begin(), tensor.values<float>().end(), value);
    batch.objective_inputs[std::string(name)] = std::move(tensor);
  };
  HostTensor indices(DType::i32, {tokens, loss_.top_k});
  for (std::size_t i = 0; i < indices.values<std::int32_t>().size(); ++i)
    indices.values<std::int32_t>()[i] = static_cast<std::int32_t>(i % static_cast<std::size_t>(loss_.top_k));
  batch.objective_inputs[std::string(kCachedIndices)] = std::move(indices);
  const auto even = static_cast<float>(-std::log(static_cast<double>(loss_.top_k + 1)));
  fill(kCachedLogProbs, {tokens, loss_.top_k}, even);
  fill(kCachedLogTail, {tokens}, even);
  fill(kCachedTargetLogProb, {tokens}, even);
}

PassPipeline teacher_pipeline(const Teacher& teacher, const LowerOptions& options,
                              const StepSharding& sharding, const ops::KeepTopK& keep) {
  PassPipeline pipeline = forward_pipeline(teacher.model, hidden_options(options, {}), sharding);
  pipeline.name = "teacher";
  const std::string head = read_head_name(teacher.model.config, options.dtype);
  pipeline.passes.push_back(
      {"keep_top_k", [=](const Graph& alone) {
         JoinedModels joined =
             join_models(Graph(), alone, [](std::string_view name) { return std::string(name); });
         Graph& graph = joined.graph;
         Scope scope = head_scope();
         scope.model = 1;
         Builder b{graph, scope};
         const ops::TeacherTopK kept = ops::teacher_top_k(
             b, joined.values.at(teacher_name("hidden")),
             whole_head(b, *graph.find_external(head), teacher.model.config.vocab_size, sharding.mesh),
             *graph.find_external("targets"), keep);
         graph.add_output(std::string(kCachedIndices), kept.indices);
         graph.add_output(std::string(kCachedLogProbs), kept.log_probs);
         graph.add_output(std::string(kCachedLogTail), kept.log_tail);
         graph.add_output(std::string(kCachedTargetLogProb), kept.target_log_prob);
         return std::move(joined.graph);
       }});
  return pipeline;
}

}  // namespace farskip
