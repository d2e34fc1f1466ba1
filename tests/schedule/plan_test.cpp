// SPDX-License-Identifier: Apache-2.0
#include "farskip/schedule/plan.h"

#include <random>

#include "farskip/ops/ops.h"
#include "support/catch.h"

namespace farskip {
namespace {

std::size_t no_workspace(const OpDef&, const OpTypes&) {
  return 0;
}
std::size_t some_workspace(const OpDef& op, const OpTypes&) {
  return op.name == "matmul" ? 1000 : 0;
}

TEST_CASE("buffers that are not alive together share memory") {
  // A chain of products: at most two of the four results are alive at once.
  const Graph graph = parse_graph(R"(%0 = input "x" : f32[64, 64]
%1 = matmul(%0, %0)
%2 = matmul(%1, %0)
%3 = matmul(%2, %0)
%4 = matmul(%3, %0)
output "y" = %4
)");
  const Plan plan = make_serial_plan(graph, no_workspace);
  verify_plan(graph, plan);
  CHECK(plan.arena_bytes == 2 * 64 * 64 * 4);
  CHECK(plan.live_bytes == plan.arena_bytes);
  const Plan with_scratch = make_serial_plan(graph, some_workspace);
  verify_plan(graph, with_scratch);
  CHECK(with_scratch.arena_bytes == 2 * 64 * 64 * 4 + 1024);
}

TEST_CASE("an op writes over a dying input where it may, and never over one that is read again") {
  const Graph chain = parse_graph(R"(%0 = input "x" : f32[64, 64]
%1 = matmul(%0, %0)
%2 = add(%1, %0)
%3 = add(%2, %0)
output "y" = %3
)");
  CHECK(make_serial_plan(chain, no_workspace).arena_bytes == 64 * 64 * 4);
  const Graph reread = parse_graph(R"(%0 = input "x" : f32[64, 64]
%1 = matmul(%0, %0)
%2 = add(%1, %0)
%3 = add(%2, %1)
output "y" = %3
)");
  CHECK(make_serial_plan(reread, no_workspace).arena_bytes == 2 * 64 * 64 * 4);
}

TEST_CASE("a product is added to a dying sum in its place in f32, and beside it in bf16") {
  for (const char* type : {"f32", "bf16"}) {
    CAPTURE(type);
    const Graph graph = parse_graph(fmt::format(R"(%0 = input "x" : {0}[16, 16]
%1 = matmul(%0, %0)
%2 = matmul(%0, %0, %1)
output "y" = %2
)",
                                                type));
    const Plan plan = make_serial_plan(graph, no_workspace);
    verify_plan(graph, plan);
    CHECK((plan.placements[2] == plan.placements[1]) == (std::string_view(type) == "f32"));
  }
}

TEST_CASE("inputs are never written, state is updated in its own buffer") {
  const Graph graph = parse_graph(R"(%0 = input "x" : f32[8, 8]
%1 = state "s" : f32[8, 8]
%2 = add(%0, %0)
%3 = add(%1, %2)
output "y" = %2
update %1 -> %3
)");
  const Plan plan = make_serial_plan(graph, no_workspace);
  verify_plan(graph, plan);
  CHECK(plan.placements[3].external == ValueId(1));
  CHECK_FALSE(plan.placements[2].external);
}

TEST_CASE("state that is read after its new version exists is refused") {
  const Graph graph = parse_graph(R"(%0 = input "x" : f32[8, 8]
%1 = state "s" : f32[8, 8]
%2 = matmul(%0, %0)
%3 = add(%1, %0)
output "y" = %3
update %1 -> %2
)");
  CHECK_THROWS_WITH(make_serial_plan(graph, no_workspace), ContainsSubstring("read after its new version"));
}

TEST_CASE("the verifier refuses planted faults") {
  const Graph graph = parse_graph(R"(%0 = input "x" : f32[16, 16]
%1 = matmul(%0, %0)
%2 = matmul(%1, %0)
%3 = add(%1, %2)
output "y" = %3
)");
  const Plan good = make_serial_plan(graph, some_workspace);
  REQUIRE_NOTHROW(verify_plan(graph, good));
  Plan early_reuse = good;
  early_reuse.placements[2] = early_reuse.placements[1];
  CHECK_THROWS_WITH(verify_plan(graph, early_reuse), ContainsSubstring("still needed"));
  Plan wrong_order = good;
  std::swap(wrong_order.steps[0], wrong_order.steps[1]);
  CHECK_THROWS_WITH(verify_plan(graph, wrong_order), ContainsSubstring("before it is written"));
  Plan outside = good;
  outside.placements[3].offset = outside.arena_bytes;
  CHECK_THROWS_WITH(verify_plan(graph, outside), ContainsSubstring("outside the arena"));
  Plan scratch = good;
  scratch.steps[1].workspace_offset = scratch.placements[1].offset;
  CHECK_THROWS_AS(verify_plan(graph, scratch), InternalError);
  Plan short_plan = good;
  short_plan.steps.pop_back();
  CHECK_THROWS_WITH(verify_plan(graph, short_plan), ContainsSubstring("does not run"));
}

// Random graphs of adds, products and norms with random readers.
Graph random_graph(std::mt19937& random) {
  Graph graph;
  Builder b{graph, {}};
  std::vector<ValueId> values{graph.add_external(ExternalKind::input, "x", {DType::f32, Shape{8, 8}, {}}),
                              graph.add_external(ExternalKind::state, "s", {DType::f32, Shape{8, 8}, {}})};
  const ValueId w = graph.add_external(ExternalKind::parameter, "w", {DType::f32, Shape{8}, {}});
  const auto pick = [&] {
    return values[std::uniform_int_distribution<std::size_t>(0, values.size() - 1)(random)];
  };
  for (int i = 0; i < 30; ++i) {
    switch (random() % 3) {
      case 0:
        values.push_back(ops::add(b, pick(), pick()));
        break;
      case 1:
        values.push_back(ops::linear(b, pick(), pick()));
        break;
      default:
        values.push_back(ops::rms_norm(b, pick(), w, 1e-6));
    }
  }
  graph.add_output("y", values.back());
  graph.add_output("z", pick());
  return graph;
}

TEST_CASE("plans of random graphs pass the verifier and stay near the lower bound") {
  std::mt19937 random(7);
  for (int i = 0; i < 200; ++i) {
    const Graph graph = random_graph(random);
    const Plan plan = make_serial_plan(graph, some_workspace);
    REQUIRE_NOTHROW(verify_plan(graph, plan));
    CHECK(plan.arena_bytes >= plan.live_bytes);
    CHECK(plan.arena_bytes <= plan.live_bytes + plan.live_bytes / 3);
    CHECK(make_serial_plan(graph, some_workspace) == plan);
  }
}

}  // namespace
}  // namespace farskip
