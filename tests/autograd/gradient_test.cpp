// SPDX-License-Identifier: Apache-2.0
// Whole models: gradients as the graph computes them in f32 against finite differences in double precision.

#include "autograd/gradient.h"

#include <cmath>
#include <random>

#include "farskip/model/lower.h"
#include "farskip/ops/optimizer_ops.h"
#include "farskip/passes/pipeline.h"
#include "farskip/runtime/executor.h"
#include "passes/farskip.h"
#include "reference/reference.h"
#include "support/catch.h"

namespace farskip {
namespace {

ModelConfig parse_model(const std::string& yaml) {
  ErrorList errors;
  const ConfigNode tree = parse_yaml_text(yaml, "test", errors);
  ModelConfig config = read_model_section(tree, errors);
  errors.throw_if_any();
  return config;
}

const char* const kLatent = R"(
family: deepseek_v2
vocab_size: 23
hidden_size: 12
intermediate_size: 14
num_hidden_layers: 3
num_attention_heads: 2
num_key_value_heads: 2
q_lora_rank: 7
kv_lora_rank: 9
qk_nope_head_dim: 5
qk_rope_head_dim: 4
v_head_dim: 3
n_routed_experts: 6
num_experts_per_tok: 2
n_shared_experts: 1
moe_intermediate_size: 10
first_k_dense_replace: 1
topk_method: group_limited_greedy
n_group: 3
topk_group: 2
routed_scaling_factor: 1.5
initializer_range: 0.3
)";
const char* const kTied = R"(
family: qwen3_moe
vocab_size: 19
hidden_size: 10
intermediate_size: 14
num_hidden_layers: 2
num_attention_heads: 4
num_key_value_heads: 2
head_dim: 6
num_experts: 5
num_experts_per_tok: 2
moe_intermediate_size: 8
norm_topk_prob: true
tie_word_embeddings: true
initializer_range: 0.3
)";

/// Shared and routed experts read different streams.
const std::string kShortcut = std::string(kLatent) + "farskip_wiring: shortcut\n";

constexpr std::int64_t kBatch = 2, kSequence = 7;

struct Problem {
  ModelConfig config;
  std::vector<ParameterSpec> specs;
  std::map<std::string, HostTensor> values;  // f64
  HostTensor tokens{DType::i32, Shape{kBatch * kSequence}}, targets{DType::i32, Shape{kBatch * kSequence}};
};

Problem make_problem(const std::string& yaml) {
  Problem p{parse_model(yaml), {}, {}};
  p.specs = list_parameters(p.config);
  std::mt19937 random(11);
  std::normal_distribution<double> normal;
  for (const ParameterSpec& spec : p.specs) {
    HostTensor t(DType::f64, spec.shape);
    for (double& x : t.values<double>())
      x = static_cast<float>(spec.initializer == Initializer::ones ? 1.0 + 0.1 * normal(random)
                                                                   : 0.4 * normal(random));
    p.values.emplace(spec.name, t);
  }
  for (std::int64_t i = 0; i < kBatch * kSequence; ++i) {
    p.tokens.values<std::int32_t>()[static_cast<std::size_t>(i)] =
        static_cast<std::int32_t>(random() % p.config.vocab_size);
    p.targets.values<std::int32_t>()[static_cast<std::size_t>(i)] =
        i == 3 ? -1 : static_cast<std::int32_t>(random() % p.config.vocab_size);
  }
  return p;
}

constexpr double kLossSeed = 0.3, kBalanceSeed = 0.7;

LowerOptions options(DType dtype) {
  LowerOptions o;
  o.batch = kBatch;
  o.sequence_length = kSequence;
  o.balance_loss = true;
  o.dtype = dtype;
  return o;
}

Graph lower_model(const ModelConfig& config, DType dtype) {
  return lower(config, rewire_farskip(build_layer_graph(config), config.farskip), options(dtype));
}

// Every value has memory of its own: the slow kernels know nothing of working in place.
Plan make_plan_without_reuse(const Graph& graph) {
  Plan plan;
  for (std::size_t v = 0; v < graph.num_values(); ++v) {
    Placement place;
    place.bytes = graph.type(ValueId(v)).num_bytes();
    if (!graph.value(ValueId(v)).producer) {
      place.external = ValueId(v);
    } else {
      place.offset = plan.arena_bytes;
      plan.arena_bytes += (place.bytes + 63) / 64 * 64;
    }
    plan.placements.push_back(place);
  }
  plan.steps = make_serial_plan(graph, cpu_workspace).steps;  // for the scratch that kernels ask for
  for (PlanStep& step : plan.steps) {
    step.workspace_offset = plan.arena_bytes;
    plan.arena_bytes += (step.workspace_bytes + 63) / 64 * 64;
  }
  return plan;
}

// Σ seed · loss in double precision, through the slow reference kernels.
class Reference {
 public:
  explicit Reference(Problem& p) : table_(cpu_kernel_table()) {
    register_reference_kernels(table_);
    Graph graph = lower_model(p.config, DType::f64);
    Plan plan = make_plan_without_reuse(graph);
    executor_ = std::make_unique<Executor>(std::move(graph), std::move(plan), table_, arena_);
    executor_->bind("tokens", p.tokens.view());
    executor_->bind("targets", p.targets.view());
    for (auto& [name, tensor] : p.values) executor_->bind(name, tensor.view());
  }
  double operator()() {
    executor_->run();
    return kLossSeed * *executor_->output("loss_sum").as<double>() +
           kBalanceSeed * *executor_->output("balance_loss").as<double>();
  }

 private:
  KernelTable table_;
  Arena arena_;
  std::unique_ptr<Executor> executor_;
};

std::map<std::string, HostTensor> gradients_f32(Problem& p) {
  Graph graph = lower_model(p.config, DType::f32);
  const TensorType scalar{DType::f32, Shape{1}, {}};
  const ValueId loss_seed = graph.add_external(ExternalKind::input, "loss_seed", scalar);
  const ValueId balance_seed = graph.add_external(ExternalKind::input, "balance_seed", scalar);
  const std::vector<Objective> objectives{{*graph.find_output("loss_sum"), loss_seed},
                                          {*graph.find_output("balance_loss"), balance_seed}};
  std::vector<ValueId> wanted;
  for (const ParameterSpec& spec : p.specs) wanted.push_back(*graph.find_external(spec.name));
  const auto gradients = differentiate(graph, objectives, wanted);
  for (std::size_t i = 0; i < p.specs.size(); ++i) graph.add_output("grad." + p.specs[i].name, gradients[i]);
  graph = run_pipeline(std::move(graph), {}, Logger(LogLevel::off));
  Plan plan = make_serial_plan(graph, cpu_workspace);
  Arena arena;
  Executor executor(std::move(graph), std::move(plan), cpu_kernel_table(), arena);
  std::map<std::string, HostTensor> weights;
  for (auto& [name, tensor] : p.values) weights.emplace(name, convert_dtype(tensor, DType::f32));
  float seeds[2] = {static_cast<float>(kLossSeed), static_cast<float>(kBalanceSeed)};
  executor.bind("tokens", p.tokens.view());
  executor.bind("targets", p.targets.view());
  executor.bind("loss_seed", {&seeds[0], DType::f32, Shape{1}});
  executor.bind("balance_seed", {&seeds[1], DType::f32, Shape{1}});
  for (auto& [name, tensor] : weights) executor.bind(name, tensor.view());
  executor.run();
  std::map<std::string, HostTensor> out;
  for (const ParameterSpec& spec : p.specs) {
    const TensorView view = executor.output("grad." + spec.name);
    HostTensor copy(DType::f32, spec.shape);
    std::copy(view.bytes().begin(), view.bytes().end(), copy.bytes().begin());
    out.emplace(spec.name, copy);
  }
  return out;
}

TEST_CASE("every element of every parameter's gradient agrees with double-precision finite differences") {
  const std::string yaml = GENERATE(as<std::string>(), kLatent, kTied, kShortcut);
  Problem p = make_problem(yaml);
  const auto gradients = gradients_f32(p);
  Reference objective(p);
  constexpr double h = 1e-5;
  for (const ParameterSpec& spec : p.specs) {
    CAPTURE(spec.name);
    const auto got = gradients.at(spec.name).values<float>();
    const auto values = p.values.at(spec.name).values<double>();
    double difference = 0, norm = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double x = values[i];
      values[i] = x + h;
      const double up = objective();
      values[i] = x - h;
      const double down = objective();
      values[i] = x;
      const double want = (up - down) / (2 * h);
      difference += std::pow(want - static_cast<double>(got[i]), 2);
      norm += want * want;
    }
    CHECK(norm > 0);
    CHECK(std::sqrt(difference / norm) < 1e-4);
  }
}

TEST_CASE("gradients through an op without a rule, or with a seed of another type, are refused") {
  Graph graph;
  const ValueId x = graph.add_external(ExternalKind::input, "x", {DType::f32, Shape{4}, {}});
  const ValueId seed = graph.add_external(ExternalKind::input, "seed", {DType::f64, Shape{1}, {}});
  Builder b{graph, {}};
  const std::vector<Objective> objectives{{ops::sum_of_squares(b, {x}), seed}};
  const std::vector<ValueId> wanted{x};
  CHECK_THROWS_WITH(differentiate(graph, objectives, wanted), ContainsSubstring("sum_of_squares"));
  const std::vector<Objective> wrong{{objectives[0].value, x}};
  CHECK_THROWS_WITH(differentiate(graph, wrong, wanted), ContainsSubstring("seed of another type"));
}

TEST_CASE("a value that the objective does not depend on has no gradient, one used twice the sum") {
  Graph graph = parse_graph(R"(%0 = input "x" : f32[2, 2]
%1 = input "unused" : f32[2, 2]
%2 = input "seed" : f32[2, 2]
%3 = add(%0, %0)
output "y" = %3
)");
  const std::vector<Objective> objectives{{*graph.find_output("y"), *graph.find_external("seed")}};
  const std::vector<ValueId> wanted{*graph.find_external("x"), *graph.find_external("unused")};
  const auto gradients = differentiate(graph, objectives, wanted);
  CHECK_FALSE(gradients[1]);
  REQUIRE(gradients[0]);
  const Node& sum = graph.node(graph.value(gradients[0]).producer);
  CHECK(sum.op->name == "add");
  CHECK(sum.scope.phase == Phase::backward);
}

}  // namespace
}  // namespace farskip
