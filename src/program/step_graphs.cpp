// SPDX-License-Identifier: Apache-2.0
#include "farskip/program/step_graphs.h"

#include <map>

#include "autograd/gradient.h"
#include "farskip/ops/optimizer_ops.h"
#include "farskip/passes/pipeline.h"
#include "farskip/program/objective.h"
#include "farskip/program/optimizer.h"
#include "ops/collective_ops.h"
#include "passes/chunk_experts.h"
#include "passes/gather_weights.h"
#include "passes/join_micro_batches.h"
#include "passes/merge_all_reduces.h"
#include "passes/recompute.h"
#include "passes/reduce_gradients.h"
#include "passes/shard_experts.h"
#include "state/state_names.h"

namespace farskip {

PassPipeline forward_pipeline(const Model& model, const LowerOptions& options, const StepSharding& sharding) {
  const ExpertSharding experts{.peers = sharding.mesh.exchange_size(),
                               .max_rows = sharding.max_rows,
                               .rows = options.batch * options.sequence_length * model.config.moe.top_k};
  const int chunks = sharding.mesh.exchange_size() > 1 ? sharding.expert_chunks : 1;
  LowerOptions here = options;
  here.mesh = sharding.mesh;
  return {"forward",
          {{"lower", [=](const Graph&) { return lower(model.config, model.layers, here); }},
           {"merge_all_reduces", merge_all_reduces},
           {"chunk_experts", [=](const Graph& graph) { return chunk_experts(graph, chunks); }},
           {"shard_experts", [=](const Graph& graph) { return shard_experts(graph, experts); }}}};
}

namespace {

std::set<SubBlock> recomputed_blocks(Recompute choice) {
  switch (choice) {
    case Recompute::none:
    case Recompute::automatic:  // not chosen yet
      return {};
    case Recompute::attention:
      return {SubBlock::attention};
    case Recompute::experts:
      return {SubBlock::routed, SubBlock::shared};
    case Recompute::full:
      return {SubBlock::attention, SubBlock::routed, SubBlock::shared, SubBlock::dense};
  }
  return {};
}

/// These gradients are added to what there is.
enum class Accumulate : std::uint8_t { none, whole, all };

/// This rank has no accumulator but that of its own rows.
bool is_reduced_at_once(const LocalParameter& p) {
  return p.zero >= 2 && p.owners.bounds.size() > 2;
}

/// Adds the backward, and the update of what gradients are summed up in.
Graph add_gradients(const Graph& forward, const std::vector<LocalParameter>& local,
                    const LowerOptions& options, const MicroBatchKind& kind, Accumulate accumulate) {
  Graph graph = forward;
  const DType sums = wide(options.dtype);
  const TensorType scalar{sums, Shape{1}, {}};
  const ValueId scale = graph.add_external(ExternalKind::input, std::string(kLossScale), scalar);
  std::vector<Objective> objectives{{*graph.find_output("loss_sum"), scale}};
  if (kind.objective != nullptr)
    for (const std::string& term : kind.objective->terms())
      objectives.push_back({*graph.find_output(term), scale});
  if (const auto balance = graph.find_output("balance_loss"))
    objectives.push_back(
        {*balance, graph.add_external(ExternalKind::input, std::string(kBalanceScale), scalar)});

  std::vector<ValueId> parameters, accumulators;
  for (const LocalParameter& p : local) {
    const std::string name = gradient_name(p.spec.name);
    parameters.push_back(*graph.find_external(read_name(p.spec, options.dtype)));
    accumulators.push_back(graph.add_external(ExternalKind::state, name, {sums, p.spec.shape, {}}));
  }
  const std::vector<ValueId> gradients = differentiate(graph, objectives, parameters);
  for (std::size_t i = 0; i < local.size(); ++i) {
    FARSKIP_CHECK(gradients[i], "the loss does not depend on {}", local[i].spec.name);
    ValueId gradient = gradients[i];
    if (accumulate == Accumulate::all || (accumulate == Accumulate::whole && !is_reduced_at_once(local[i]))) {
      Builder b{graph, {0, 0, local[i].spec.layer, local[i].spec.block, Phase::backward}};
      gradient = ops::add(b, accumulators[i], gradient);
    }
    graph.add_update(accumulators[i], gradient);
  }
  return graph;
}

/// Adds to kFault what of this micro-batch is not to be learned from.
Graph note_fault(const Graph& micro_batch, const StepObjective* objective, bool accumulate) {
  Graph graph = micro_batch;
  Builder b{graph, {0, 0, -1, SubBlock::head, Phase::backward}};
  ValueId number = *graph.find_output("loss_sum");
  const ValueId fault = graph.add_external(ExternalKind::state, std::string(kFault), graph.type(number));
  if (objective != nullptr)
    for (const std::string& term : objective->terms()) number = ops::add(b, number, *graph.find_output(term));
  if (const auto balance = graph.find_output("balance_loss")) number = ops::add(b, number, *balance);
  if (accumulate) number = ops::add(b, fault, number);
  std::vector<ValueId> flags;
  for (const Output& o : graph.outputs())
    if (o.name.starts_with("row_overflow.")) flags.push_back(o.value);
  graph.add_update(fault, ops::find_fault(b, number, std::move(flags)));
  return graph;
}

/// One micro-batch, not yet summed over replicas.
PassPipeline gradient_pipeline(const Model& model, const std::vector<LocalParameter>& trained,
                               const LowerOptions& options, const StepSharding& sharding,
                               const MicroBatchKind& kind, Accumulate accumulate) {
  PassPipeline pipeline = objective_pipeline(kind.objective, model, options, sharding);
  pipeline.passes.push_back({"differentiate", [=](const Graph& graph) {
                               return add_gradients(graph, trained, options, kind, accumulate);
                             }});
  pipeline.passes.push_back(
      {"recompute", [blocks = recomputed_blocks(kind.recompute), again = kind.sends_again](
                        const Graph& graph) { return recompute(graph, blocks, again); }});
  pipeline.passes.push_back({"note_fault", [=](const Graph& graph) {
                               return note_fault(graph, kind.objective, accumulate != Accumulate::none);
                             }});
  return pipeline;
}

}  // namespace

std::shared_ptr<const States> objective_states(const std::shared_ptr<const StepObjective>& objective) {
  return {objective, objective ? objective->states() : nullptr};
}

PassPipeline objective_pipeline(const StepObjective* objective, const Model& model,
                                const LowerOptions& options, const StepSharding& sharding) {
  if (objective == nullptr) return forward_pipeline(model, options, sharding);
  return objective->forward(model, options, sharding);
}

PassPipeline micro_batch_pipeline(const Model& model, const std::vector<LocalParameter>& trained,
                                  const LowerOptions& options, const StepSharding& sharding,
                                  const MicroBatchKind& kind) {
  PassPipeline pipeline = gradient_pipeline(model, trained, options, sharding, kind,
                                            kind.accumulate ? Accumulate::whole : Accumulate::none);
  pipeline.name = fmt::format("micro-batch-{}x{}", options.batch, options.sequence_length);
  if (kind.in_flight > 1) pipeline.name += fmt::format("-{}-in-flight", kind.in_flight);
  if (sharding.expert_chunks > 1) pipeline.name += fmt::format("-{}-chunks", sharding.expert_chunks);
  if (kind.accumulate) pipeline.name += "-accumulate";
  if (kind.reduce) pipeline.name += "-reduce";
  if (kind.in_flight > 1)
    pipeline.passes.push_back({"join_micro_batches", [=](const Graph& first) {
                                 const Graph next = build_graph(gradient_pipeline(
                                     model, trained, options, sharding, kind, Accumulate::all));
                                 Graph joined = first;
                                 for (int i = 1; i < kind.in_flight; ++i)
                                   joined = join_micro_batches(joined, next, i, {kLossScale, kBalanceScale});
                                 return joined;
                               }});
  if (!kind.reduce) return pipeline;
  std::vector<ReplicatedGradient> replicated;
  for (const LocalParameter& p : trained) replicated.push_back({gradient_name(p.spec.name), p.owners});
  const KeptSum kept = sharding.zero == 0   ? KeptSum::whole
                       : sharding.zero == 1 ? KeptSum::own_rows
                                            : KeptSum::accumulated_rows;
  pipeline.passes.push_back({"reduce_gradients", [=](const Graph& graph) {
                               return reduce_gradients(
                                   graph, replicated,
                                   {.mesh = sharding.mesh, .kept = kept, .accumulate = kind.accumulate});
                             }});
  return pipeline;
}

Pass gather_pass(const std::vector<StateSpec>& states, const MeshPosition& mesh) {
  std::vector<TensorInParts> tensors;
  for (const StateSpec& spec : states)
    if (spec.own_rows_only && (holds_parameter(spec) || spec.role == Role::compute_copy))
      tensors.push_back({spec.name, spec.parameter->owners});
  return {"gather_weights", [=](const Graph& graph) { return gather_weights(graph, tensors, mesh); }};
}

namespace {

TensorType matrix_type(const ParameterSpec& spec, std::int64_t rows, DType dtype = DType::f32) {
  return {dtype, shape_of_rows(spec.shape, rows), {}};
}

/// Whole tensors from the rows that each replica has, several in one message.
class Gatherer {
 public:
  Gatherer(Graph& graph, Builder& b, const MeshPosition& mesh) : graph_(graph), b_(b), mesh_(mesh) {}

  /// The whole of `part`, rows of a tensor of `p`'s shape, becomes the state `name`.
  void add(const LocalParameter& p, ValueId part, const std::string& name) {
    TensorType whole = matrix_type(p.spec, p.spec.num_rows(), graph_.type(part).dtype);
    const MeshAxis axis = p.owners.axis;
    Message& m = messages_[{axis, whole.dtype}];
    if (m.elements + p.spec.shape.num_elements() > kBucketElements) send(axis, m);
    m.elements += p.spec.shape.num_elements();
    m.parts.push_back(part);
    m.cuts.push_back(p.owners);
    m.wholes.push_back(graph_.add_external(ExternalKind::state, name, std::move(whole)));
  }
  void finish() {
    for (auto& [key, message] : messages_) send(key.first, message);
  }

 private:
  static constexpr std::int64_t kBucketElements = std::int64_t{1} << 20;
  struct Message {
    std::vector<ValueId> parts, wholes;
    std::vector<RowCut> cuts;
    std::int64_t elements = 0;
  };

  void send(MeshAxis axis, Message& m) {
    if (m.parts.empty()) return;
    b_.scope.layer = -1;
    ops::Replicas attributes{.axis = axis, .size = mesh_.size(axis), .rank = mesh_.rank(axis)};
    for (const RowCut& cut : m.cuts) attributes.add(cut);
    const auto gathered = ops::all_gather(b_, m.parts, attributes);
    for (std::size_t i = 0; i < gathered.size(); ++i) graph_.add_update(m.wholes[i], gathered[i]);
    m = {};
  }

  Graph& graph_;
  Builder& b_;
  MeshPosition mesh_;
  std::map<std::pair<MeshAxis, DType>, Message> messages_;
};

bool has_copy(const ParameterSpec& spec, DType compute) {
  return is_low(compute) && spec.has_compute_copy();
}
/// What graphs read of it is whole, and only its own rows are updated here.
bool is_gathered(const LocalParameter& p, const StepSharding& sharding) {
  return sharding.zero > 0 && sharding.mesh.size(p.owners.axis) > 1 &&
         !(sharding.zero >= 3 && p.spec.has_compute_copy());
}

/// What micro-batches read of a parameter that has changed in its own rows: of one with a copy that alone.
class Publisher {
 public:
  Publisher(Graph& graph, Builder& b, const StepSharding& sharding, DType compute)
      : graph_(graph), sharding_(sharding), compute_(compute), gatherer_(graph, b, sharding.mesh) {}

  bool copies(const LocalParameter& p) const { return has_copy(p.spec, compute_); }
  /// `low_copy`: of the weight, where copies(p).
  void add(const LocalParameter& p, ValueId weight, ValueId low_copy) {
    const std::string copy = compute_copy_name(p.spec.name);
    if (copies(p))
      graph_.add_update(graph_.add_external(ExternalKind::state, own_rows_name(copy),
                                            matrix_type(p.spec, p.own_rows.count, compute_)),
                        low_copy);
    if (!is_gathered(p, sharding_)) return;
    if (copies(p))
      gatherer_.add(p, low_copy, copy);
    else
      gatherer_.add(p, weight, p.spec.name);
  }
  void finish() { gatherer_.finish(); }

 private:
  Graph& graph_;
  const StepSharding& sharding_;
  const DType compute_;
  Gatherer gatherer_;
};

class UpdateGraph {
 public:
  UpdateGraph(const std::vector<LocalParameter>& parameters, const StepSharding& sharding,
              const Optimizer& optimizer, DType compute, double average_decay)
      : parameters_(parameters),
        sharding_(sharding),
        optimizer_(optimizer),
        average_decay_(average_decay),
        publisher_(graph_, b_, sharding, compute) {}

  Graph run() {
    for (const LocalParameter& p : parameters_) {
      const auto state = [&](const std::string& name, DType dtype = DType::f32) {
        return own_state(p, name, dtype);
      };
      OptimizedWeight& now = weights_.emplace_back();
      now.weight = state(own_rows_name(p.spec.name));
      for (const std::string& kind : optimizer_.states(p.spec))
        now.states.push_back(state(state_name(kind, p.spec.name), optimizer_.state_dtype()));
      gradients_.push_back(state(own_rows_name(gradient_name(p.spec.name))));
    }
    const ValueId hyper = graph_.add_external(
        ExternalKind::input, std::string(kHyper),
        {DType::f32, Shape{static_cast<std::int64_t>(std::tuple_size_v<Optimizer::Hyper>)}, {}});
    const auto [norm, factor] = ops::clip_factor(b_, sums_of_squares(), optimizer_.clip_grad_norm());
    graph_.add_output("grad_norm", norm);
    for (std::size_t i = 0; i < parameters_.size(); ++i)
      update(parameters_[i], weights_[i], gradients_[i], factor, hyper);
    publisher_.finish();
    return std::move(graph_);
  }

 private:
  const MeshPosition& mesh() const { return sharding_.mesh; }

  ValueId own_state(const LocalParameter& p, const std::string& name, DType dtype = DType::f32) {
    return graph_.add_external(ExternalKind::state, name, matrix_type(p.spec, p.own_rows.count, dtype));
  }

  /// Over which ranks this rank's rows of a gradient are different ones; none: over no others.
  std::optional<MeshAxis> distinct_over(const LocalParameter& p) const {
    const std::optional<MeshAxis> axis =
        sharding_.zero > 0 ? p.cut_axis ? MeshAxis::world : p.owners.axis : p.cut_axis;
    if (!axis || mesh().size(*axis) == 1) return {};
    return mesh().same_ranks(*axis, MeshAxis::world) ? MeshAxis::world : axis;
  }

  /// Squares of every gradient of the model, each counted once, and of the faults of all ranks.
  std::vector<ValueId> sums_of_squares() {
    std::map<std::optional<MeshAxis>, std::vector<ValueId>> gradients;
    for (std::size_t i = 0; i < parameters_.size(); ++i)
      gradients[distinct_over(parameters_[i])].push_back(gradients_[i]);
    gradients[mesh().world_size > 1 ? std::optional(MeshAxis::world) : std::nullopt].push_back(
        graph_.add_external(ExternalKind::state, std::string(kFault), {DType::f32, Shape{1}, {}}));
    std::vector<ValueId> sums;
    for (const auto& [axis, list] : gradients) {
      const ValueId sum = ops::sum_of_squares(b_, list);
      sums.push_back(
          !axis ? sum
                : ops::all_reduce(
                      b_, {sum}, {.axis = *axis, .size = mesh().size(*axis), .rank = mesh().rank(*axis)})[0]);
    }
    return sums;
  }

  void update(const LocalParameter& p, const OptimizedWeight& now, ValueId gradient, ValueId factor,
              ValueId hyper) {
    b_.scope.layer = p.spec.layer;
    const OptimizedWeight next = optimizer_.update(b_, p, now, gradient, factor, hyper, publisher_.copies(p));
    graph_.add_update(now.weight, next.weight);
    for (std::size_t i = 0; i < now.states.size(); ++i) graph_.add_update(now.states[i], next.states[i]);
    if (average_decay_ > 0) {
      const ValueId average = own_state(p, own_rows_name(state_name(kAveraging, p.spec.name)));
      graph_.add_update(average,
                        ops::moving_average(b_, average, next.weight, factor, hyper, {average_decay_}));
    }
    publisher_.add(p, next.weight, next.low_copy);
  }

  const std::vector<LocalParameter>& parameters_;
  const StepSharding& sharding_;
  const Optimizer& optimizer_;
  const double average_decay_;
  Graph graph_;
  Builder b_{graph_, {0, 0, -1, SubBlock::optimizer, Phase::update}};
  Publisher publisher_;
  std::vector<OptimizedWeight> weights_;
  std::vector<ValueId> gradients_;
};

}  // namespace

PassPipeline update_pipeline(const std::vector<LocalParameter>& parameters, const StepSharding& sharding,
                             std::shared_ptr<const Optimizer> optimizer, DType compute,
                             double average_decay) {
  return {"update", {{"update", [=](const Graph&) {
                        return UpdateGraph(parameters, sharding, *optimizer, compute, average_decay).run();
                      }}}};
}

PassPipeline publish_pipeline(const std::vector<LocalParameter>& parameters, const StepSharding& sharding,
                              DType compute) {
  const auto publish = [=](const Graph&) {
    Graph graph;
    Builder b{graph, {0, 0, -1, SubBlock::optimizer, Phase::update}};
    Publisher publisher(graph, b, sharding, compute);
    for (const LocalParameter& p : parameters) {
      b.scope.layer = p.spec.layer;
      const ValueId weight = graph.add_external(ExternalKind::state, own_rows_name(p.spec.name),
                                                matrix_type(p.spec, p.own_rows.count));
      publisher.add(p, weight, publisher.copies(p) ? ops::cast(b, weight, compute) : ValueId());
    }
    publisher.finish();
    return graph;
  };
  return {"publish", {{"publish", publish}}};
}

PassPipeline gather_pipeline(const std::vector<LocalParameter>& parameters, const StepSharding& sharding,
                             DType compute) {
  const auto gather = [=](const Graph&) {
    Graph graph;
    Builder b{graph, {0, 0, -1, SubBlock::optimizer, Phase::update}};
    Gatherer gatherer(graph, b, sharding.mesh);
    for (const LocalParameter& p : parameters)
      if (has_copy(p.spec, compute) && sharding.zero < 2 && is_gathered(p, sharding))
        gatherer.add(p,
                     graph.add_external(ExternalKind::state, own_rows_name(p.spec.name),
                                        matrix_type(p.spec, p.own_rows.count)),
                     p.spec.name);
    gatherer.finish();
    return graph;
  };
  return {"gather", {{"gather", gather}}};
}

}  // namespace farskip
