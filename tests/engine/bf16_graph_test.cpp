// SPDX-License-Identifier: Apache-2.0
// The graphs of a step that computes in bf16: which value is of which type.
#include <algorithm>
#include <set>

#include "distill/distill_objective.h"
#include "farskip/model/parameters.h"
#include "farskip/passes/pipeline.h"
#include "farskip/program/optimizer.h"
#include "farskip/program/step_graphs.h"
#include "farskip/runtime/executor.h"
#include "passes/farskip.h"
#include "state/state_names.h"
#include "support/catch.h"
#include "support/models.h"
#include "support/support.h"

namespace farskip {
namespace {

/// Ops whose compute inputs (OpDef::inputs) such a graph may also have in f32: the router's products, sums of
/// gradients of parameters, and moments. What moves routed rows also moves a number for each, in f32.
const std::set<std::string> kAlsoWide{"adamw", "add", "matmul", "muon", "put_into_slabs"};

/// Every op computes in bf16 where its rule takes that (which also says what is f32 or an integer beside it,
/// and is enforced as nodes are added), and the CUDA backend, where it is built, has the kernel.
void check_kernels(const Graph& graph) {
  for (const Node& node : graph.nodes()) {
    std::vector<const TensorType*> inputs;
    std::vector<TensorType> outputs;
    for (const ValueId v : node.inputs) inputs.push_back(v ? &graph.type(v) : nullptr);
    for (const ValueId v : node.outputs) outputs.push_back(graph.type(v));
    const OpTypes types{node.attributes, inputs, outputs};
    INFO(node.op->name << " @" << node.scope.text() << " {" << node.attributes.text() << "} "
                       << inputs_text(types));
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const bool adds = std::any_of(node.op->accumulates.begin(), node.op->accumulates.end(),
                                    [&](const InPlace& sum) { return sum.input == i; });
      if (inputs[i] == nullptr || adds || node.op->input_type(i) != InputType::compute) continue;
      CHECK((inputs[i]->dtype == DType::bf16 || inputs[i]->shape.rank() == 1 ||
             kAlsoWide.contains(node.op->name)));
    }
    if (!cuda_kernel_table().all().empty())
      CHECK(cuda_kernel_table().contains(node.op->name, kernel_dtype(types), DeviceKind::cuda));
  }
}

struct LoadedModel : Model {
  std::vector<LocalParameter> parameters;
};

LoadedModel load(const std::string& name, FarSkipMode mode) {
  LoadedModel m{wire_model(read_hub_config(test::fixtures() / name), {mode, {}}), {}};
  m.parameters = local_parameters(list_parameters(m.config), {}, false);
  std::erase_if(m.parameters, [](const LocalParameter& p) { return !p.spec.is_trained; });
  return m;
}

LowerOptions lowering() {
  LowerOptions options;
  options.batch = 2;
  options.sequence_length = 16;
  options.balance_loss = true;
  options.document_mask = true;
  options.dtype = DType::bf16;
  return options;
}

TEST_CASE("a micro-batch in bf16 asks only for kernels that backends have") {
  const std::string name = GENERATE(from_range(test::model_fixtures()));
  const auto mode = GENERATE(FarSkipMode::off, FarSkipMode::full);
  const auto recompute = GENERATE(Recompute::none, Recompute::experts, Recompute::full);
  const bool accumulate = GENERATE(false, true);
  const int in_flight = GENERATE(1, 2);
  CAPTURE(name, accumulate, in_flight);
  const LoadedModel m = load(name, mode);
  const Graph graph = run_pipeline(
      micro_batch_pipeline(m, m.parameters, lowering(), {}, {accumulate, false, in_flight, recompute}), {},
      Logger(LogLevel::off));
  check_kernels(graph);
  for (const LocalParameter& p : m.parameters) {
    CAPTURE(p.spec.name);
    if (!p.spec.is_trained) continue;
    const bool copied = p.spec.shape.rank() >= 2 && p.spec.name.find("mlp.gate.weight") == std::string::npos;
    const auto read = graph.find_external(copied ? "compute." + p.spec.name : p.spec.name);
    REQUIRE(read);
    CHECK(graph.type(*read).dtype == (copied ? DType::bf16 : DType::f32));
    CHECK(!graph.find_external(copied ? p.spec.name : "compute." + p.spec.name));
    const auto gradient = graph.find_external(gradient_name(p.spec.name));
    REQUIRE(gradient);
    CHECK(graph.type(*gradient).dtype == DType::f32);
    CHECK(graph.type(*gradient).shape == p.spec.shape);
  }
  // Parameters are never rounded in a micro-batch.
  for (const Node& node : graph.nodes())
    if (node.op->name == "cast") CHECK(graph.value(node.inputs[0]).producer);
}

TEST_CASE("whether attention has to repeat its bits stands in every node of it") {
  const bool deterministic = GENERATE(true, false);
  const LoadedModel m = load("deepseek_v2", FarSkipMode::full);
  LowerOptions options = lowering();
  CHECK(options.deterministic);
  options.deterministic = deterministic;
  const Graph graph = build_graph(micro_batch_pipeline(m, m.parameters, options, {}, {}));
  int nodes = 0;
  for (const Node& node : graph.nodes()) {
    if (node.op->name != "attention" && node.op->name != "attention_grad") continue;
    CHECK(node.attributes.get<ops::Attention>().deterministic == deterministic);
    ++nodes;
  }
  CHECK(nodes == 2 * m.config.num_layers);
}

TEST_CASE("distillation in bf16 asks only for kernels that backends have") {
  const auto* name = GENERATE("deepseek_v2", "qwen3_moe_tied");
  // What is kept of a teacher are its largest logits.
  const auto [top_k, cached] =
      GENERATE(values<std::pair<std::int64_t, bool>>({{0, false}, {5, false}, {5, true}}));
  const bool freezes_head = GENERATE(false, true);
  CAPTURE(name, top_k, freezes_head, cached);
  const LoadedModel m = load(name, FarSkipMode::full);
  const std::string head(head_name(m.config));
  const std::set<std::string> frozen = freezes_head ? std::set<std::string>{head} : std::set<std::string>{};
  const ops::DistillLoss loss{.kl = 0.5, .jsd = 0.3, .sft = 0.2, .top_k = top_k};
  const Teacher teacher{wire_model(m.config, {}), frozen};
  const auto kind_of_hidden =
      GENERATE(HiddenLossKind::l2, HiddenLossKind::normalised, HiddenLossKind::cosine);
  const DistillObjective live({loss, {kind_of_hidden, 0.1, 0.5}, {{0, 0}, {2, 2}}, 0.1}, teacher, nullptr);
  const CachedDistillObjective kept(loss);
  MicroBatchKind kind;
  kind.accumulate = GENERATE(false, true);
  kind.objective = cached ? static_cast<const StepObjective*>(&kept) : &live;
  std::vector<LocalParameter> trained = m.parameters;
  std::erase_if(trained, [&](const LocalParameter& p) { return frozen.contains(p.spec.name); });
  const Graph graph =
      run_pipeline(micro_batch_pipeline(m, trained, lowering(), {}, kind), {}, Logger(LogLevel::off));
  check_kernels(graph);
  int losses = 0;
  for (const Node& node : graph.nodes())
    losses += node.op->name == (cached ? "cached_distill_loss_grad" : "distill_loss_grad") ? 1 : 0;
  CHECK(losses == 1);
  // The teacher's tensors are those that the graph reads, in the types that it reads.
  const States states(make_cpu_device(), cached ? std::vector<StateSpec>() : teacher.states({}, DType::bf16));
  std::size_t found = 0;
  for (const External& e : graph.externals()) {
    if (!e.name.starts_with("teacher.")) continue;
    ++found;
    REQUIRE(states.contains(e.name));
    CHECK(states.at(e.name).dtype == graph.type(e.value).dtype);
    CHECK(states.at(e.name).shape == graph.type(e.value).shape);
  }
  CHECK(found == states.specs().size());
  CHECK(graph.find_external("compute." + head).has_value());
  CHECK(graph.find_external("teacher.compute." + head).has_value() == (!cached && !freezes_head));
}

TEST_CASE("a teacher alone in bf16 gives what is kept of it in f32") {
  const LoadedModel m = load("deepseek_v2", FarSkipMode::off);
  LowerOptions options = lowering();
  options.balance_loss = false;
  const Graph graph = run_pipeline(teacher_pipeline({wire_model(m.config, {})}, options, {}, {7, 1.0}), {},
                                   Logger(LogLevel::off));
  check_kernels(graph);
  CHECK(graph.type(*graph.find_output(kCachedLogProbs)).dtype == DType::f32);
}

TEST_CASE("the forward in bf16 gives losses and logits in f32") {
  const auto* name = GENERATE("deepseek_v2", "qwen3_moe_tied");
  const LoadedModel m = load(name, FarSkipMode::off);
  LowerOptions options = lowering();
  for (const HeadOutput head : {HeadOutput::loss, HeadOutput::token_losses, HeadOutput::logits}) {
    options.head = head;
    const Graph graph = run_pipeline(forward_pipeline(m, options, {}), {}, Logger(LogLevel::off));
    check_kernels(graph);
    for (const Output& o : graph.outputs()) {
      CAPTURE(o.name);
      CHECK(graph.type(o.value).dtype != DType::bf16);
    }
  }
}

TEST_CASE("experts over ranks in bf16 send low rows, and weights of rows in f32") {
  const LoadedModel m = load("deepseek_v2", FarSkipMode::full);
  const MeshPosition mesh{4, 1, 2};
  const Graph graph =
      run_pipeline(micro_batch_pipeline(m, local_parameters(list_parameters(m.config), mesh, true),
                                        lowering(), {mesh, true, 64}, {true, true, 1, {}}),
                   {}, Logger(LogLevel::off));
  check_kernels(graph);
  std::set<std::string> sent;
  for (const Node& node : graph.nodes()) {
    if (node.op->name == "exchange_slabs" || node.op->name == "return_slabs")
      sent.insert(fmt::format("{}, {}", dtype_name(graph.type(node.inputs[0]).dtype),
                              graph.type(node.inputs[0]).shape.rank()));
    if (node.op->name == "reduce_scatter" || node.op->name == "all_reduce")
      for (const ValueId v : node.inputs) CHECK(graph.type(v).dtype == DType::f32);
  }
  CHECK(sent == std::set<std::string>{"f32, 1", "bf16, 2"});
}

TEST_CASE(
    "the update in bf16 writes the compute copy of every matrix that has one, and so does its last part") {
  const auto* name = GENERATE("deepseek_v2", "qwen3_moe_tied");
  const bool updates = GENERATE(true, false);
  const LoadedModel m = load(name, FarSkipMode::off);
  for (const int zero : {0, 1, 2, 3}) {
    const MeshPosition mesh = zero > 0 ? MeshPosition{4, 1, 2} : MeshPosition{};
    const auto parameters = local_parameters(list_parameters(m.config), mesh, zero);
    const StepSharding sharding{mesh, zero, 0};
    const Graph graph =
        run_pipeline(updates ? update_pipeline(parameters, sharding, make_optimizer({}), DType::bf16, 0.9)
                             : publish_pipeline(parameters, sharding, DType::bf16),
                     {}, Logger(LogLevel::off));
    if (zero == 0) check_kernels(graph);
    for (const LocalParameter& p : parameters) {
      CAPTURE(p.spec.name, zero);
      const auto is_written = [&](const std::string& state, std::int64_t rows) {
        const auto copy = graph.find_external(state);
        if (!copy) return false;
        CHECK(graph.type(*copy).dtype == DType::bf16);
        CHECK(row_count(graph.type(*copy).shape) == rows);
        return std::any_of(graph.updates().begin(), graph.updates().end(),
                           [&](const StateUpdate& u) { return u.from == *copy; });
      };
      const std::string copy = compute_copy_name(p.spec.name);
      const bool gathered = zero > 0 && mesh.size(p.owners.axis) > 1, has_copy = p.spec.has_compute_copy();
      CHECK(is_written(own_rows_name(copy), p.own_rows.count) == has_copy);
      CHECK(is_written(copy, p.spec.num_rows()) == (has_copy && gathered && zero < 3));
      // Of a parameter with a copy nothing else travels in a step.
      CHECK(graph.find_external(p.spec.name).has_value() == (!has_copy && gathered));
      const Graph later = build_graph(gather_pipeline(parameters, {mesh, zero, 0}, DType::bf16));
      CHECK(later.find_external(p.spec.name).has_value() == (has_copy && gathered && zero == 1));
    }
  }
}

}  // namespace
}  // namespace farskip
