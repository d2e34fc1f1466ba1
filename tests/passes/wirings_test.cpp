// SPDX-License-Identifier: Apache-2.0
// Every wiring of the residual stream: what each sub-block reads, written out, and that the lowered model
// computes it.

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <random>

#include "farskip/model/lower.h"
#include "farskip/runtime/executor.h"
#include "passes/farskip.h"
#include "support/catch.h"

namespace farskip {
namespace {

// Layer 0 is dense, layers 1 and 2 have shared and routed experts. Contributions by number:
// 0 embedding, 1 attention 0, 2 dense 0, 3 attention 1, 4 shared 1, 5 routed 1, 6 attention 2, 7 shared 2,
// 8 routed 2; block 9 is the head.
constexpr std::size_t kBlocks = 10;
using Reads = std::array<const char*, kBlocks>;

struct Case {
  FarSkipConfig wiring;
  Reads reads;  // by block: numbers of what it reads
};

FarSkipConfig delay(int n) {
  return {FarSkipMode::delay, {}, n};
}
LayerSelection range(std::int64_t first, std::int64_t last) {
  return {LayerSelection::Kind::range, first, last, {}};
}
LayerSelection list(std::vector<std::int64_t> layers) {
  return {LayerSelection::Kind::list, 0, 0, std::move(layers)};
}

const std::vector<Case>& cases() {
  static const std::vector<Case> all{
      // block:                     0   1    2    3      4       5       6         7          8          9
      {{FarSkipMode::off, {}},
       {"", "0", "01", "012", "0123", "0123", "012345", "0123456", "0123456", "012345678"}},
      {{FarSkipMode::attention, {}},
       {"", "0", "01", "012", "0123", "0123", "01234", "0123456", "0123456", "012345678"}},
      {{FarSkipMode::mlp, {}},
       {"", "0", "0", "012", "012", "012", "012345", "012345", "012345", "012345678"}},
      {{FarSkipMode::full, {}},
       {"", "0", "0", "012", "012", "012", "01234", "012345", "012345", "012345678"}},
      {{FarSkipMode::ladder, {}},
       {"", "0", "0", "01", "012", "012", "0123", "012345", "012345", "012345678"}},
      {{FarSkipMode::parallel, {}},
       {"", "0", "0", "012", "012", "012", "012345", "012345", "012345", "012345678"}},
      {{FarSkipMode::shortcut, {}},
       {"", "0", "01", "012", "0123", "012", "012345", "0123456", "012345", "012345678"}},
      {delay(1), {"", "0", "0", "01", "012", "012", "0123", "012345", "012345", "012345678"}},
      {delay(2), {"", "0", "0", "0", "01", "01", "012", "0123", "0123", "012345678"}},
      {delay(3), {"", "0", "0", "0", "0", "0", "01", "012", "012", "012345678"}},
      {delay(8), {"", "0", "0", "0", "0", "0", "0", "0", "0", "012345678"}},
      {{FarSkipMode::ladder, range(1, 1)},
       {"", "0", "01", "01", "012", "012", "012345", "0123456", "0123456", "012345678"}},
      {{FarSkipMode::parallel, list({0, 2})},
       {"", "0", "0", "012", "0123", "0123", "012345", "012345", "012345", "012345678"}},
      {{FarSkipMode::shortcut, range(2, 2)},
       {"", "0", "01", "012", "0123", "0123", "012345", "0123456", "012345", "012345678"}},
      {{FarSkipMode::delay, list({2}), 2},
       {"", "0", "01", "012", "0123", "0123", "012", "0123", "0123", "012345678"}},
  };
  return all;
}

ModelConfig make_model() {
  ErrorList errors;
  const ConfigNode tree = parse_yaml_text(R"(
family: deepseek_v2
vocab_size: 17
hidden_size: 8
intermediate_size: 6
num_hidden_layers: 3
num_attention_heads: 2
num_key_value_heads: 2
q_lora_rank: null
kv_lora_rank: 5
qk_nope_head_dim: 3
qk_rope_head_dim: 2
v_head_dim: 3
n_routed_experts: 3
num_experts_per_tok: 3
n_shared_experts: 1
moe_intermediate_size: 4
first_k_dense_replace: 1
)",
                                          "test", errors);
  ModelConfig config = read_model_section(tree, errors);
  errors.throw_if_any();
  return config;
}

TEST_CASE("every wiring reads what its definition says") {
  const LayerGraph standard = build_layer_graph(make_model());
  for (const Case& c : cases()) {
    const LayerGraph graph = rewire_farskip(standard, c.wiring);
    REQUIRE(graph.blocks.size() == kBlocks);
    for (std::size_t i = 0; i < kBlocks; ++i) {
      INFO(wiring_name(c.wiring) << " of layers " << describe(c.wiring.layers) << ", block " << i);
      std::string reads;
      for (const int r : graph.reads(static_cast<int>(i))) reads += std::to_string(r);
      CHECK(reads == c.reads[i]);
      CHECK(graph.blocks[i].kind == standard.blocks[i].kind);
      CHECK(graph.blocks[i].layer == standard.blocks[i].layer);
    }
  }
}

TEST_CASE("a model without experts is wired as if its MLPs were routed experts") {
  ModelConfig dense = make_model(), routed = dense;
  dense.moe_layers.assign(3, false);
  routed.moe_layers.assign(3, true);
  routed.moe.shared_size = 0;
  const auto reads = [](const LayerGraph& graph) {
    std::vector<std::vector<int>> lists;
    for (std::size_t i = 0; i < graph.blocks.size(); ++i) lists.push_back(graph.reads(static_cast<int>(i)));
    return lists;
  };
  for (const Case& c : cases()) {
    INFO(wiring_name(c.wiring) << " of layers " << describe(c.wiring.layers));
    CHECK(reads(rewire_farskip(build_layer_graph(dense), c.wiring)) ==
          reads(rewire_farskip(build_layer_graph(routed), c.wiring)));
  }
  // Embedding, attention and MLP of three layers, head.
  CHECK(reads(rewire_farskip(build_layer_graph(dense), {FarSkipMode::full, {}})) ==
        std::vector<std::vector<int>>{
            {}, {0}, {0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}, {0, 1, 2, 3, 4}, {0, 1, 2, 3, 4, 5, 6}});
}

TEST_CASE("every mode has a case here") {
  for (const auto& choice : farskip_mode_names) {
    INFO(choice.name);
    CHECK(std::any_of(cases().begin(), cases().end(),
                      [&](const Case& c) { return c.wiring.mode == choice.value; }));
  }
}

using Vector = std::vector<double>;

/// The model in double precision for one token that is alone in its sequence (attention over one position is
/// its value), with all experts chosen (their weights are the scores). Follows a list of reads, and nothing
/// of what lowers models.
class OneToken {
 public:
  OneToken(const ModelConfig& config, const std::map<std::string, HostTensor>& weights, const Reads& reads)
      : c_(config), weights_(weights), reads_(reads) {}

  Vector logits(std::int32_t token) {
    contributions_ = {row("model.embed_tokens.weight", token)};
    for (int layer = 0; layer < 3; ++layer) {
      prefix_ = fmt::format("model.layers.{}.", layer);
      contributions_.push_back(attention(norm(stream(), "input_layernorm")));
      if (layer == 0) {
        contributions_.push_back(mlp(mlp_input(), "mlp."));
        continue;
      }
      // One after the other: each asks for the list of its own number.
      contributions_.push_back(mlp(mlp_input(), "mlp.shared_experts."));
      contributions_.push_back(experts(mlp_input()));
    }
    prefix_ = "model.";
    const Vector x = norm(stream(), "norm");
    prefix_ = "";
    return product("lm_head.weight", x);
  }

 private:
  Vector stream() const {
    Vector sum(static_cast<std::size_t>(c_.hidden_size), 0.0);
    for (const char digit : std::string_view(reads_[contributions_.size()]))
      for (std::size_t i = 0; i < sum.size(); ++i)
        sum[i] += contributions_[static_cast<std::size_t>(digit - '0')][i];
    return sum;
  }
  Vector mlp_input() const { return norm(stream(), "post_attention_layernorm"); }

  std::span<const float> weight(const std::string& name) const {
    return weights_.at(prefix_ + name).values<float>();
  }
  Vector row(const std::string& name, std::int32_t index) const {
    const auto all = weights_.at(name).values<float>();
    const auto size = static_cast<std::size_t>(c_.hidden_size),
               first = static_cast<std::size_t>(index) * size;
    return {all.begin() + static_cast<std::ptrdiff_t>(first),
            all.begin() + static_cast<std::ptrdiff_t>(first + size)};
  }
  static Vector product(std::span<const float> matrix, const Vector& x) {
    Vector y(matrix.size() / x.size(), 0.0);
    for (std::size_t i = 0; i < y.size(); ++i)
      for (std::size_t k = 0; k < x.size(); ++k) y[i] += static_cast<double>(matrix[i * x.size() + k]) * x[k];
    return y;
  }
  Vector product(const std::string& name, const Vector& x) const { return product(weight(name), x); }
  Vector norm(Vector x, const std::string& name) const {
    double squares = 0;
    for (const double v : x) squares += v * v;
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(x.size()) + c_.rms_norm_eps);
    for (std::size_t i = 0; i < x.size(); ++i)
      x[i] *= scale * static_cast<double>(weight(name + ".weight")[i]);
    return x;
  }
  static Vector gated(const Vector& gate_up) {
    Vector out(gate_up.size() / 2);
    for (std::size_t i = 0; i < out.size(); ++i)
      out[i] = gate_up[i] / (1.0 + std::exp(-gate_up[i])) * gate_up[out.size() + i];
    return out;
  }

  Vector attention(const Vector& h) const {
    Vector latent = product("self_attn.kv_a_proj_with_mqa.weight", h);
    latent.resize(5);
    const Vector kv = product("self_attn.kv_b_proj.weight", norm(latent, "self_attn.kv_a_layernorm"));
    Vector values;  // of each head: 3 key columns, then 3 value columns
    for (const std::size_t head : {0U, 1U})
      for (std::size_t i = 0; i < 3; ++i) values.push_back(kv[head * 6 + 3 + i]);
    return product("self_attn.o_proj.weight", values);
  }
  Vector mlp(const Vector& h, const std::string& module) const {
    return product(module + "down_proj.weight", gated(product(module + "gate_up_proj.weight", h)));
  }
  Vector experts(const Vector& h) const {
    Vector scores = product("mlp.gate.weight", h);
    double sum = 0;
    for (double& s : scores) sum += s = std::exp(s);
    Vector out(h.size(), 0.0);
    for (std::size_t e = 0; e < 3; ++e) {
      const auto gate_up = weight("mlp.experts.gate_up_proj").subspan(e * 8 * h.size(), 8 * h.size());
      const auto down = weight("mlp.experts.down_proj").subspan(e * h.size() * 4, h.size() * 4);
      const Vector y = product(down, gated(product(gate_up, h)));
      for (std::size_t i = 0; i < out.size(); ++i) out[i] += scores[e] / sum * y[i];
    }
    return out;
  }

  const ModelConfig& c_;
  const std::map<std::string, HostTensor>& weights_;
  const Reads& reads_;
  std::string prefix_;
  std::vector<Vector> contributions_;
};

std::map<std::string, HostTensor> random_weights(const ModelConfig& config) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::map<std::string, HostTensor> weights;
  for (const ParameterSpec& spec : list_parameters(config)) {
    HostTensor tensor(DType::f32, spec.shape);
    for (float& x : tensor.values<float>())
      x = spec.initializer == Initializer::ones ? 1.0F + 0.1F * normal(random) : 0.5F * normal(random);
    weights.emplace(spec.name, std::move(tensor));
  }
  return weights;
}

TEST_CASE("the lowered model adds up what the lists say, as a model in double precision by hand does") {
  const ModelConfig config = make_model();
  std::map<std::string, HostTensor> weights = random_weights(config);
  std::vector<std::int32_t> tokens{3, 16, 0, 7};
  std::map<std::string, Vector> by_reads;
  for (const Case& c : cases()) {
    INFO(wiring_name(c.wiring) << " of layers " << describe(c.wiring.layers));
    LowerOptions options;
    options.batch = static_cast<std::int64_t>(tokens.size());
    options.sequence_length = 1;
    options.head = HeadOutput::logits;
    Graph graph = lower(config, rewire_farskip(build_layer_graph(config), c.wiring), options);
    verify_graph(graph);
    Plan plan = make_serial_plan(graph, cpu_workspace);
    Arena arena;
    Executor executor(std::move(graph), std::move(plan), cpu_kernel_table(), arena);
    executor.bind("tokens", {tokens.data(), DType::i32, Shape{options.batch}});
    for (auto& [name, tensor] : weights) executor.bind(name, tensor.view());
    executor.run();
    const float* got = executor.output("logits").as<float>();
    Vector all;
    for (const std::int32_t token : tokens)
      for (const double want : OneToken(config, weights, c.reads).logits(token)) {
        CHECK(static_cast<double>(*got++) == Catch::Approx(want).epsilon(1e-4).margin(1e-4));
        all.push_back(want);
      }
    std::string reads;
    for (const char* r : c.reads) reads += std::string(r) + " ";
    by_reads.emplace(reads, all);
  }
  // Wirings that differ in a list differ in the numbers, so that the check above can tell them apart.
  CHECK(by_reads.size() == 13);
  for (auto a = by_reads.begin(); a != by_reads.end(); ++a)
    for (auto b = std::next(a); b != by_reads.end(); ++b) {
      double largest = 0;
      for (std::size_t i = 0; i < a->second.size(); ++i)
        largest = std::max(largest, std::abs(a->second[i] - b->second[i]));
      INFO(a->first << "and " << b->first);
      CHECK(largest > 0.01);
    }
}

}  // namespace
}  // namespace farskip
