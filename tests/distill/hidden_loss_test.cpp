// SPDX-License-Identifier: Apache-2.0
// The intermediate loss against its formulas, in double, over the streams of both models.
#include <cmath>

#include "fold/graph_runner.h"
#include "fold/matrices.h"
#include "support/catch.h"
#include "support/context.h"
#include "support/run_files.h"
#include "support/small_run.h"
#include "support/states.h"

namespace farskip {
namespace {

constexpr std::int64_t kLength = 8;

using Stream = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Batch make_batch() {
  Batch batch;
  for (std::int32_t i = 0; i < 3 * kLength; ++i) {
    batch.tokens.push_back((7 * i + 3) % 160);
    batch.targets.push_back(i % 5 == 0 ? -1 : (11 * i) % 160);
  }
  return batch;
}

/// The streams behind these layers.
std::vector<Stream> streams_of(const Model& model, const std::shared_ptr<const States>& weights,
                               const Batch& batch, const std::vector<std::int64_t>& layers) {
  LowerOptions options;
  options.batch = 3;
  options.sequence_length = kLength;
  options.head = HeadOutput::hidden;
  options.streams = layers;
  const Context context = test::quiet_context();
  GraphRunner runner(lower(model.config, model.layers, options), context, weights);
  runner.write("tokens", batch.tokens.data());
  runner.run();
  std::vector<Stream> streams;
  for (const std::int64_t layer : layers) {
    const HostTensor stream = runner.read(fmt::format("stream.{}", layer));
    streams.emplace_back(as_matrix(stream.view()).cast<double>());
  }
  return streams;
}

double token_difference(HiddenLossKind kind, const Stream& f, const Stream& h, Eigen::Index t) {
  const Eigen::Index first = t / kLength * kLength;
  switch (kind) {
    case HiddenLossKind::l2:
      return (f.row(t) - h.row(t)).squaredNorm() / static_cast<double>(f.cols());
    case HiddenLossKind::normalised: {
      const double mean =
          h.middleRows(first + 1, kLength - 1).squaredNorm() / static_cast<double>(kLength - 1);
      return 2.0 * (f.row(t) - h.row(t)).squaredNorm() / (h.row(t).squaredNorm() + mean);
    }
    case HiddenLossKind::cosine:
      return 1.0 - f.row(t).dot(h.row(t)) / (f.row(t).norm() * h.row(t).norm());
  }
  throw InternalError("a kind without formula");
}

TEST_CASE("the hidden loss is what its formula says of the streams, and falls to zero where it is annealed") {
  const test::TemporaryFolder folder;
  for (const auto& [name, kind] : hidden_loss_names)
    for (const std::string layers : {"[]", "[1, 3]"}) {
      INFO(fmt::format("{} of layers {}", name, layers));
      const test::SmallRun run = test::make_small_run(
          folder / "run", test::SmallRunKind::distill,
          {fmt::format("distill.hidden_loss={{kind: {}, weight: 0.3, anneal: 0.5}}", name), "train.steps=8",
           "distill.hidden_layers=" + layers});
      const auto states = test::make_weights(run.model);
      Heartbeat heartbeat;
      const Context context = test::quiet_context(make_self_mesh(), make_cpu_device(), &heartbeat);
      Distillation distillation(run.config, run.model, *states, context);
      InferenceEngine engine(wire_model(run.model), states, context, distillation.objective());

      std::vector<std::int64_t> compared{1, 3};
      if (layers == "[]") compared = {0, 1, 2, 3};
      std::vector<Batch> batches{make_batch()};
      const auto student = streams_of(wire_model(run.model), states, batches[0], compared),
                 teacher =
                     streams_of(wire_model(run.model, {FarSkipMode::off, {}}), states, batches[0], compared);
      double expected = 0;
      for (std::size_t i = 0; i < compared.size(); ++i)
        for (std::size_t t = 0; t < batches[0].targets.size(); ++t)
          if (batches[0].targets[t] >= 0)
            expected += 0.3 / static_cast<double>(compared.size()) *
                        token_difference(kind, student[i], teacher[i], static_cast<Eigen::Index>(t));
      REQUIRE(expected > 0);
      for (const auto& [step, factor] : {std::pair{0, 1.0}, {4, 1.0}, {5, 0.75}, {7, 0.25}}) {
        distillation.complete(batches, step);
        CHECK(engine.loss(batches[0], kLength).sums.at("hidden_loss") ==
              Catch::Approx(factor * expected).epsilon(2e-5));
      }
    }
}

TEST_CASE("held-out text is not compared inside the layers") {
  const test::TemporaryFolder folder;
  const test::SmallRun run =
      test::make_small_run(folder / "run", test::SmallRunKind::distill, {"distill.hidden_l2=0.3"});
  const auto states = test::make_weights(run.model);
  Heartbeat heartbeat;
  const Context context = test::quiet_context(make_self_mesh(), make_cpu_device(), &heartbeat);
  const Distillation distillation(run.config, run.model, *states, context);
  InferenceEngine learned(wire_model(run.model), states, context, distillation.objective()),
      held_out(wire_model(run.model), states, context, distillation.validation_objective());
  const BatchLoss a = learned.loss(make_batch(), kLength), b = held_out.loss(make_batch(), kLength);
  CHECK(a.sums.contains("hidden_loss"));
  CHECK_FALSE(b.sums.contains("hidden_loss"));
  CHECK(a.sums.at("kl") == b.sums.at("kl"));
}

}  // namespace
}  // namespace farskip
