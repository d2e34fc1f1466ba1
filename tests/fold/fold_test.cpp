// SPDX-License-Identifier: Apache-2.0
// The fold as a whole: against NumPy, on every family, and where there is nothing to fold.
#include "fold/fold.h"

#include <map>

#include "farskip/engine/engine.h"
#include "fold/matrices.h"
#include "fold/walking_model.h"
#include "support/catch.h"
#include "support/context.h"
#include "support/models.h"
#include "support/states.h"
#include "support/support.h"

namespace farskip {
namespace {

const std::string kTokens = (test::fixtures() / "deepseek_v2" / "tokens").string();

FoldText read_text(const ModelConfig& config, std::int64_t sequences) {
  return read_fold_text({kTokens, sequences, 32}, config, std::nullopt, Logger(LogLevel::off));
}

/// A fixture, with its weights in memory.
struct Fixture {
  explicit Fixture(const std::string& name, FarSkipConfig own = {FarSkipMode::off, {}})
      : weights(test::load_weights(test::fixtures() / name)), rows(rows_of(*weights)) {
    model.config = read_hub_config(test::fixtures() / name);
    model = wire_model(model.config, own);
  }
  Folded fold(const FarSkipConfig& wiring, const FoldText& text) const {
    return fold_model(model, wire_model(model.config, wiring).layers, rows, text, test::quiet_context());
  }

  std::shared_ptr<States> weights;
  RowReader rows;
  Model model;
};

const FarSkipConfig kFull{FarSkipMode::full, {}};

double relative_error(const HostTensor& a, const HostTensor& b) {
  const auto x = as_matrix(a.view()).cast<double>(), y = as_matrix(b.view()).cast<double>();
  return (x - y).norm() / y.norm();
}

TEST_CASE("folded weights are those that NumPy finds in double") {
  for (const char* name : {"llama", "deepseek_v2"}) {
    const Fixture fixture(name);
    const Folded folded = fixture.fold(kFull, read_text(fixture.model.config, 64));
    const RowReader rows = folded_rows(fixture.rows, folded);
    const SafetensorsFile expected(test::fixtures() / "fold" / (std::string(name) + ".safetensors"));
    std::size_t num_compared = 0;
    for (const HubSource& source :
         hub_sources(list_parameters(fixture.model.config), rows,
                     [](const ParameterSpec&, const std::string& tensor) { return tensor; })) {
      INFO(fmt::format("{} {}", name, source.name));
      const HostTensor before = SafetensorsFolder(test::fixtures() / name).read(source.name),
                       now = read_source(source);
      if (!expected.contains(source.name)) {
        CHECK(test::same_bits(now.view(), before.view()));
        continue;
      }
      ++num_compared;
      // f32 activations and sums against double; the change itself is some percent of the weights.
      CHECK(relative_error(now, expected.read(source.name)) < 1e-5);
      CHECK(relative_error(now, before) > 1e-3);
    }
    CHECK(num_compared == expected.tensors().size());
  }
}

TEST_CASE("block by block a model has the loss of its whole graph") {
  for (const std::string& name : test::family_fixtures())
    for (const FarSkipMode mode : {FarSkipMode::off, FarSkipMode::full, FarSkipMode::ladder}) {
      INFO(fmt::format("{} {}", name, name_of(farskip_mode_names, mode)));
      const Fixture fixture(name, {mode, {}});
      const ModelConfig& config = fixture.model.config;
      const FoldText text = read_text(config, 3);
      const Context context = test::quiet_context();
      WalkingModel walking(config, fixture.model.layers, text, {0, 3, 1}, context, context);
      for (std::size_t i = 0; i < fixture.model.layers.blocks.size(); ++i) {
        const LayerBlock& block = fixture.model.layers.blocks[i];
        walking.use_weights(load_layer(config, fixture.rows, block.layer, make_cpu_device()));
        if (block.kind != SubBlock::head) walking.compute(static_cast<int>(i));
      }
      InferenceEngine engine(fixture.model, fixture.weights, test::quiet_context());
      const double expected = engine.loss({text.tokens, text.targets, {}}, 32).loss_sum / (3 * 32);
      CHECK(walking.loss() == Catch::Approx(expected).epsilon(1e-6));
    }
}

TEST_CASE("every family folds onto every wiring, and fits what it fits") {
  for (const std::string& name : test::family_fixtures())
    for (const FarSkipMode mode :
         {FarSkipMode::attention, FarSkipMode::full, FarSkipMode::shortcut, FarSkipMode::delay}) {
      const Fixture fixture(name);
      const FarSkipConfig wiring{mode, {}};
      const Folded folded = fixture.fold(wiring, read_text(fixture.model.config, 64));
      for (const FoldEdge& edge : folded.edges) {
        INFO(fmt::format("{} {}: {}.{} {}", name, name_of(farskip_mode_names, mode), edge.layer,
                         block_name(edge.block), fold_side_name(edge.side)));
        CHECK(std::isfinite(edge.error_before));
        CHECK(edge.error_after <= edge.error_before);
      }
    }
}

TEST_CASE("attention and MLP that read the same stream are fitted apart, as their norms differ") {
  const Fixture fixture("llama");
  const FarSkipConfig wiring{FarSkipMode::delay, {}, 3};
  const LayerGraph layers = wire_model(fixture.model.config, wiring).layers;
  const int attention = layers.find(SubBlock::attention, 1), dense = layers.find(SubBlock::dense, 1);
  REQUIRE(layers.reads(attention) == layers.reads(dense));
  std::map<SubBlock, double> errors;
  for (const FoldEdge& edge : fixture.fold(wiring, read_text(fixture.model.config, 16)).edges)
    if (edge.layer == 1 && edge.side == FoldSide::input) errors[edge.block] = edge.error_before;
  REQUIRE(errors.size() == 2);
  CHECK(errors.at(SubBlock::attention) != errors.at(SubBlock::dense));
}

TEST_CASE(
    "layers before the first rewired one keep their weights, and later standard ones mend what is left") {
  const Fixture fixture("deepseek_v2");
  FarSkipConfig wiring = kFull;
  wiring.layers = *parse_layer_selection("2-2").value;
  const Folded folded = fixture.fold(wiring, read_text(fixture.model.config, 64));
  REQUIRE(!folded.edges.empty());
  CHECK(folded.edges.front().layer == 2);
  for (const FoldEdge& edge : folded.edges)
    if (edge.layer == 3) CHECK(edge.side == FoldSide::output);
  for (const auto& [name, weights] : folded.weights) CHECK(!name.starts_with("model.layers.1."));
}

TEST_CASE("a fold of activations that are not finite names layer and matrix") {
  const Fixture fixture("deepseek_v2");
  for (const auto& [broken, named] :
       {std::pair{"model.layers.0.self_attn.kv_b_proj.weight", "layers.0.mlp.gate_up_proj"},
        {"model.layers.2.mlp.experts.down_proj", "layers.2.mlp.experts.down_proj"}}) {
    const RowReader rows = [&](const LocalParameter& p, std::int64_t first, const TensorView& to) {
      fixture.rows(p, first, to);
      if (p.spec.name == broken) to.as<float>()[0] = std::numeric_limits<float>::quiet_NaN();
    };
    const auto fold = [&] {
      fold_model(fixture.model, wire_model(fixture.model.config, kFull).layers, rows,
                 read_text(fixture.model.config, 8), test::quiet_context());
    };
    CHECK_THROWS_AS(fold(), DataError);
    CHECK_THROWS_WITH(fold(), ContainsSubstring(named) && ContainsSubstring("is not finite"));
  }
}

TEST_CASE("a model folded onto its own wiring stays as it is") {
  const Fixture fixture("deepseek_v2", kFull);
  const Folded folded = fixture.fold(kFull, read_text(fixture.model.config, 8));
  CHECK(folded.edges.empty());
  CHECK(folded.weights.empty());
}

}  // namespace
}  // namespace farskip
