// SPDX-License-Identifier: Apache-2.0
// A model measured against its teacher: what comes out is what the logits of both say.
#include <algorithm>
#include <cmath>

#include "distill/distill_setup.h"
#include "fold/matrices.h"
#include "support/catch.h"
#include "support/context.h"
#include "support/states.h"
#include "support/support.h"

namespace farskip {
namespace {

constexpr std::int64_t kLength = 8;

using Rows = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// log-probabilities [T, V].
Rows log_probabilities(InferenceEngine& engine, const Batch& batch) {
  Rows rows = as_matrix(engine.logits(batch.tokens, kLength)).cast<double>();
  for (Eigen::Index t = 0; t < rows.rows(); ++t) {
    const double max = rows.row(t).maxCoeff();
    rows.row(t).array() -= max + std::log((rows.row(t).array() - max).exp().sum());
  }
  return rows;
}

TEST_CASE("KL, agreement and losses of a comparison are those of the logits of both models") {
  const fs::path folder = test::fixtures() / "qwen3_moe";
  const ModelConfig config = read_hub_config(folder);
  const auto weights = test::load_weights(folder);
  const Context context = test::quiet_context();
  const Model student = wire_model(config, {FarSkipMode::full, {}});
  InferenceEngine compared(student, weights, context, open_comparison(folder, config, DType::f32, context)),
      ours(student, weights, context), theirs(wire_model(config), weights, context);
  Batch batch;
  for (std::int32_t i = 0; i < 4 * kLength; ++i) {
    batch.tokens.push_back((13 * i + 5) % static_cast<std::int32_t>(config.vocab_size));
    batch.targets.push_back(i % 3 == 0 ? -1 : (5 * i) % static_cast<std::int32_t>(config.vocab_size));
  }
  const Rows q = log_probabilities(ours, batch), p = log_probabilities(theirs, batch);
  double kl = 0, agreement = 0, loss = 0, teacher_loss = 0;
  for (Eigen::Index t = 0; t < q.rows(); ++t) {
    const std::int32_t target = batch.targets[static_cast<std::size_t>(t)];
    if (target < 0) continue;
    Eigen::Index best_of_q = 0, best_of_p = 0;
    q.row(t).maxCoeff(&best_of_q);
    p.row(t).maxCoeff(&best_of_p);
    kl += (p.row(t).array().exp() * (p.row(t) - q.row(t)).array()).sum();
    agreement += best_of_q == best_of_p ? 1 : 0;
    loss -= q(t, target);
    teacher_loss -= p(t, target);
  }
  const auto sums = compared.loss(batch, kLength).sums;
  REQUIRE(kl > 1e-3);
  CHECK(sums.at("kl") == Catch::Approx(kl).epsilon(1e-5));
  CHECK(sums.at("agreement") == agreement);
  CHECK(sums.at("student_loss") == Catch::Approx(loss).epsilon(1e-6));
  CHECK(sums.at("teacher_loss") == Catch::Approx(teacher_loss).epsilon(1e-6));
}

TEST_CASE("a comparison with a teacher of another vocabulary is refused") {
  ModelConfig config = read_hub_config(test::fixtures() / "qwen3_moe");
  config.vocab_size += 1;
  const Context context = test::quiet_context();
  CHECK_THROWS_AS(open_comparison(test::fixtures() / "qwen3_moe", config, DType::f32, context), UsageError);
  CHECK_THROWS_WITH(open_comparison(test::fixtures() / "qwen3_moe", config, DType::f32, context),
                    ContainsSubstring("tokens in its vocabulary"));
}

}  // namespace
}  // namespace farskip
