// SPDX-License-Identifier: Apache-2.0
// How much transport can be hidden at all: maximum flows by hand, and against the minimum cut.

#include "schedule/hideable.h"

#include <algorithm>

#include "random_graph.h"
#include "support/catch.h"

namespace farskip {
namespace {

TEST_CASE("one piece of computation does not hide two transports at once") {
  const Graph graph = parse_graph(R"(%0 = input "x" : f32[8, 8]
%1 = all_reduce(%0) {axis=world, size=2, rank=0}
%2 = all_reduce(%0) {axis=world, size=2, rank=0}
%3 = matmul(%0, %0)
%4 = add(%1, %2)
%5 = add(%4, %3)
output "y" = %5
)");
  const Hideable h = find_hideable(graph, {3, 2, 4, 1, 1});
  CHECK(h.transport_seconds == Catch::Approx(5));
  CHECK(h.window[0] == Catch::Approx(4));  // both may have the product beside them
  CHECK(h.window[1] == Catch::Approx(4));
  CHECK(h.any_window_seconds == Catch::Approx(4));
  CHECK(h.seconds == Catch::Approx(4));  // min(3, 4) + min(2, 4) would be 5
  CHECK(find_hideable(graph, {3, 2, 9, 1, 1}).seconds == Catch::Approx(5));
}

TEST_CASE("where everything depends on the transport or is needed by it, nothing can be hidden") {
  const Graph graph = parse_graph(R"(%0 = input "x" : f32[8, 8]
%1 = matmul(%0, %0)
%2 = all_reduce(%1) {axis=world, size=2, rank=0}
%3 = matmul(%2, %1)
output "y" = %3
)");
  const Hideable h = find_hideable(graph, {5, 3, 5});
  CHECK(h.transport_seconds == Catch::Approx(3));
  CHECK(h.window[1] == 0);
  CHECK(h.any_window_seconds == 0);
  CHECK(h.seconds == 0);
}

TEST_CASE("a flow goes round: the transport with one window leaves the shared one to the other") {
  // 0 may run beside both products, 2 only beside 3.
  const Graph graph = parse_graph(R"(%0 = input "x" : f32[8, 8]
%1 = all_reduce(%0) {axis=world, size=2, rank=0}
%2 = matmul(%0, %0)
%3 = all_reduce(%2) {axis=world, size=2, rank=0}
%4 = matmul(%0, %0)
%5 = add(%1, %3)
%6 = add(%5, %4)
output "y" = %6
)");
  const Hideable h = find_hideable(graph, {4, 4, 4, 4, 1, 1});
  CHECK(h.window[0] == Catch::Approx(8));
  CHECK(h.window[2] == Catch::Approx(4));
  CHECK(h.seconds == Catch::Approx(8));  // 0 under 1, 2 under 3
}

TEST_CASE("state that a transport reads before it is updated keeps the update out of its window") {
  const Graph graph = parse_graph(R"(%0 = state "s" : f32[8, 8]
%1 = input "x" : f32[8, 8]
%2 = all_reduce(%0) {axis=world, size=2, rank=0}
%3 = add(%0, %1)
output "y" = %2
update %0 -> %3
)");
  CHECK(find_hideable(graph, {3, 3}).seconds == 0);
}

TEST_CASE("phases are counted by themselves, and the whole may hide more than their sum") {
  // 0 and 1 forward, 2 and 3 backward; nothing depends on anything.
  const Graph graph = parse_graph(R"(%0 = input "x" : f32[8, 8]
%1 = all_reduce(%0) {axis=world, size=2, rank=0} @0.routed.forward
%2 = matmul(%0, %0) @0.attention.forward
%3 = all_reduce(%0) {axis=world, size=2, rank=0} @0.routed.backward
%4 = matmul(%0, %0) @0.attention.backward
output "a" = %1
output "b" = %2
output "c" = %3
output "d" = %4
)");
  const NodeSeconds seconds{4, 1, 2, 5};
  const Phase forward = Phase::forward, backward = Phase::backward;
  const Hideable f = find_hideable(graph, seconds, &forward), b = find_hideable(graph, seconds, &backward),
                 all = find_hideable(graph, seconds);
  CHECK(f.seconds == Catch::Approx(1));
  CHECK(f.window[0] == Catch::Approx(1));
  CHECK(f.window[2] == 0);
  CHECK(b.seconds == Catch::Approx(2));
  CHECK(all.seconds == Catch::Approx(6));
  CHECK(all.window[0] == Catch::Approx(6));
  CHECK(f.transport_seconds + b.transport_seconds == Catch::Approx(all.transport_seconds));
}

/// needs[a][b]: a comes after b. Edges by the rules of a graph: inputs, and old state before its update.
std::vector<std::vector<char>> find_needs(const Graph& graph) {
  const std::size_t size = graph.nodes().size();
  std::vector<std::vector<char>> needs(size, std::vector<char>(size, 0));
  for (std::size_t n = 0; n < size; ++n)
    for (const ValueId v : graph.nodes()[n].inputs)
      if (const NodeId producer = graph.value(v).producer) needs[n][producer.index()] = 1;
  for (const StateUpdate& u : graph.updates())
    for (std::size_t n = 0; n < size; ++n) {
      const auto& inputs = graph.nodes()[n].inputs;
      const std::size_t writer = graph.value(u.to).producer.index();
      if (n != writer && std::find(inputs.begin(), inputs.end(), u.from) != inputs.end())
        needs[writer][n] = 1;
    }
  for (std::size_t k = 0; k < size; ++k)
    for (std::size_t a = 0; a < size; ++a)
      for (std::size_t b = 0; b < size; ++b)
        if (needs[a][k] != 0 && needs[k][b] != 0) needs[a][b] = 1;
  return needs;
}

/// Max flow = min cut: over all sets of collectives, the time of those outside and of all computation that
/// may run beside one inside.
double min_cut(const Graph& graph, const NodeSeconds& seconds) {
  const auto needs = find_needs(graph);
  std::vector<std::size_t> collectives, computes;
  for (std::size_t n = 0; n < seconds.size(); ++n)
    (graph.nodes()[n].op->collective ? collectives : computes).push_back(n);
  double least = -1;
  for (std::size_t set = 0; set < std::size_t{1} << collectives.size(); ++set) {
    double cut = 0;
    for (std::size_t i = 0; i < collectives.size(); ++i)
      if ((set >> i & 1) == 0) cut += seconds[collectives[i]];
    for (const std::size_t c : computes) {
      bool beside = false;
      for (std::size_t i = 0; i < collectives.size(); ++i)
        beside =
            beside || ((set >> i & 1) != 0 && needs[c][collectives[i]] == 0 && needs[collectives[i]][c] == 0);
      if (beside) cut += seconds[c];
    }
    if (least < 0 || cut < least) least = cut;
  }
  return least;
}

TEST_CASE("of any graph the flow is as large as the smallest cut") {
  std::mt19937 random(29);
  int compared = 0, less_than_all = 0;
  while (compared < 60) {
    const Graph graph = test::make_random_graph(random);
    const auto num_collectives = std::count_if(graph.nodes().begin(), graph.nodes().end(),
                                               [](const Node& n) { return n.op->collective; });
    if (num_collectives > 12) continue;
    ++compared;
    NodeSeconds seconds;
    for (const Node& node : graph.nodes())
      seconds.push_back(static_cast<double>(random() % 50) * (node.op->collective ? 3 : 1));
    INFO(print_graph(graph));
    const Hideable h = find_hideable(graph, seconds);
    CHECK(h.seconds == Catch::Approx(min_cut(graph, seconds)).margin(1e-9));
    double separately = 0;
    for (std::size_t n = 0; n < seconds.size(); ++n)
      if (graph.nodes()[n].op->collective) separately += std::min(seconds[n], h.window[n]);
    less_than_all += static_cast<int>(h.seconds < separately - 1e-9);
  }
  CHECK(less_than_all > 10);
}

}  // namespace
}  // namespace farskip
