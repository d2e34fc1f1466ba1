// SPDX-License-Identifier: Apache-2.0
// Training on plans whose collectives run under computation: another order, the same bits.

#include <cmath>
#include <map>

#include "farskip/base/random.h"
#include "farskip/schedule/costs.h"
#include "layouts.h"
#include "schedule/list_scheduler.h"
#include "support/catch.h"
#include "support/states.h"

namespace farskip::test {
namespace {

const Logger kQuiet(LogLevel::off);
constexpr std::uint64_t kSeed = 7;

/// Costs by place in the graph, the same on every rank as measured ones are, and unlike those of any real
/// machine, so that orders come up that no measurement would give.
double made_up_seconds(const Graph& graph, NodeId id, std::uint64_t round) {
  const double scale = graph.node(id).op->collective ? 10 : 1;
  return scale * uniform_double(kSeed, graph.nodes().size() + 1000 * round, id.index());
}

struct RankSteps {
  std::vector<std::string> orders;  // of each executed plan
  std::vector<double> losses;
  Tensors tensors;  // gradients by step, then weights and moments
  CostTable costs;
};

struct Setup {
  std::string fixture;
  FarSkipMode wiring = FarSkipMode::off;
  Layout layout;
};

Batch make_batch(const ModelConfig& model, const TrainEngineOptions& options, std::uint64_t number) {
  Batch batch;
  for (std::int64_t i = 0; i < options.micro_batch * options.sequence_length; ++i) {
    const auto token = [&](std::uint64_t k) {
      return static_cast<std::int32_t>(
          uniform_double(kSeed, 1000 + number, static_cast<std::uint64_t>(i) + k) *
          static_cast<double>(model.vocab_size));
    };
    batch.tokens.push_back(token(0));
    batch.targets.push_back(i % 5 == 4 ? -1 : token(1));
  }
  return batch;
}

std::string order_text(const Plan& plan) {
  std::string text;
  for (const PlanStep& step : plan.steps)
    text += fmt::format("{}{} ",
                        step.kind == StepKind::start  ? "+"
                        : step.kind == StepKind::wait ? "-"
                                                      : "",
                        step.node.value);
  return text;
}

/// Two steps of two micro-batches. Without `costs` every collective is waited for at once, and costs are made
/// up for the round.
RankSteps train(const Setup& setup, const Communicator& world, std::shared_ptr<const CostTable> costs,
                std::uint64_t round) {
  const fs::path folder = fixtures() / setup.fixture;
  const ModelConfig model = read_hub_config(folder);
  const Mesh mesh(world, setup.layout.expert);
  const std::vector<ParameterSpec> specs = list_parameters(model);
  const auto parameters = local_parameters(specs, mesh.position(), setup.layout.zero);
  const auto states = load_weights(folder, mesh.position(), setup.layout.zero);
  TrainEngineOptions options;
  options.micro_batch = 2;
  options.sequence_length = 12;
  options.micro_batches = 2;
  options.balance_loss = true;
  options.zero = setup.layout.zero;
  options.overlap = costs != nullptr;
  options.costs = costs;
  options.optimizer.eps = 1e-4;
  TrainEngine engine(wire_model(model, {setup.wiring, {}}), states, options, quiet_context(mesh));
  RankSteps out;
  engine.observe([&](const Executor& executor, const std::vector<StepTime>&) {
    out.orders.push_back(order_text(executor.plan()));
    const Graph& graph = executor.graph();
    for (std::size_t n = 0; n < graph.nodes().size(); ++n)
      out.costs.add(graph, NodeId(n), made_up_seconds(graph, NodeId(n), round));
  });
  for (std::int64_t step = 0; step < 2; ++step) {
    std::vector<Batch> batches;
    for (std::uint64_t i = 0; i < 2; ++i)
      batches.push_back(make_batch(
          model, options, static_cast<std::uint64_t>(step * 2 * world.size() + 2 * world.rank()) + i));
    const BatchLoss loss = engine.compute_gradients(batches, 0.02F, 0.01F);
    out.losses.insert(out.losses.end(), {loss.loss_sum, loss.num_correct, loss.balance_loss});
    for (const LocalParameter& p : parameters)  // with ZeRO the sums are in the rows that this rank updates
      out.tensors[fmt::format("gradient {} of step {}", p.spec.name, step)] =
          copy_tensor(states->own_rows(gradient_name(p.spec.name)));
    out.losses.push_back(static_cast<double>(engine.update(1e-2, step + 1)));
  }
  for (const StateSpec& spec : states->specs())
    if (spec.role != Role::gradient) out.tensors[spec.name] = copy_tensor(states->at(spec.name));
  return out;
}

void check_same_bits(const RankSteps& got, const RankSteps& want) {
  CHECK(got.losses == want.losses);
  REQUIRE(got.tensors.size() == want.tensors.size());
  for (const auto& [name, tensor] : want.tensors) {
    INFO(name);
    CHECK(same_bits(got.tensors.at(name), tensor));
  }
}

TEST_CASE("overlapped plans give the bits of plans that wait at once, whatever the costs") {
  for (const char* fixture : {"deepseek_v2", "qwen3_moe"})
    for (const FarSkipMode wiring : {FarSkipMode::off, FarSkipMode::full})
      for (const Layout& layout : {Layout{2, 1, false}, Layout{2, 1, true}, Layout{1, 2, false},
                                   Layout{1, 2, true}, Layout{1, 3, true}}) {
        const Setup setup{fixture, wiring, layout};
        INFO(fixture << ", " << name_of(farskip_mode_names, wiring) << ", " << layout.text());
        std::vector<RankSteps> blocking;
        for (const std::uint64_t round : {0U, 1U}) {
          blocking = on_ranks(layout.ranks(),
                              [&](const Communicator& world) { return train(setup, world, nullptr, round); });
          const auto overlapped = on_ranks(layout.ranks(), [&](const Communicator& world) {
            const auto& costs = blocking[static_cast<std::size_t>(world.rank())].costs;
            return train(setup, world, std::make_shared<const CostTable>(costs), round);
          });
          for (std::size_t rank = 0; rank < blocking.size(); ++rank) {
            INFO("rank " << rank << ", costs " << round);
            REQUIRE(std::isfinite(blocking[rank].losses[0]));
            check_same_bits(overlapped[rank], blocking[rank]);
            // Or the comparison would prove nothing. (The first micro-batch of data parallelism has no
            // collectives.)
            REQUIRE(overlapped[rank].orders.size() == blocking[rank].orders.size());
            CHECK(overlapped[rank].orders[1] != blocking[rank].orders[1]);
          }
        }
      }
}

/// Products of attention that run while a collective is in flight.
int attention_beside_transports(const Graph& graph, const Plan& plan) {
  int in_flight = 0, count = 0;
  for (const PlanStep& step : plan.steps) {
    if (step.kind == StepKind::start) ++in_flight;
    if (step.kind == StepKind::wait) --in_flight;
    const Node& node = graph.node(step.node);
    if (in_flight > 0 && node.scope.block == SubBlock::attention && node.op->name == "matmul") ++count;
  }
  return count;
}

TEST_CASE("with FarSkip rows travel while attention runs, in the standard wiring they cannot") {
  const ModelConfig model = read_hub_config(fixtures() / "deepseek_v2");
  LowerOptions options;
  options.batch = 2;
  options.sequence_length = 32;
  for (const FarSkipMode wiring : {FarSkipMode::off, FarSkipMode::full}) {
    const Graph graph =
        build_graph(forward_pipeline(wire_model(model, {wiring, {}}), options, {{2, 0, 2}, false, 192}));
    NodeSeconds seconds;
    for (std::size_t n = 0; n < graph.nodes().size(); ++n) {
      const OpCost cost = graph.cost(NodeId(n));
      seconds.push_back(graph.nodes()[n].op->collective ? 0.3 : cost.flops * 1e-6 + cost.bytes * 1e-7);
    }
    const Plan plan = make_overlapped_plan(graph, cpu_workspace, seconds);
    verify_plan(graph, plan);
    const double exposed = simulate(graph, plan, seconds).exposed_seconds;
    if (wiring == FarSkipMode::full) {
      CHECK(attention_beside_transports(graph, plan) > 5);
      CHECK(exposed == 0);
    } else {
      CHECK(attention_beside_transports(graph, plan) == 0);
      CHECK(exposed > 0.2);  // shared experts do not fill the windows
    }
  }
}

}  // namespace
}  // namespace farskip::test
