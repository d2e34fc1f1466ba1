// SPDX-License-Identifier: Apache-2.0
// The clock of the planner, by hand.

#include "farskip/schedule/simulate.h"

#include "support/catch.h"

namespace farskip {
namespace {

std::size_t no_workspace(const OpDef&, const OpTypes&) {
  return 0;
}

// 0 and 1 are products, 2 and 3 exchanges of x, 4 reads both, 5 reads 4.
const char* const kGraph = R"(%0 = input "x" : f32[8, 8]
%1 = matmul(%0, %0)
%2 = matmul(%1, %0)
%3 = all_reduce(%0) {axis=world, size=2, rank=0}
%4 = all_reduce(%0) {axis=world, size=2, rank=0}
%5 = add(%3, %4)
%6 = add(%5, %2)
output "y" = %6
)";

OrderedStep run(std::size_t n) {
  return {NodeId(n), StepKind::run};
}
OrderedStep start(std::size_t n) {
  return {NodeId(n), StepKind::start};
}
OrderedStep wait(std::size_t n) {
  return {NodeId(n), StepKind::wait};
}

Timeline simulate_order(const NodeSeconds& seconds, const std::vector<OrderedStep>& order) {
  const Graph graph = parse_graph(kGraph);
  const Plan plan = make_plan(graph, no_workspace, order);
  verify_plan(graph, plan);
  return simulate(graph, plan, seconds);
}

void check_span(const Timeline& t, std::size_t node, double begin, double end) {
  INFO("node " << node);
  CHECK(t.nodes[node].begin == Catch::Approx(begin));
  CHECK(t.nodes[node].end == Catch::Approx(end));
}

TEST_CASE("one after the other, every transport is exposed whole") {
  const Timeline t = simulate_order({2, 3, 4, 5, 1, 1},
                                    {run(0), run(1), start(2), wait(2), start(3), wait(3), run(4), run(5)});
  CHECK(t.makespan == Catch::Approx(16));
  CHECK(t.exposed[2] == Catch::Approx(4));
  CHECK(t.exposed[3] == Catch::Approx(5));
  CHECK(t.exposed_seconds == Catch::Approx(9));
  check_span(t, 3, 9, 14);
  check_span(t, 5, 15, 16);
}

TEST_CASE("transports follow each other on the link, and what outlasts the computation is exposed") {
  const Timeline t = simulate_order({2, 3, 4, 5, 1, 1},
                                    {start(2), start(3), run(0), run(1), wait(2), wait(3), run(4), run(5)});
  check_span(t, 2, 0, 4);
  check_span(t, 3, 4, 9);  // the link is busy until 4
  check_span(t, 1, 2, 5);
  CHECK(t.exposed[2] == 0);                 // over before 5
  CHECK(t.exposed[3] == Catch::Approx(4));  // from 5 to 9
  CHECK(t.exposed_seconds == Catch::Approx(4));
  CHECK(t.makespan == Catch::Approx(11));
}

TEST_CASE("a wait stops the computation, so that an exposed second is counted once") {
  const Timeline t = simulate_order({2, 3, 4, 5, 1, 1},
                                    {start(2), start(3), run(0), wait(3), wait(2), run(1), run(4), run(5)});
  CHECK(t.exposed[3] == Catch::Approx(7));  // from 2 to 9, in which the other one ends too
  CHECK(t.exposed[2] == 0);
  CHECK(t.makespan == Catch::Approx(14));
}

TEST_CASE("a link that is free does not begin before the start, and an idle one loses the time") {
  const Timeline t = simulate_order({2, 3, 1, 1, 1, 1},
                                    {run(0), start(2), run(1), start(3), wait(2), wait(3), run(4), run(5)});
  check_span(t, 2, 2, 3);
  check_span(t, 3, 5, 6);
  CHECK(t.exposed_seconds == Catch::Approx(1));
  CHECK(t.makespan == Catch::Approx(8));
}

TEST_CASE("work and waits add up to the whole") {
  const NodeSeconds seconds{2, 3, 4, 5, 1, 1};
  for (const auto& order :
       {std::vector{run(0), start(2), run(1), start(3), wait(2), wait(3), run(4), run(5)},
        std::vector{start(3), run(0), run(1), start(2), wait(3), wait(2), run(4), run(5)}}) {
    const Timeline t = simulate_order(seconds, order);
    CHECK(t.makespan == Catch::Approx(2 + 3 + 1 + 1 + t.exposed_seconds));
  }
}

}  // namespace
}  // namespace farskip
