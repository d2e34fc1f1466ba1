// SPDX-License-Identifier: Apache-2.0
// The local stage: against its formula over blocks that are run one by one, and as a part of a run.
#include <cmath>

#include "distill/distill_setup.h"
#include "fold/graph_runner.h"
#include "fold/matrices.h"
#include "support/catch.h"
#include "support/context.h"
#include "support/run_files.h"
#include "support/small_run.h"
#include "support/states.h"

namespace farskip {
namespace {

constexpr std::int64_t kLength = 8, kSequences = 3;

using Stream = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Batch make_batch() {
  Batch batch;
  for (std::int32_t i = 0; i < kSequences * kLength; ++i) {
    batch.tokens.push_back((7 * i + 3) % 160);
    batch.targets.push_back(i % 5 == 0 ? -1 : (11 * i) % 160);
  }
  return batch;
}

LowerOptions lower_options() {
  LowerOptions options;
  options.batch = kSequences;
  options.sequence_length = kLength;
  return options;
}

/// What each block adds to the stream in the model's whole graph.
std::vector<Stream> contributions_of(const Model& model, const std::shared_ptr<const States>& weights,
                                     const Batch& batch) {
  LowerOptions options = lower_options();
  options.head = HeadOutput::hidden;
  options.contributions = true;
  GraphRunner runner(lower(model.config, model.layers, options), test::quiet_context(), weights);
  runner.write("tokens", batch.tokens.data());
  runner.run();
  std::vector<Stream> contributions;
  for (std::size_t i = 0; i + 1 < model.layers.blocks.size(); ++i)
    contributions.emplace_back(as_matrix(runner.read(fmt::format("contribution.{}", i)).view()));
  return contributions;
}

/// What a block alone makes of a stream.
Stream run_block(const Model& model, std::size_t i, const std::shared_ptr<const States>& weights,
                 const Batch& batch, const Stream& stream) {
  const LayerBlock& block = model.layers.blocks[i];
  GraphRunner runner(lower_block(model.config, block, lower_options()), test::quiet_context(), weights);
  if (block.kind == SubBlock::embedding)
    runner.write("tokens", batch.tokens.data());
  else
    runner.write("stream", stream.data());
  runner.run();
  return as_matrix(runner.read("out").view());
}

Stream sum_of(const std::vector<Stream>& terms, const std::vector<int>& which) {
  Stream sum = Stream::Zero(terms[0].rows(), terms[0].cols());
  for (const int i : which) sum += terms[static_cast<std::size_t>(i)];
  return sum;
}

/// By what squares of a token's differences are divided, over two.
double size_of(const Stream& stream, Eigen::Index t) {
  const Eigen::Index first = t / kLength * kLength;
  const double mean = stream.middleRows(first + 1, kLength - 1).cast<double>().squaredNorm() /
                      static_cast<double>(kLength - 1);
  return stream.row(t).cast<double>().squaredNorm() + mean;
}

TEST_CASE("in a local stage blocks read the teacher's activations and are compared with its blocks") {
  const test::TemporaryFolder folder;
  const test::SmallRun run =
      test::make_small_run(folder / "run", test::SmallRunKind::distill, {"distill.local_stage.share=0.5"});
  const auto teacher_weights = test::make_weights(run.model), states = test::make_weights(run.model);
  Heartbeat heartbeat;
  const Context context = test::quiet_context(make_self_mesh(), make_cpu_device(), &heartbeat);
  const Distillation distillation(run.config, run.model, *states, context);
  load_weights(*teacher_weights, list_parameters(run.model), SafetensorsFolder(test::small_model()));
  const ParameterSpec* changed =
      nullptr;  // the student's block is not the teacher's, and what follows not either
  for (const StateSpec& spec : states->specs())
    if (spec.name == "model.layers.0.self_attn.o_proj.weight") {
      changed = &spec.parameter->spec;
      for (float& x : std::span(states->at(spec.name).as<float>(),
                                static_cast<std::size_t>(states->at(spec.name).num_elements())))
        x *= 1.5F;
    }
  REQUIRE(changed != nullptr);

  const Batch batch = make_batch();
  const Model student = wire_model(run.model), teacher = wire_model(run.model, {FarSkipMode::off, {}});
  const std::vector<Stream> target = contributions_of(teacher, teacher_weights, batch);
  double expected = 0;
  for (std::size_t i = 0; i < target.size(); ++i) {
    const Stream input = i == 0 ? Stream() : sum_of(target, student.layers.reads(static_cast<int>(i)));
    const Stream difference = run_block(student, i, states, batch, input) - target[i];
    std::vector<int> behind;  // all up to the end of the layer
    for (std::size_t j = 0;
         j < target.size() && teacher.layers.blocks[j].layer <= teacher.layers.blocks[i].layer; ++j)
      behind.push_back(static_cast<int>(j));
    const Stream stream = sum_of(target, behind);
    for (Eigen::Index t = 0; t < stream.rows(); ++t)
      if (batch.targets[static_cast<std::size_t>(t)] >= 0)
        expected += 2.0 * difference.row(t).cast<double>().squaredNorm() / size_of(stream, t) /
                    static_cast<double>(target.size());
  }
  REQUIRE(expected > 0);
  InferenceEngine engine(student, states, context, distillation.objective_at(0));
  const BatchLoss loss = engine.loss(batch, kLength);
  CHECK(loss.sums.at("local_loss") == Catch::Approx(expected).epsilon(2e-5));
  CHECK(loss.sums.at("kl") == 0.0);  // the head reads the teacher's stream
}

TEST_CASE("a run ends its local stage at the share of its steps, and goes on from either side of it") {
  const test::TemporaryFolder folder;
  const auto run = [&](const char* name) {
    return test::run_small(test::make_small_run(
        folder / name, test::SmallRunKind::distill,
        {"distill.local_stage.share=0.5", "train.steps=6", "checkpoint.every=2", "checkpoint.keep=9"}));
  };
  run("whole");
  const auto metrics = test::read_metrics(folder / "whole");
  REQUIRE(metrics.size() == 6);
  for (std::size_t i = 0; i < metrics.size(); ++i) CHECK(metrics[i].contains("local_loss") == (i < 3));
  CHECK(metrics[2]["local_loss"] < metrics[0]["local_loss"]);
  for (const std::vector<int>& lost : {std::vector{6}, {4, 6}}) {
    const std::string name = fmt::format("from-{}", lost[0] - 2);
    run(name.c_str());
    for (const int step : lost) fs::remove_all(test::checkpoint_folder(folder / name, step));
    CHECK(run(name.c_str()).step == 6);
    CHECK(test::checkpoint_bytes(folder / "whole", 6) == test::checkpoint_bytes(folder / name, 6));
  }
}

TEST_CASE("a local stage wants a teacher with the student's layers") {
  const ModelConfig student = read_hub_config(test::small_model());
  ModelConfig teacher = student;
  DistillConfig config;
  config.teacher = "other";
  config.local_share = 0.1;
  CHECK_NOTHROW(make_terms(config, student, teacher));
  --teacher.num_layers;
  teacher.moe_layers.pop_back();
  CHECK_THROWS_WITH(make_terms(config, student, teacher),
                    ContainsSubstring("distill.local_stage") && ContainsSubstring("other has other layers"));
}

}  // namespace
}  // namespace farskip
