// SPDX-License-Identifier: Apache-2.0
// Distillation over ranks that are threads.
#include <cmath>
#include <set>

#include "comm/local.h"
#include "distill/distillation.h"
#include "passes/farskip.h"
#include "rank_graph.h"
#include "run/trainer.h"
#include "schedule/list_scheduler.h"
#include "support/catch.h"
#include "support/run_files.h"
#include "support/states.h"
#include "support/support.h"

namespace farskip::test {
namespace {

const Logger kQuiet(LogLevel::off);

struct Ranks {
  int count = 1, expert = 1;
  int zero = 0;
  bool overlap = true;
  int chunks = 1, tensor = 1;
  std::string text() const {
    return fmt::format("{} ranks, experts over {}, ZeRO {}, {} chunks, matrices over {}", count, expert, zero,
                       chunks, tensor);
  }
};

struct Result {
  std::vector<nlohmann::json> metrics;
  TensorMap weights;
};

RunConfig make_config(const fs::path& run_dir, const Ranks& ranks,
                      const std::vector<std::string>& overrides) {
  const fs::path teacher = fixtures() / "deepseek_v2";
  const std::string yaml =
      fmt::format(R"(
run_dir: {}
device: cpu
farskip: {{mode: full}}
parallel: {{expert: {}, zero: {}, tensor: {}}}
schedule: {{overlap: {}, expert_chunks: {}}}
data: {{tokens: [{}/tokens], validation: [{}/tokens]}}
train:
  steps: 4
  sequence_length: 16
  global_batch: 8
  micro_batch: 2
  learning_rate: {{schedule: constant, peak: 1.0e-3}}
  optimizer: {{eps: 1.0e-4}}
  validate_every: 2
distill: {{teacher: {}}}
checkpoint: {{every: 0, keep: 10, async: false}}
)",
                  run_dir.string(), ranks.expert, ranks.zero, ranks.tensor, ranks.overlap, ranks.chunks,
                  teacher.string(), teacher.string(), teacher.string());
  ErrorList errors;
  ConfigNode tree = parse_yaml_text(yaml, "test", errors);
  for (const std::string& o : overrides) apply_override(tree, o, errors);
  RunConfig config = read_run_config(tree, errors, {.needs = {.distill = true}});
  errors.throw_if_any();
  return config;
}

Result distill(const fs::path& run_dir, const Ranks& ranks, const std::vector<std::string>& overrides) {
  const RunConfig config = make_config(run_dir, ranks, overrides);
  ModelConfig model = read_hub_config(config.distill->teacher);
  model.farskip = *config.farskip;
  on_ranks(ranks.count, [&](const Communicator& world) {
    Heartbeat heartbeat;
    return train(config, model, world, heartbeat, kQuiet).step;
  });
  Result result;
  result.metrics = read_metrics(run_dir);
  result.weights = read_states(*load_weights(checkpoint_folder(run_dir, 4)), Role::weight);
  return result;
}

const std::vector<std::string> kEverything{"distill.loss={kl: 0.7, jsd: 0.3, sft: 0.1}",
                                           "distill.hidden_l2=0.1", "distill.router_agreement=0.1",
                                           "distill.freeze=[head]", "distill.local_stage.share=0.5"};

TEST_CASE("distillation over ranks is that of one rank") {
  const TemporaryFolder folder;
  const std::string kept = (folder / "kept").string();
  // The losses that parts of a vocabulary compare by themselves, those that need whole rows of logits, and
  // kept outputs.
  const std::vector<std::vector<std::string>> losses{
      {"distill.loss={kl: 0.7, reverse_kl: 0.3, sft: 0.1}", "distill.temperature=1.5",
       "distill.hidden_l2=0.1", "distill.local_stage.share=0.5"},
      kEverything,
      {"distill.cache.top_k=12", "distill.cache.path=" + kept}};
  for (std::size_t loss = 0; loss < losses.size(); ++loss) {
    const std::vector<std::string>& overrides = losses[loss];
    INFO(overrides[0]);
    const fs::path runs = folder / fmt::format("loss {}", loss);
    const Result one = distill(runs / "one", {}, overrides);
    for (const Ranks& ranks : {Ranks{2, 2}, Ranks{2, 1, 1}, Ranks{4, 2, 1}, Ranks{2, 2, 0, true, 3},
                               Ranks{2, 1, 2}, Ranks{4, 2, 3}, Ranks{.count = 2, .tensor = 2},
                               Ranks{.count = 4, .expert = 2, .zero = 3, .tensor = 2}}) {
      INFO(ranks.text());
      fs::remove_all(kept);
      const Result many = distill(runs / ranks.text(), ranks, overrides);
      REQUIRE(many.metrics.size() == one.metrics.size());
      for (std::size_t i = 0; i < one.metrics.size(); ++i)
        for (const char* key : {"loss", "kl", "student_loss", "teacher_loss", "agreement", "grad_norm"})
          CHECK(many.metrics[i][key].get<double>() ==
                Catch::Approx(one.metrics[i][key].get<double>()).epsilon(1e-5).margin(1e-6));
      CHECK(many.metrics[3]["validation_loss"].get<double>() ==
            Catch::Approx(one.metrics[3]["validation_loss"].get<double>()).epsilon(1e-5));
      double worst = 0;
      for (const auto& [name, tensor] : one.weights)
        for (std::size_t i = 0; i < tensor.values<float>().size(); ++i)
          worst = std::max(worst, std::abs(static_cast<double>(tensor.values<float>()[i]) -
                                           static_cast<double>(many.weights.at(name).values<float>()[i])));
      CHECK(worst < 1e-5);
    }
  }
}

TEST_CASE(
    "a distillation over ranks begins with the weights that one rank folds, whatever each of them keeps") {
  const TemporaryFolder folder;
  const std::vector<std::string> overrides{
      fmt::format("distill.fold.tokens={}/tokens", (fixtures() / "deepseek_v2").string()),
      "distill.fold.sequences=128", "train.learning_rate.peak=1e-9"};
  const Result one = distill(folder / "one", {}, overrides);
  const Result plain = distill(folder / "plain", {}, {"train.learning_rate.peak=1e-9"});
  for (const Ranks& ranks :
       {Ranks{2, 2}, Ranks{4, 2, 1}, Ranks{2, 1, 2}, Ranks{4, 2, 3}, Ranks{.count = 2, .tensor = 2},
        Ranks{.count = 4, .expert = 2, .zero = 3, .tensor = 2}}) {
    INFO(ranks.text());
    const Result many = distill(folder / ranks.text(), ranks, overrides);
    for (const auto& [name, tensor] : one.weights) {
      INFO(name);
      const auto at = [&](const Result& result) { return result.weights.at(name).values<float>(); };
      double worst = 0, change = 0;
      for (std::size_t i = 0; i < at(one).size(); ++i) {
        worst = std::max(worst, std::abs(static_cast<double>(at(one)[i]) - static_cast<double>(at(many)[i])));
        change =
            std::max(change, std::abs(static_cast<double>(at(one)[i]) - static_cast<double>(at(plain)[i])));
      }
      CHECK(worst <= 1e-7 + 1e-3 * change);
    }
    for (const char* key : {"validation_untrained_loss", "validation_loss"})
      CHECK(many.metrics[3][key].get<double>() ==
            Catch::Approx(one.metrics[3][key].get<double>()).epsilon(1e-5));
  }
}

TEST_CASE("distillation that overlaps teacher and student gives the bits of the blocking one") {
  const TemporaryFolder folder;
  for (const Ranks& ranks :
       {Ranks{2, 2, 0, true, 2}, Ranks{2, 1, 1}, Ranks{2, 1, 3}, Ranks{.count = 2, .tensor = 2}}) {
    Ranks blocking = ranks;
    blocking.overlap = false;
    std::vector<std::string> overrides = kEverything;
    if (ranks.tensor > 1) overrides[0] = "distill.loss={kl: 0.7, reverse_kl: 0.3, sft: 0.1}";
    const Result a = distill(folder / ("a " + ranks.text()), ranks, overrides);
    const Result b = distill(folder / ("b " + ranks.text()), blocking, overrides);
    REQUIRE(a.metrics.size() == b.metrics.size());
    for (std::size_t i = 0; i < a.metrics.size(); ++i)
      for (const char* key : {"loss", "kl", "grad_norm", "student_loss"})
        CHECK(a.metrics[i][key] == b.metrics[i][key]);
    for (const auto& [name, tensor] : a.weights) CHECK(same_bits(tensor, b.weights.at(name)));
  }
}

TEST_CASE("a student that is its teacher has exactly no divergence from it, and no gradient") {
  const TemporaryFolder folder;
  for (const int tensor : {1, 2, 4}) {
    const Result same = distill(folder / fmt::format("{}", tensor), {.count = tensor, .tensor = tensor},
                                {"farskip.mode=off", "distill.loss={kl: 1, reverse_kl: 0.5}",
                                 "distill.temperature=3", "train.optimizer.weight_decay=0"});
    for (const nlohmann::json& step : same.metrics) {
      CHECK(step["kl"] == 0);
      CHECK(step["grad_norm"] == 0);
      CHECK(step["agreement"] == 1);
    }
  }
}

TEST_CASE("a loss of whole rows of logits needs a vocabulary that the ranks divide") {
  ModelConfig model = read_hub_config(fixtures() / "qwen3_moe");
  model.vocab_size = 61;
  LowerOptions options;
  options.sequence_length = 8;
  const StepSharding sharding{{2, 0, 1, 2}, 0, 64};
  const auto objective = [&](const ops::DistillLoss& loss) {
    return build_graph(DistillObjective({.loss = loss}, Teacher{wire_model(model)}, nullptr)
                           .forward(wire_model(model), options, sharding));
  };
  CHECK(objective({.reverse_kl = 0.5, .sft = 0.5}).find_output("loss_sum"));
  for (const ops::DistillLoss& loss : {ops::DistillLoss{.jsd = 0.5}, ops::DistillLoss{.top_k = 4}})
    CHECK_THROWS_WITH(objective(loss), ContainsSubstring("parallel.tensor is 2") && ContainsSubstring("61") &&
                                           ContainsSubstring("distill.loss.jsd"));
}

TEST_CASE("the teacher runs while the student's rows travel") {
  const ModelConfig model = read_hub_config(fixtures() / "deepseek_v2");
  ModelConfig student = model;
  student.farskip = {FarSkipMode::full, {}};
  Teacher teacher{wire_model(model)};
  const DistillObjective objective({}, std::move(teacher), nullptr);
  LowerOptions options;
  options.batch = 2;
  options.sequence_length = 32;
  const Graph graph = build_graph(objective.forward(wire_model(student), options, {{2, 0, 2}, 0, 192}));
  NodeSeconds seconds;
  for (std::size_t n = 0; n < graph.nodes().size(); ++n)
    seconds.push_back(graph.nodes()[n].op->collective ? 3.0 : graph.cost(NodeId(n)).flops * 1e-6);
  const Plan plan = make_overlapped_plan(graph, cpu_workspace, seconds);
  verify_plan(graph, plan);
  int beside[2][2] = {};  // [model of a transport][model of a product under it]
  std::set<std::int16_t> in_flight;
  std::map<NodeId, std::int16_t> open;
  for (const PlanStep& step : plan.steps) {
    const Node& node = graph.node(step.node);
    if (step.kind == StepKind::start) open[step.node] = node.scope.model;
    if (step.kind == StepKind::wait) open.erase(step.node);
    if (step.kind == StepKind::run && node.op->name == "matmul")
      for (const auto& [id, model_number] : open) ++beside[model_number][node.scope.model];
  }
  CHECK(beside[0][1] > 0);  // the teacher's under the student's
  CHECK(beside[1][0] > 0);  // and the reverse
}

}  // namespace
}  // namespace farskip::test
