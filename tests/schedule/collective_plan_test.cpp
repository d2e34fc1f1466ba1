// SPDX-License-Identifier: Apache-2.0
// Plans with collectives, which are started in one step and waited for in another.

#include <algorithm>
#include <random>

#include "farskip/schedule/plan.h"
#include "farskip/schedule/simulate.h"
#include "plan_simulation.h"
#include "random_graph.h"
#include "schedule/memory.h"
#include "support/catch.h"

namespace farskip {
namespace {

/// Scratch for products, and for collectives of several tensors.
std::size_t workspace(const OpDef& op, const OpTypes& types) {
  return op.name == "matmul" || (op.collective && types.inputs.size() > 1) ? 1000 : 0;
}
std::size_t no_workspace(const OpDef&, const OpTypes&) {
  return 0;
}

Plan checked_plan(const Graph& graph, WorkspaceRule rule, Waits waits) {
  Plan plan = make_serial_plan(graph, rule, waits);
  verify_plan(graph, plan);
  CHECK(test::simulate_plan(graph, plan) == "");
  return plan;
}

TEST_CASE("collectives are waited for at once, or late: just before their first reader") {
  const Graph graph = parse_graph(R"(%0 = input "x" : f32[8, 8]
%1 = all_reduce(%0) {axis=world, size=2, rank=0}
%2 = matmul(%0, %0)
%3 = reduce_scatter(%2) {axis=data, size=2, rank=1, bounds=[0 4 8], matrices=[]}
%4 = matmul(%2, %0)
%5 = add(%4, %1)
%6 = add(%5, %1)
%7 = add(%3, %3)
output "y" = %6
output "z" = %7
)");
  CHECK(test::order_of(checked_plan(graph, workspace, Waits::at_once)) == "+0 -0 1 +2 -2 3 4 5 6");
  CHECK(test::order_of(checked_plan(graph, workspace, Waits::late)) == "+0 1 +2 3 -0 4 5 -2 6");
}

TEST_CASE("a collective is a reader too: it waits for the one whose result it sends on") {
  const Graph graph = parse_graph(R"(%0 = input "x" : f32[8, 8]
%1 = reduce_scatter(%0) {axis=world, size=2, rank=0, bounds=[0 4 8], matrices=[]}
%2 = all_reduce(%0) {axis=world, size=2, rank=0}
%3 = all_gather(%1) {axis=world, size=2, rank=0, bounds=[0 4 8], matrices=[]}
%4 = matmul(%0, %0)
%5 = add(%3, %4)
output "y" = %5
output "z" = %2
)");
  CHECK(test::order_of(checked_plan(graph, no_workspace, Waits::late)) == "+0 +1 -0 +2 3 -2 4 -1");
}

TEST_CASE("of collectives that nobody reads two are in flight, and the end waits for the rest in order") {
  std::string text = "%0 = input \"x\" : f32[8, 8]\n", nodes, updates;
  for (int i = 1; i <= 5; ++i) {
    text += fmt::format("%{} = state \"g{}\" : f32[8, 8]\n", i, i);
    nodes += fmt::format("%{} = add(%{}, %0)\n%{} = all_reduce(%{}) {{axis=world, size=2, rank=0}}\n",
                         2 * i + 4, i, 2 * i + 5, 2 * i + 4);
    updates += fmt::format("update %{} -> %{}\n", i, 2 * i + 5);
  }
  const Graph graph = parse_graph(text + nodes + updates);
  const Plan late = checked_plan(graph, no_workspace, Waits::late);
  CHECK(test::order_of(late) == "0 +1 2 +3 4 -1 +5 6 -3 +7 8 -5 +9 -7 -9");
  for (int i = 1; i <= 5; ++i)
    CHECK(late.placements[static_cast<std::size_t>(2 * i + 5)].external ==
          ValueId(static_cast<std::size_t>(i)));
  CHECK(test::order_of(checked_plan(graph, no_workspace, Waits::at_once)) ==
        "0 +1 -1 2 +3 -3 4 +5 -5 6 +7 -7 8 +9 -9");
}

TEST_CASE("the limit counts only collectives that nobody reads") {
  const Graph graph = parse_graph(R"(%0 = input "x" : f32[8, 8]
%1 = all_reduce(%0) {axis=world, size=2, rank=0}
%2 = all_reduce(%0) {axis=world, size=2, rank=0}
%3 = all_reduce(%0) {axis=world, size=2, rank=0}
%4 = all_reduce(%0) {axis=world, size=2, rank=0}
%5 = all_reduce(%0) {axis=world, size=2, rank=0}
%6 = add(%2, %4)
output "a" = %1
output "b" = %3
output "c" = %5
output "y" = %6
)");
  CHECK(test::order_of(checked_plan(graph, no_workspace, Waits::late)) == "+0 +1 +2 +3 -0 +4 -1 -3 5 -2 -4");
}

TEST_CASE("a sum lies in its input only if nobody else reads that while it is in flight") {
  const std::string head = "%0 = input \"x\" : f32[16, 16]\n%1 = matmul(%0, %0)\n",
                    tail = "output \"y\" = %4\n";
  const Graph before = parse_graph(head + R"(%2 = matmul(%1, %0)
%3 = all_reduce(%1) {axis=world, size=2, rank=0}
%4 = add(%2, %3)
)" + tail);
  const Graph meanwhile = parse_graph(head + R"(%2 = all_reduce(%1) {axis=world, size=2, rank=0}
%3 = matmul(%1, %0)
%4 = add(%2, %3)
)" + tail);
  for (const Waits waits : {Waits::at_once, Waits::late}) {
    const Plan in_place = checked_plan(before, no_workspace, waits);
    CHECK(in_place.placements[3] == in_place.placements[1]);
    const Plan beside = checked_plan(meanwhile, no_workspace, waits);
    CHECK_FALSE(beside.placements[2] == beside.placements[1]);
    Plan planted = beside;
    planted.placements[2] = planted.placements[1];
    CHECK_THROWS_WITH(verify_plan(meanwhile, planted), ContainsSubstring("still needed"));
  }
}

TEST_CASE("a sum that updates state is refused where the old state is read while it is in flight") {
  const Graph graph = parse_graph(R"(%0 = state "g" : f32[8, 8]
%1 = input "x" : f32[8, 8]
%2 = all_reduce(%0) {axis=world, size=2, rank=0}
%3 = add(%0, %1)
output "y" = %3
update %0 -> %2
)");
  for (const Waits waits : {Waits::at_once, Waits::late})
    CHECK_THROWS_WITH(make_serial_plan(graph, no_workspace, waits),
                      ContainsSubstring("read after its new version"));
}

// %2 comes from what %1 holds; %3 and %4 are computed meanwhile.
const char* const kInFlight = R"(%0 = input "x" : f32[16, 16]
%1 = matmul(%0, %0)
%2, %3 = reduce_scatter(%1, %0) {axis=world, size=2, rank=0, bounds=[0 8 16 0 8 16], matrices=[]}
%4 = matmul(%0, %0)
%5 = matmul(%4, %0)
%6 = add(%2, %2)
%7 = add(%6, %3)
output "y" = %5
output "z" = %7
)";

void expect_refused(const Graph& graph, const Plan& plan, const std::string& message) {
  CHECK_THROWS_WITH(verify_plan(graph, plan), ContainsSubstring(message));
  CHECK(test::simulate_plan(graph, plan) != "");
}

TEST_CASE("the verifier refuses collectives that are not started and waited for once, in this order") {
  const Graph graph = parse_graph(kInFlight);
  const Plan good = checked_plan(graph, workspace, Waits::late);
  REQUIRE(test::order_of(good) == "0 +1 2 3 -1 4 5");
  const auto changed = [&](const auto& change) {
    Plan plan = good;
    change(plan.steps);
    return plan;
  };
  expect_refused(graph, changed([](auto& s) { s.erase(s.begin() + 4); }), "never waited for");
  expect_refused(graph, changed([](auto& s) { s.insert(s.begin() + 5, s[4]); }), "not started");
  expect_refused(graph, changed([](auto& s) { std::swap(s[1], s[4]); }), "not started");
  expect_refused(graph, changed([](auto& s) { s.insert(s.begin() + 2, s[1]); }), "a second time");
  expect_refused(graph, changed([](auto& s) { s.erase(s.begin() + 1); }), "not started");
  expect_refused(graph, changed([](auto& s) { std::swap(s[4], s[5]); }), "before it is written");
  expect_refused(graph, changed([](auto& s) { std::swap(s[0], s[1]); }), "before it is written");
  expect_refused(graph, changed([](auto& s) { s[1].kind = StepKind::run; }), "wrong kind");
  expect_refused(graph, changed([](auto& s) { s[2].kind = StepKind::start; }), "wrong kind");
}

// Attention over four sequences beside a reduction; %4 may run between its portions.
const char* const kPortions = R"(%0 = input "x" : f32[8, 8]
%1, %2 = attention(%0, %0, %0) {sequence_length=2, heads=2, kv_heads=2, scale=0.5, chunk=0}
%3 = matmul(%0, %0)
%4 = add(%1, %3)
output "y" = %4
)";

TEST_CASE(
    "a plan may run portions of an op apart, each once and in order, and nothing reads before the last") {
  const Graph graph = parse_graph(kPortions);
  const auto plan_of = [&](const std::vector<OrderedStep>& order) {
    return make_plan(graph, workspace, order);
  };
  const auto portion = [](std::int64_t first, std::int64_t count, std::int64_t of = 4) {
    return OrderedStep{NodeId(0), StepKind::run, {first, count, of}};
  };
  const OrderedStep product{NodeId(1)}, sum{NodeId(2)};
  const Plan good = plan_of({portion(0, 1), product, portion(1, 3), sum});
  verify_plan(graph, good);
  CHECK(test::simulate_plan(graph, good).empty());
  const Timeline t = simulate(graph, good, {4.0, 2.0, 1.0});
  CHECK(t.makespan == Catch::Approx(7.0));
  CHECK(t.steps[2].begin == Catch::Approx(3.0));
  CHECK(t.nodes[0].end == Catch::Approx(6.0));
  const auto refused = [&](const std::vector<OrderedStep>& order, const std::string& message) {
    CHECK_THROWS_WITH(plan_of(order), ContainsSubstring(message));
  };
  refused({portion(0, 1), product, sum}, "runs 1 portions of 4");
  refused({portion(1, 3), product, portion(0, 1), sum}, "after 0");
  refused({portion(0, 2), portion(1, 3), product, sum}, "after 2");
  refused({portion(0, 1, 2), product, portion(1, 1, 2), sum}, "portions of 2");
  refused({{NodeId(0)}, product, portion(0, 4), sum}, "a second time");
  refused({{NodeId(0)}, {NodeId(1), StepKind::run, {0, 1, 2}}, {NodeId(1), StepKind::run, {1, 1, 2}}, sum},
          "portions of 2");
  Plan early = good;
  std::swap(early.steps[2], early.steps[3]);
  CHECK_THROWS_WITH(verify_plan(graph, early), ContainsSubstring("before it is written"));
}

TEST_CASE("the verifier refuses to touch the buffers of a collective in flight") {
  const Graph graph = parse_graph(kInFlight);
  Plan good = checked_plan(graph, workspace, Waits::late);
  good.arena_bytes += 4096;  // so that what is moved stays inside
  for (const std::size_t value : {4, 5}) {
    INFO("%" << value << " over what is sent, received, or scratch");
    for (const std::size_t other : {1, 2, 3}) {
      Plan plan = good;
      plan.placements[value].offset = plan.placements[other].offset;
      expect_refused(graph, plan, "still needed");
    }
    Plan plan = good;
    plan.placements[value].offset = plan.steps[1].workspace_offset;
    expect_refused(graph, plan, "over scratch, which is still needed");
  }
  Plan scratch_over_scratch = good;
  scratch_over_scratch.steps[2].workspace_offset = good.steps[1].workspace_offset;
  expect_refused(graph, scratch_over_scratch, "writes scratch over scratch");
  Plan scratch_over_received = good;
  scratch_over_received.steps[3].workspace_offset = good.placements[3].offset;
  expect_refused(graph, scratch_over_received, "still needed");
  Plan received_over_sent = good;
  received_over_sent.placements[2].offset = good.placements[1].offset;
  expect_refused(graph, received_over_sent, "still needed");
  Plan received_over_received = good;
  received_over_received.placements[3].offset = good.placements[2].offset;
  expect_refused(graph, received_over_received, "overlap");
  Plan own_scratch = good;
  own_scratch.steps[1].workspace_offset = good.placements[2].offset;
  expect_refused(graph, own_scratch, "scratch");
  Plan outside = good;
  outside.steps[1].workspace_offset = good.arena_bytes;
  expect_refused(graph, outside, "outside the arena");
}

TEST_CASE("after its wait the buffers of a collective are free") {
  const Graph graph = parse_graph(kInFlight);
  const Plan late = checked_plan(graph, workspace, Waits::late);
  const Plan at_once = checked_plan(graph, workspace, Waits::at_once);
  CHECK(test::order_of(at_once) == "0 +1 -1 2 3 4 5");
  CHECK(at_once.arena_bytes < late.arena_bytes);
}

TEST_CASE("plans of random graphs with collectives are sound, whenever they wait") {
  std::mt19937 random(11);
  for (int i = 0; i < 200; ++i) {
    const Graph graph = test::make_random_graph(random);
    INFO(print_graph(graph));
    for (const Waits waits : {Waits::at_once, Waits::late}) {
      const Plan plan = checked_plan(graph, workspace, waits);
      CHECK(plan == make_serial_plan(graph, workspace, waits));
      CHECK(plan.arena_bytes >= plan.live_bytes);
    }
    CHECK(collective_order(graph, make_serial_plan(graph, workspace, Waits::at_once)) ==
          collective_order(graph, make_serial_plan(graph, workspace, Waits::late)));
  }
}

/// One mistake: a buffer or scratch moved onto another, steps exchanged or moved, a buffer taken for an
/// external.
Plan break_plan(const Graph& graph, Plan plan, std::mt19937& random) {
  const auto step = [&]() -> PlanStep& { return plan.steps[random() % plan.steps.size()]; };
  const auto place = [&]() -> Placement& { return plan.placements[random() % plan.placements.size()]; };
  switch (random() % 5) {
    case 0:
      place().offset = place().offset;
      break;
    case 1:
      step().workspace_offset = random() % 2 == 0 ? step().workspace_offset : place().offset;
      break;
    case 2:
      std::swap(step(), step());
      break;
    case 3: {
      const std::size_t from = random() % plan.steps.size(), to = random() % plan.steps.size();
      const PlanStep moved = plan.steps[from];
      plan.steps.erase(plan.steps.begin() + static_cast<std::ptrdiff_t>(from));
      plan.steps.insert(plan.steps.begin() + static_cast<std::ptrdiff_t>(to), moved);
      break;
    }
    default:
      place().external = graph.externals()[random() % graph.externals().size()].value;
  }
  return plan;
}

TEST_CASE("what the verifier lets pass runs as it should, however a plan was broken") {
  std::mt19937 random(13);
  int refused = 0, passed = 0;
  for (int i = 0; i < 150; ++i) {
    const Graph graph = test::make_random_graph(random);
    const Plan good = make_serial_plan(graph, workspace, i % 2 == 0 ? Waits::at_once : Waits::late);
    for (int k = 0; k < 40; ++k) {
      const Plan broken = break_plan(graph, good, random);
      try {
        verify_plan(graph, broken);
        ++passed;
      } catch (const InternalError&) {
        ++refused;
        continue;
      }
      const std::string fault = test::simulate_plan(graph, broken);
      INFO(print_graph(graph) << broken.text(graph));
      REQUIRE(fault == "");
    }
  }
  CHECK(refused > 1000);
  CHECK(passed > 100);
}

}  // namespace
}  // namespace farskip
