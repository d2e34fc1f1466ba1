// SPDX-License-Identifier: Apache-2.0
// Orders that put collectives under computation.

#include "schedule/list_scheduler.h"

#include <algorithm>
#include <numeric>

#include "plan_simulation.h"
#include "random_graph.h"
#include "schedule/hideable.h"
#include "support/catch.h"

namespace farskip {
namespace {

std::size_t no_workspace(const OpDef&, const OpTypes&) {
  return 0;
}
std::size_t some_workspace(const OpDef& op, const OpTypes& types) {
  return op.name == "matmul" || (op.collective && types.inputs.size() > 1) ? 1000 : 0;
}

double makespan(const Graph& graph, const Plan& plan, const NodeSeconds& seconds) {
  return simulate(graph, plan, seconds).makespan;
}

void check_sound(const Graph& graph, const Plan& plan) {
  CHECK_NOTHROW(verify_plan(graph, plan));
  CHECK(test::simulate_plan(graph, plan) == "");
}

// ---- any graph -----------------------------------------------------------------------------------------

/// Of some kinds: all alike, all over the place, nothing, transports that are long or short beside the rest.
NodeSeconds random_seconds(const Graph& graph, std::mt19937& random) {
  const auto kind = random() % 5;
  NodeSeconds seconds;
  for (const Node& node : graph.nodes()) {
    const double any = static_cast<double>(random() % 1000) / 100;
    const bool rare = random() % 4 == 0;
    seconds.push_back(kind == 0                            ? 1.0
                      : kind == 1                          ? any
                      : kind == 2                          ? (rare ? any : 0.0)
                      : (kind == 3) == node.op->collective ? 8 * any
                                                           : any);
  }
  return seconds;
}

/// Longest chain of nodes of which each reads the one before it.
double critical_path(const Graph& graph, const NodeSeconds& seconds) {
  std::vector<double> end(graph.nodes().size(), 0.0);
  for (std::size_t n = 0; n < end.size(); ++n) {
    for (const ValueId v : graph.nodes()[n].inputs)
      if (v && graph.value(v).producer) end[n] = std::max(end[n], end[graph.value(v).producer.index()]);
    end[n] += seconds[n];
  }
  return *std::max_element(end.begin(), end.end());
}

/// No order of the ops can take less.
double least_time(const Graph& graph, const NodeSeconds& seconds) {
  double compute = 0, transport = 0;
  for (std::size_t n = 0; n < seconds.size(); ++n)
    (graph.nodes()[n].op->collective ? transport : compute) += seconds[n];
  return std::max({critical_path(graph, seconds), compute, transport,
                   compute + transport - find_hideable(graph, seconds).seconds});
}

TEST_CASE(
    "any graph: the plan is sound, repeatable, never slower than the late serial one or faster than "
    "possible") {
  std::mt19937 random(17);
  int faster = 0, best_possible = 0;
  for (int i = 0; i < 200; ++i) {
    const Graph graph = test::make_random_graph(random);
    const NodeSeconds seconds = random_seconds(graph, random);
    INFO(i << "\n" << print_graph(graph));
    const Plan plan = make_overlapped_plan(graph, some_workspace, seconds);
    check_sound(graph, plan);
    CHECK(plan == make_overlapped_plan(graph, some_workspace, seconds));
    const double late = makespan(graph, make_serial_plan(graph, some_workspace, Waits::late), seconds);
    const double got = makespan(graph, plan, seconds), least = least_time(graph, seconds);
    CHECK(got <= late);
    CHECK(got >= least - 1e-9);
    faster += static_cast<int>(got < 0.99 * late);
    best_possible += static_cast<int>(got < least + 1e-9);
  }
  CHECK(faster > 100);
  CHECK(best_possible > 50);
}

TEST_CASE("any graph: the plan keeps a limit of memory that the serial plan can keep") {
  std::mt19937 random(19);
  int limited = 0;
  for (int i = 0; i < 100; ++i) {
    const Graph graph = test::make_random_graph(random);
    const NodeSeconds seconds = random_seconds(graph, random);
    const Plan at_once = make_serial_plan(graph, some_workspace, Waits::at_once),
               late = make_serial_plan(graph, some_workspace, Waits::late),
               free = make_overlapped_plan(graph, some_workspace, seconds);
    const std::size_t more = free.live_bytes - std::min(at_once.live_bytes, free.live_bytes);
    for (const std::size_t limit : {at_once.live_bytes, at_once.live_bytes + more / 2}) {
      INFO(i << ", " << limit << " bytes\n" << print_graph(graph));
      const Plan plan = make_overlapped_plan(graph, some_workspace, seconds, {.memory_limit = limit});
      check_sound(graph, plan);
      CHECK(plan.live_bytes <= limit);
      CHECK(plan == make_overlapped_plan(graph, some_workspace, seconds, {.memory_limit = limit}));
      CHECK(makespan(graph, plan, seconds) <= makespan(graph, at_once, seconds));
      if (late.live_bytes <= limit) CHECK(makespan(graph, plan, seconds) <= makespan(graph, late, seconds));
      limited += static_cast<int>(free.live_bytes > limit);
    }
  }
  CHECK(limited > 20);
}

TEST_CASE("where no order keeps the limit, the one that exceeds it least is taken") {
  std::mt19937 random(23);
  for (int i = 0; i < 20; ++i) {
    const Graph graph = test::make_random_graph(random);
    const Plan plan = make_overlapped_plan(graph, no_workspace, NodeSeconds(graph.nodes().size(), 1.0),
                                           {.memory_limit = 1});
    check_sound(graph, plan);
    CHECK(plan.live_bytes <= make_serial_plan(graph, no_workspace, Waits::at_once).live_bytes);
  }
}

TEST_CASE("a graph without collectives keeps its order, and a wrong number of costs is refused") {
  const Graph graph = parse_graph(R"(%0 = input "x" : f32[8, 8]
%1 = matmul(%0, %0)
%2 = matmul(%1, %0)
output "y" = %2
)");
  const NodeSeconds seconds{1, 1};
  CHECK(make_overlapped_plan(graph, no_workspace, seconds) == make_serial_plan(graph, no_workspace));
  CHECK_THROWS_WITH(make_overlapped_plan(graph, no_workspace, {1.0}),
                    ContainsSubstring("1 costs for 2 nodes"));
}

// ---- by hand -------------------------------------------------------------------------------------------

struct Expected {
  std::string order;
  double serial, overlapped;  // simulated seconds
};

void check_order(const std::string& text, const NodeSeconds& seconds, const Expected& expected) {
  const Graph graph = parse_graph(text);
  const Plan plan = make_overlapped_plan(graph, no_workspace, seconds);
  check_sound(graph, plan);
  CHECK(test::order_of(plan) == expected.order);
  CHECK(makespan(graph, plan, seconds) == Catch::Approx(expected.overlapped));
  CHECK(makespan(graph, make_serial_plan(graph, no_workspace, Waits::late), seconds) ==
        Catch::Approx(expected.serial));
}

TEST_CASE("a weight gradient that stands before a collective is kept for its window") {
  check_order(R"(%0 = input "dy" : f32[8, 8]
%1 = parameter "w" : f32[8, 8]
%2 = state "dw" : f32[8, 8]
%3 = matmul(%0, %0, %2) {transpose_a=true}
%4 = matmul(%0, %1)
%5 = all_reduce(%4) {axis=world, size=2, rank=0}
%6 = matmul(%5, %1)
output "dx" = %6
update %2 -> %3
)",
              {2, 1, 2, 1}, {"1 +2 0 -2 3", 6, 4});
}

TEST_CASE("rows leave before attention that does not need them, and attention runs in both their windows") {
  // 0 and 1 attention, 2 router, 3 dispatch, 4 experts, 5 combine, 6 the sum.
  check_order(R"(%0 = input "x" : f32[8, 8]
%1 = matmul(%0, %0)
%2 = matmul(%1, %0)
%3 = matmul(%0, %0)
%4 = all_reduce(%3) {axis=expert, size=2, rank=0}
%5 = matmul(%4, %0)
%6 = all_reduce(%5) {axis=expert, size=2, rank=0}
%7 = add(%6, %2)
output "y" = %7
)",
              {3, 3, 1, 3, 2, 3, 0.5}, {"2 +3 0 -3 4 +5 1 -5 6", 15.5, 9.5});
}

const char* const kReduction = R"(%0 = input "x" : f32[8, 8]
%1 = matmul(%0, %0)
%2 = all_reduce(%1) {axis=data, size=2, rank=0}
%3 = matmul(%1, %0)
%4 = all_reduce(%3) {axis=expert, size=2, rank=0}
%5 = matmul(%4, %0)
output "gradient" = %2
output "y" = %5
)";

TEST_CASE("a gradient's long reduction does not stand in the way of an exchange") {
  // It could start a second earlier; then the exchange would wait for the link, and its reader with it.
  check_order(kReduction, {1, 10, 1, 2, 5}, {"0 2 +3 +1 -3 4 -1", 18, 14});
}

TEST_CASE("a gradient's reduction that fits before an exchange is not put off") {
  check_order(kReduction, {1, 1, 1, 4, 5}, {"0 +1 2 +3 -3 4 -1", 11, 11});
}

TEST_CASE("what brings weights comes in time, and no earlier than memory allows") {
  // Layers whose weights are gathered, each as large as four activations.
  constexpr int layers = 12;
  constexpr std::size_t weight = sizeof(float) * 32 * 32, stream = sizeof(float) * 8 * 32;
  std::string text = "%0 = input \"x\" : f32[8, 32]\n";
  for (int i = 1; i <= layers; ++i) text += fmt::format("%{} = parameter \"own.{}\" : f32[16, 32]\n", i, i);
  for (int i = 0; i < layers; ++i) {
    const int w = layers + 1 + 2 * i;
    text += fmt::format(
        "%{} = all_gather(%{}) {{axis=data, size=2, rank=0, bounds=[0 16 32]}} : f32[32, 32]\n", w, i + 1);
    text += fmt::format("%{} = matmul(%{}, %{}) {{transpose_b=true}} : f32[8, 32]\n", w + 1,
                        i == 0 ? 0 : w - 1, w);
  }
  text += fmt::format("output \"y\" = %{}\n", 3 * layers);
  const Graph graph = parse_graph(text);
  for (const double gather_seconds : {0.1, 0.5, 0.9}) {
    NodeSeconds seconds;
    for (const Node& node : graph.nodes()) seconds.push_back(node.op->collective ? gather_seconds : 1.0);
    const std::size_t limit = 2 * weight + 2 * stream;
    const Plan plan = make_overlapped_plan(graph, no_workspace, seconds, {.memory_limit = limit});
    check_sound(graph, plan);
    CHECK(plan.live_bytes <= limit);
    CHECK(makespan(graph, plan, seconds) == Catch::Approx(gather_seconds + layers));
  }
}

TEST_CASE(
    "what can be computed at any time does not fill the memory while a transport has nothing beside it") {
  // Each layer reads a product that no layer before it changes, as the backward's recomputation is, leaves a
  // small gradient to be computed at any time, and sends what the next layer begins with.
  constexpr int layers = 8;
  const std::size_t large = std::size_t{32} * 32 * sizeof(float);
  std::string text = "%0 = input \"x\" : f32[8, 32]\n%1 = input \"w\" : f32[32, 32]\n";
  int stream = 0, next = 2;
  std::string outputs;
  for (int i = 0; i < layers; ++i) {
    const int begun = next, again = next + 1, gradient = next + 2, sent = next + 3, received = next + 4;
    text += fmt::format("%{} = add(%{}, %{})\n", begun, stream, stream);
    text += fmt::format("%{} = matmul(%1, %1)\n", again);
    text += fmt::format("%{} = matmul(%{}, %{})\n", gradient, begun, again);
    text += fmt::format("%{} = matmul(%{}, %{}) {{transpose_b=true}}\n", sent, begun, again);
    text += fmt::format("%{} = all_reduce(%{}) {{axis=tensor, size=2, rank=0}}\n", received, sent);
    outputs += fmt::format("output \"g{}\" = %{}\n", i, gradient);
    stream = received;
    next += 5;
  }
  const Graph graph = parse_graph(text + outputs + fmt::format("output \"y\" = %{}\n", stream));
  NodeSeconds seconds;
  for (const Node& node : graph.nodes()) seconds.push_back(node.op->collective ? 4.0 : 1.0);
  const Plan serial = make_serial_plan(graph, no_workspace, Waits::late);
  const std::size_t limit = serial.live_bytes + large / 2;
  const Plan plan = make_overlapped_plan(graph, no_workspace, seconds, {.memory_limit = limit});
  check_sound(graph, plan);
  CHECK(plan.live_bytes <= limit);
  // At least a gradient is beside each transport.
  CHECK(makespan(graph, serial, seconds) == 8.0 * layers);
  CHECK(makespan(graph, plan, seconds) <= 7.0 * layers);
}

TEST_CASE("of two exchanges the one on which more depends goes first") {
  check_order(R"(%0 = input "x" : f32[8, 8]
%1 = all_reduce(%0) {axis=expert, size=2, rank=0}
%2 = all_reduce(%0) {axis=expert, size=2, rank=0}
%3 = matmul(%2, %0)
%4 = add(%3, %1)
output "y" = %4
)",
              {2, 2, 5, 1}, {"+1 +0 -1 2 -0 3", 10, 8});
}

}  // namespace
}  // namespace farskip
