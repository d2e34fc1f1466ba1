// The graphs of a step that computes in bf16: which value is of which type.
#include <map>
#include <set>

#include "farskip/model/parameters.h"
#include "farskip/passes/farskip.h"
#include "farskip/passes/pipeline.h"
#include "farskip/train/step_graphs.h"
#include "support/catch.h"
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
    {"matmul", {"LL>L", "LL>F", "LLF>F", "FF>F", "FFF>F"}},
    {"split_columns", {"L>LL"}},
    {"concat_columns", {"LL>L"}},
    {"mla_key_value", {"LL>LL"}},
    {"mla_key_value_grad", {"LL>LL"}},
    {"rope_table", {">F"}},
    {"rope", {"LF>L"}},
    {"rms_norm", {"LF>LF"}},
    {"rms_norm_grad", {"LLFF>LF", "LLFFF>LF"}},
    {"attention", {"LLL>LF", "LLLI>LF"}},
    {"attention_grad", {"LLLLLF>LLL", "LLLLLFI>LLL"}},
    {"swiglu", {"L>L", "LF>L"}},
    {"swiglu_grad", {"LL>L", "LLF>LF"}},
    {"route", {"F>IFF"}},
    {"route_grad", {"F-FI>F", "FFFI>F"}},
    {"balance_loss", {"FI>F"}},
    {"balance_loss_grad", {"FFI>F"}},
    {"sort_by_expert", {"I>III"}},
    {"permute_values", {"FII>F"}},
    {"dispatch_rows", {"LII>L"}},
    {"combine_rows", {"LII>L"}},
    {"grouped_matmul", {"LLI>L"}},
    {"grouped_matmul_wgrad", {"LLI>F", "LLIF>F"}},
    {"linear_cross_entropy", {"LLI>FI"}},
    {"linear_cross_entropy_grad", {"FLLI>FILF", "FLLIF>FILF"}},
    {"sum_of_squares", {"F*>D"}},
    {"clip_factor", {"D>FF"}},
    {"adamw", {"FFFFFF>FFF", "FFFFFF>FFFL"}},
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

struct Model {
  ModelConfig config;
  LayerGraph layers;
  std::vector<LocalParameter> parameters;
};

Model load(const std::string& name, FarSkipMode mode) {
  Model m{read_hub_config(test::fixtures() / name), {}, {}};
  m.layers = rewire_farskip(build_layer_graph(m.config), {mode, {}});
  m.parameters = local_parameters(list_parameters(m.config), {}, false);
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
  const auto* name = GENERATE("deepseek_v2", "deepseek_v2_yarn", "qwen3_moe", "qwen3_moe_tied");
  const auto mode = GENERATE(FarSkipMode::off, FarSkipMode::full);
  const auto recompute = GENERATE(Recompute::none, Recompute::experts, Recompute::full);
  const bool accumulate = GENERATE(false, true);
  const int in_flight = GENERATE(1, 2);
  CAPTURE(name, accumulate, in_flight);
  const Model m = load(name, mode);
  const Graph graph = run_pipeline(
      build_micro_batch_graph(m.config, m.layers, lowering(), {}, {accumulate, false, in_flight, recompute}),
      {}, Logger(LogLevel::off));
  check_kernels(graph);
  for (const LocalParameter& p : m.parameters) {
    CAPTURE(p.spec.name);
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

TEST_CASE("the forward in bf16 gives losses and logits in f32") {
  const auto* name = GENERATE("deepseek_v2", "qwen3_moe_tied");
  const Model m = load(name, FarSkipMode::off);
  LowerOptions options = lowering();
  for (const bool logits : {false, true}) {
    options.logits = logits;
    const Graph graph =
        run_pipeline(build_forward_graph(m.config, m.layers, options, {}), {}, Logger(LogLevel::off));
    check_kernels(graph);
    for (const Output& o : graph.outputs()) {
      CAPTURE(o.name);
      CHECK(graph.type(o.value).dtype != DType::bf16);
    }
  }
}

TEST_CASE("experts over ranks in bf16 send low rows, and weights of rows in f32") {
  const Model m = load("deepseek_v2", FarSkipMode::full);
  const MeshPosition mesh{4, 1, 2};
  const Graph graph = run_pipeline(
      build_micro_batch_graph(m.config, m.layers, lowering(), {mesh, true, 64}, {true, true, 1, {}}), {},
      Logger(LogLevel::off));
  std::set<std::string> sent;
  for (const Node& node : graph.nodes()) {
    if (node.op->name == "exchange_rows" || node.op->name == "return_rows")
      sent.insert(fmt::format("{}{}", letter(graph.type(node.inputs[0]).dtype),
                              graph.type(node.inputs[0]).shape.rank()));
    if (node.op->name == "reduce_scatter" || node.op->name == "all_reduce")
      for (const ValueId v : node.inputs) CHECK(graph.type(v).dtype == DType::f32);
  }
  CHECK(sent == std::set<std::string>{"F1", "L2"});
}

TEST_CASE("the update in bf16 writes the compute copy of every matrix that has one") {
  const auto* name = GENERATE("deepseek_v2", "qwen3_moe_tied");
  const Model m = load(name, FarSkipMode::off);
  for (const bool zero : {false, true}) {
    const MeshPosition mesh = zero ? MeshPosition{4, 1, 2} : MeshPosition{};
    const auto parameters = local_parameters(list_parameters(m.config), mesh, zero);
    const Graph graph = run_pipeline(build_update_graph(parameters, {mesh, zero, 0}, {}, DType::bf16), {},
                                     Logger(LogLevel::off));
    if (!zero) check_kernels(graph);
    for (const LocalParameter& p : parameters) {
      CAPTURE(p.spec.name, zero);
      const auto copy = graph.find_external(compute_copy_name(p.spec.name));
      REQUIRE(copy.has_value() == p.spec.has_compute_copy());
      if (!copy) continue;
      CHECK(graph.type(*copy).dtype == DType::bf16);
      CHECK(graph.type(*copy).shape.num_elements() == p.spec.shape.num_elements());
      bool written = false;
      for (const StateUpdate& u : graph.updates()) written = written || u.from == *copy;
      CHECK(written);
    }
  }
}

}  // namespace
}  // namespace farskip
