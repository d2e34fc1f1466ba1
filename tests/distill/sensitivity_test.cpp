// SPDX-License-Identifier: Apache-2.0
#include "distill/sensitivity.h"

#include "distill/distill_setup.h"
#include "support/catch.h"
#include "support/context.h"
#include "support/states.h"
#include "support/support.h"

namespace farskip {
namespace {

TEST_CASE("the cost of a layer is that of a model in which it alone is rewired") {
  const fs::path folder = test::fixtures() / "deepseek_v2";
  const ModelConfig config = read_hub_config(folder);
  const auto weights = test::load_weights(folder);
  const Context context = test::quiet_context();
  const FoldText text =
      read_fold_text({(folder / "tokens").string(), 40, 32}, config, std::nullopt, Logger(LogLevel::off));
  FarSkipConfig wiring{FarSkipMode::full, {}};
  wiring.layers = *parse_layer_selection("1-3").value;
  const Sensitivity found = measure_sensitivity(wire_model(config), wiring, weights, text, context);

  const auto objective = open_comparison(folder, config, DType::f32, context);
  const auto check = [&](const RewiringCost& cost, const std::string& layers) {
    INFO("layers " + layers);
    FarSkipConfig alone = wiring;
    alone.layers = *parse_layer_selection(layers).value;
    InferenceEngine engine(wire_model(config, alone), weights, context, objective);
    const auto sums = engine.loss({text.tokens, text.targets, {}}, 32).sums;
    const auto tokens = static_cast<double>(text.tokens.size());
    CHECK(cost.kl > 0);
    CHECK(cost.kl == Catch::Approx(sums.at("kl") / tokens).epsilon(1e-5));
    CHECK(cost.loss == Catch::Approx(sums.at("student_loss") / tokens).epsilon(1e-6));
    CHECK(cost.agreement == Catch::Approx(sums.at("agreement") / tokens));
    CHECK(found.model_loss == Catch::Approx(sums.at("teacher_loss") / tokens).epsilon(1e-6));
  };
  REQUIRE(found.layers.size() == 3);
  for (const RewiringCost& cost : found.layers) check(cost, fmt::format("{0}-{0}", cost.layer));
  CHECK(found.layers[0].layer == 1);
  CHECK(found.all.layer == -1);
  check(found.all, "1-3");
}

}  // namespace
}  // namespace farskip
