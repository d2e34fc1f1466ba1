// SPDX-License-Identifier: Apache-2.0
// The fold as a whole: against NumPy, on every family, and where there is nothing to fold.
#include "fold/fold.h"

#include <map>
#include <set>

#include "comm/local.h"
#include "farskip/engine/engine.h"
#include "fold/folded_file.h"
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
  struct Result {
    Folded folded;
    TensorMap weights;  // that it has changed
  };
  Result fold(const FarSkipConfig& wiring, const FoldText& text,
              const Communicator& world = make_self_communicator()) const {
    Result result;
    result.folded =
        fold_model(model, wire_model(model.config, wiring).layers, rows, text, world, test::quiet_context(),
                   [&](const std::string& name, const HostTensor& changed) {
                     CHECK(result.weights.emplace(name, changed).second);
                   });
    return result;
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
    const TensorMap changed = fixture.fold(kFull, read_text(fixture.model.config, 64)).weights;
    FoldedFile file(fs::temp_directory_path(), DType::f32);
    for (const auto& [parameter, weights] : changed) file.add(parameter, weights);
    const RowReader rows = file.over(fixture.rows);
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
      CHECK(walking.loss({0, 3, 1}) == Catch::Approx(expected).epsilon(1e-6));
    }
}

TEST_CASE("the losses that a fold reports are all over the sequences that it holds out") {
  const Fixture fixture("llama");
  const FoldText text = read_text(fixture.model.config, 32);
  REQUIRE(text.held_out > 0);
  const auto held_out = [&](const std::vector<std::int32_t>& all) {
    return std::vector<std::int32_t>(all.begin() + text.fitted * text.sequence_length, all.end());
  };
  const auto loss_of = [&](const Model& model) {
    InferenceEngine engine(model, fixture.weights, test::quiet_context());
    return engine.loss({held_out(text.tokens), held_out(text.targets), {}}, text.sequence_length).loss_sum /
           static_cast<double>(text.held_out * text.sequence_length);
  };
  const Model rewired = wire_model(fixture.model.config, kFull);
  const auto [folded, changed] = fixture.fold(kFull, text);
  CHECK(folded.teacher_loss == Catch::Approx(loss_of(fixture.model)).epsilon(1e-6));
  CHECK(folded.loss_before == Catch::Approx(loss_of(rewired)).epsilon(1e-6));
  write_states(*fixture.weights, changed, Role::weight);
  CHECK(folded.loss_after == Catch::Approx(loss_of(rewired)).epsilon(1e-6));
}

TEST_CASE("every family folds onto every wiring, and fits what it fits") {
  for (const std::string& name : test::family_fixtures())
    for (const FarSkipMode mode :
         {FarSkipMode::attention, FarSkipMode::full, FarSkipMode::shortcut, FarSkipMode::delay}) {
      const Fixture fixture(name);
      const FarSkipConfig wiring{mode, {}};
      const Folded folded = fixture.fold(wiring, read_text(fixture.model.config, 64)).folded;
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
  for (const FoldEdge& edge : fixture.fold(wiring, read_text(fixture.model.config, 16)).folded.edges)
    if (edge.layer == 1 && edge.side == FoldSide::input) errors[edge.block] = edge.error_before;
  REQUIRE(errors.size() == 2);
  CHECK(errors.at(SubBlock::attention) != errors.at(SubBlock::dense));
}

TEST_CASE("ranks that share the sequences fold as one rank does, and all to the same bits") {
  for (const char* name : {"deepseek_v2", "llama"}) {
    const Fixture fixture(name);
    const FoldTextOptions all{kTokens, 64, 32};
    const auto text_of = [&](int rank, int ranks) {
      FoldTextOptions share = all;
      share.rank = rank;
      share.ranks = ranks;
      return read_fold_text(share, fixture.model.config, std::nullopt, Logger(LogLevel::off));
    };
    const Fixture::Result one = fixture.fold(kFull, text_of(0, 1));
    for (const int ranks : {2, 3, 4}) {
      INFO(fmt::format("{}, {} ranks", name, ranks));
      // 60 and 4 sequences; three ranks leave some out.
      const double tolerance = ranks == 3 ? 0.05 : 1e-5;
      std::vector<Fixture::Result> results(static_cast<std::size_t>(ranks));
      run_local_ranks(ranks, [&](const Communicator& world) {
        results[static_cast<std::size_t>(world.rank())] =
            fixture.fold(kFull, text_of(world.rank(), ranks), world);
      });
      for (const Fixture::Result& result : results) {
        REQUIRE(result.weights.size() == one.weights.size());
        for (const auto& [parameter, weights] : result.weights) {
          INFO(parameter);
          CHECK(test::same_bits(weights.view(), results[0].weights.at(parameter).view()));
          CHECK(relative_error(weights, one.weights.at(parameter)) < tolerance);
        }
        REQUIRE(result.folded.edges.size() == one.folded.edges.size());
        for (std::size_t i = 0; i < one.folded.edges.size(); ++i) {
          const FoldEdge &many = result.folded.edges[i], &single = one.folded.edges[i];
          CHECK(many.error_before == Catch::Approx(single.error_before).epsilon(3 * tolerance));
          CHECK(many.error_after == Catch::Approx(single.error_after).epsilon(3 * tolerance));
          CHECK(many.ridge == Catch::Approx(single.ridge).epsilon(ranks == 3 ? 0.05 : 1e-12));
        }
        CHECK(result.folded.teacher_loss == Catch::Approx(one.folded.teacher_loss).epsilon(tolerance));
        CHECK(result.folded.loss_after == Catch::Approx(one.folded.loss_after).epsilon(tolerance));
      }
    }
  }
}

TEST_CASE("folded weights in a file are read in place of a model's, in its type") {
  const Fixture fixture("llama");
  const TensorMap changed = fixture.fold(kFull, read_text(fixture.model.config, 16)).weights;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    FoldedFile file(fs::temp_directory_path(), dtype);
    for (const auto& [parameter, weights] : changed) file.add(parameter, weights);
    const RowReader rows = file.over(fixture.rows);
    for (const LocalParameter& p : whole_parameters(list_parameters(fixture.model.config))) {
      INFO(p.spec.name);
      const std::int64_t first = p.spec.num_rows() / 3;
      const HostTensor read(DType::f32, shape_of_rows(p.spec.shape, p.spec.num_rows() - first)),
          old(DType::f32, read.shape());
      rows(p, first, read.view());
      fixture.rows(p, first, old.view());
      const auto at = changed.find(p.spec.name);
      if (at == changed.end()) {
        CHECK(test::same_bits(read.view(), old.view()));
        continue;
      }
      const HostTensor rounded = convert_dtype(convert_dtype(at->second, dtype), DType::f32);
      CHECK(test::same_bits(read.view(), rows_view(rounded.view(), first, p.spec.num_rows() - first)));
    }
  }
}

TEST_CASE("folded weights beyond the range of bf16 are refused by name") {
  FoldedFile file(fs::temp_directory_path(), DType::bf16);
  HostTensor large(DType::f32, Shape{2, 3});
  std::fill_n(large.view().as<float>(), 6, 1.0F);
  large.view().as<float>()[4] = std::numeric_limits<float>::max();
  CHECK_THROWS_AS(file.add("model.layers.0.mlp.down_proj.weight", large), DataError);
  CHECK_THROWS_WITH(file.add("model.layers.1.mlp.down_proj.weight", large),
                    ContainsSubstring("layers.1.mlp.down_proj") && ContainsSubstring("write f32"));
}

TEST_CASE(
    "layers before the first rewired one keep their weights, and later standard ones mend what is left") {
  const Fixture fixture("deepseek_v2");
  FarSkipConfig wiring = kFull;
  wiring.layers = *parse_layer_selection("2-2").value;
  const auto [folded, changed] = fixture.fold(wiring, read_text(fixture.model.config, 64));
  REQUIRE(!folded.edges.empty());
  CHECK(folded.edges.front().layer == 2);
  for (const FoldEdge& edge : folded.edges)
    if (edge.layer == 3) CHECK(edge.side == FoldSide::output);
  for (const auto& [name, weights] : changed) CHECK(!name.starts_with("model.layers.1."));
  std::set<std::string> names;
  for (const auto& [name, weights] : changed) names.insert(name);
  CHECK(folded_parameters(fixture.model, wire_model(fixture.model.config, wiring).layers) == names);
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
                 read_text(fixture.model.config, 8), make_self_communicator(), test::quiet_context(),
                 [](const std::string&, const HostTensor&) {});
    };
    CHECK_THROWS_AS(fold(), DataError);
    CHECK_THROWS_WITH(fold(), ContainsSubstring(named) && ContainsSubstring("is not finite"));
  }
}

TEST_CASE("a model folded onto its own wiring stays as it is") {
  const Fixture fixture("deepseek_v2", kFull);
  const auto [folded, changed] = fixture.fold(kFull, read_text(fixture.model.config, 8));
  CHECK(folded.edges.empty());
  CHECK(changed.empty());
}

}  // namespace
}  // namespace farskip
