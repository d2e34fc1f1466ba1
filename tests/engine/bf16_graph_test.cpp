// SPDX-License-Identifier: Apache-2.0
// The graphs of a step that computes in bf16: which value is of which type.
#include <map>
#include <set>

#include "distill/distill_objective.h"
#include "farskip/model/parameters.h"
#include "farskip/passes/pipeline.h"
#include "farskip/program/optimizer.h"
#include "farskip/program/step_graphs.h"
#include "passes/farskip.h"
#include "state/state_names.h"
#include "support/catch.h"
#include "support/models.h"
#include "support/support.h"

namespace farskip {
namespace {

/// What kernels there are for a graph that computes in bf16: types of inputs, then of outputs (L bf16, F f32,
/// D f64, I i32). Inputs in brackets may be absent; they stand at the end, or may be left out one by one.
const std::map<std::string, std::set<std::string>> kKernels{
    {"cast", {"F>L", "L>F"}},
    {"embedding", {"LI>L"}},
    {"embedding_grad", {"LI>F", "LIF>F"}},
    {"add", {"LL>L", "FF>F"}},
    {"add_bias", {"LF>L"}},
    {"add_bias_grad", {"L>F", "LF>F"}},
    {"clamp", {"L>L"}},
    {"clamp_grad", {"LL>L"}},
    {"ones", {">F"}},
    {"scale_rows", {"LF>L"}},
    {"scale_rows_grad", {"LLF>LF"}},
    {"sigmoid_gate", {"LL>L"}},
    {"sigmoid_gate_grad", {"LLL>LL"}},
    {"attention_temperature", {">F"}},
    {"matmul", {"LL>L", "LLL>L", "LL>F", "LLF>F", "FF>F", "FFF>F"}},
    {"split_columns", {"L>LL"}},
    {"concat_columns", {"LL>L"}},
    {"split_rows", {"L>LL", "F>FF", "I>II"}},
    {"concat_rows", {"LL>L", "FF>F"}},
    {"mla_key_value", {"LL>LL"}},
    {"mla_key_value_grad", {"LL>LL"}},
    {"rope_table", {">F"}},
    {"rope", {"LF>L"}},
    {"rms_norm", {"LF>LF"}},
    {"rms_norm_grad", {"LLFF>LF", "LLFFF>LF", "LLFF-L>LF", "LLFFFL>LF"}},
    {"attention", {"LLL>LF", "LLLI>LF"}},
    {"attention_grad", {"LLLLLF>LLL", "LLLLLFI>LLL"}},
    {"swiglu", {"L>L", "LF>L"}},
    {"swiglu_grad", {"LL>L", "LLF>LF"}},
    {"route", {"F>IFF", "FF>IFF"}},
    {"route_grad", {"F-FI>F", "FFFI>F"}},
    {"balance_loss", {"FI>F"}},
    {"balance_loss_grad", {"FFI>F"}},
    {"sort_by_expert", {"I>III"}},
    {"permute_values", {"FII>F"}},
    {"slab_places", {"II>III"}},
    {"put_into_slabs", {"LI>L", "FI>F"}},
    {"take_from_slabs", {"LI>L", "FI>F"}},
    {"dispatch_rows", {"LII>L"}},
    {"combine_rows", {"LII>L"}},
    {"grouped_matmul", {"LLI>L"}},
    {"grouped_matmul_wgrad", {"LLI>F", "LLIF>F"}},
    {"linear_cross_entropy", {"LLI>FI"}},
    {"token_losses", {"LLI>F"}},
    {"head_stats", {"LLI>FF"}},
    {"head_stats_grad", {"FLLI>LF", "FLLIF>LF"}},
    {"joint_cross_entropy", {"FFI>FI"}},
    {"joint_cross_entropy_grad", {"FFFI>F"}},
    {"joint_token_losses", {"FFI>F"}},
    {"side_by_side", {"F>F"}},
    {"linear_cross_entropy_grad", {"FLLI>FILF", "FLLIF>FILF"}},
    {"distill_loss", {"LLLLI>FD"}},
    {"distill_loss_grad", {"FLLLLI>FDLF", "FLLLLIF>FDLF", "FLLLLI>FDL"}},
    {"cached_distill_loss", {"LLIFFFI>FD"}},
    {"cached_distill_loss_grad", {"FLLIFFFI>FDLF", "FLLIFFFIF>FDLF", "FLLIFFFI>FDL"}},
    {"distill_stats", {"LLLLI>FF"}},
    {"distill_stats_grad", {"FLLLLI>LF", "FLLLLIF>LF", "FLLLLI>L"}},
    {"joint_distill_loss", {"FFI>FD"}},
    {"joint_distill_loss_grad", {"FFFI>F"}},
    {"teacher_top_k", {"LLI>IFFF"}},
    {"squared_difference", {"LLI>F", "LLIF>F"}},
    {"squared_difference_grad", {"FLLI>L", "FLLIF>L"}},
    {"relative_weights", {"L>F", "LF>F"}},
    {"router_divergence", {"FFI>F"}},
    {"router_divergence_grad", {"FFFI>F"}},
    {"count_routing_flips", {"III>I"}},
    {"sum_of_squares", {"F*>D"}},
    {"find_fault", {"FI*>F"}},
    {"clip_factor", {"D>FF"}},
    {"adamw", {"FFFFFF>FFF", "FFFFFF>FFFL", "FLLFFF>FLL", "FLLFFF>FLLL"}},
    {"muon", {"FFFFF>FF", "FFFFF>FFL", "FLFFF>FL", "FLFFF>FLL"}},
    {"moving_average", {"FFFF>F"}},
};

char letter(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return 'L';
    case DType::f32:
      return 'F';
    case DType::f64:
      return 'D';
    case DType::i32:
      return 'I';
    default:
      return '?';
  }
}

std::string signature(const Graph& graph, const Node& node) {
  std::string text;
  for (const ValueId v : node.inputs) text += v ? letter(graph.type(v).dtype) : '-';
  if (node.op->name == "sum_of_squares" && text.find_first_not_of('F') == std::string::npos) text = "F*";
  if (node.op->name == "find_fault" && text.find_first_not_of("I", 1) == std::string::npos) text = "FI*";
  text += '>';
  for (const ValueId v : node.outputs) text += letter(graph.type(v).dtype);
  return text;
}

void check_kernels(const Graph& graph) {
  for (const Node& node : graph.nodes()) {
    INFO(node.op->name << " @" << node.scope.text() << " {" << node.attributes.text() << "} "
                       << signature(graph, node));
    const auto known = kKernels.find(node.op->name);
    REQUIRE(known != kKernels.end());
    CHECK(known->second.contains(signature(graph, node)));
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
  std::set<std::string> sent;
  for (const Node& node : graph.nodes()) {
    if (node.op->name == "exchange_slabs" || node.op->name == "return_slabs")
      sent.insert(fmt::format("{}{}", letter(graph.type(node.inputs[0]).dtype),
                              graph.type(node.inputs[0]).shape.rank()));
    if (node.op->name == "reduce_scatter" || node.op->name == "all_reduce")
      for (const ValueId v : node.inputs) CHECK(graph.type(v).dtype == DType::f32);
  }
  CHECK(sent == std::set<std::string>{"F1", "L2"});
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
