// SPDX-License-Identifier: Apache-2.0
// What has been measured, what is estimated from it, and its text.

#include "farskip/schedule/costs.h"

#include "support/catch.h"

namespace farskip {
namespace {

/// 0: a product of [rows, 8] and [8, 8], 1: an exchange of its result, 2: a sum.
Graph make_graph(int rows) {
  return parse_graph(fmt::format(R"(%0 = input "x" : f32[{0}, 8]
%1 = parameter "w" : f32[8, 8]
%2 = matmul(%0, %1)
%3 = all_reduce(%2) {{axis=expert, size=2, rank=0}}
%4 = add(%3, %2)
output "y" = %4
)",
                                 rows));
}

void add_all(CostTable& table, int rows, double product, double exchange, double sum) {
  const Graph graph = make_graph(rows);
  table.add(graph, NodeId(0), product);
  table.add(graph, NodeId(1), exchange);
  table.add(graph, NodeId(2), sum);
}
CostTable measured(int rows, double product, double exchange, double sum) {
  CostTable table;
  add_all(table, rows, product, exchange, sum);
  return table;
}

LinkModels expert_link(double latency, double bytes_per_second) {
  LinkModels links;
  links[static_cast<std::size_t>(MeshAxis::expert)] = {latency, bytes_per_second};
  return links;
}

TEST_CASE("what was measured for the same op and shapes is the median of it") {
  CostTable table;
  CHECK(table.empty());
  for (const double seconds : {5.0, 1.0, 2.0}) add_all(table, 16, seconds, 10 * seconds, 0.1);
  add_all(table, 32, 7, 70, 0.2);
  CHECK_FALSE(table.empty());
  CHECK(table.estimate(make_graph(16)) == NodeSeconds{2, 20, 0.1});
  CHECK(table.estimate(make_graph(32)) == NodeSeconds{7, 70, 0.2});
}

TEST_CASE("a table to which another is added has the median of both, and knows the ops of both") {
  CostTable table = measured(16, 1, 10, 0.125);
  table.add(measured(16, 3, 30, 0.375));
  table.add(measured(16, 2, 20, 0.25));
  table.add(measured(32, 7, 70, 0.5));
  CHECK(table.estimate(make_graph(16)) == NodeSeconds{2, 20, 0.25});
  CHECK(table.estimate(make_graph(32)) == NodeSeconds{7, 70, 0.5});
  CHECK(table.knows("matmul"));
  CHECK_FALSE(table.knows("split_rows"));
}

TEST_CASE("other sizes are taken in proportion from the nearest one") {
  CostTable table;
  add_all(table, 16, 1, 2, 0.1);
  add_all(table, 256, 8, 16, 0.8);
  const NodeSeconds small = table.estimate(make_graph(32)), large = table.estimate(make_graph(128));
  CHECK(small[0] == Catch::Approx(2));  // twice 16 rows
  CHECK(small[2] == Catch::Approx(0.2));
  CHECK(large[0] == Catch::Approx(4));  // half of 256
  CHECK(large[1] == Catch::Approx(8));
  CHECK(large[2] == Catch::Approx(0.4));
  CHECK(table.estimate(make_graph(8))[0] == Catch::Approx(0.5));
}

TEST_CASE("other attributes are another entry of the same op") {
  const Graph graph = parse_graph(R"(%0 = input "x" : f32[8, 8]
%1 = matmul(%0, %0)
%2 = matmul(%0, %0) {transpose_a=true}
output "a" = %1
output "b" = %2
)");
  CostTable table;
  table.add(graph, NodeId(0), 1);
  table.add(graph, NodeId(1), 3);
  CHECK(table.estimate(graph) == NodeSeconds{1, 3});
}

TEST_CASE("a known link gives the transport's time by its bytes, another axis keeps what was measured") {
  const CostTable table = measured(16, 1, 2, 0.1);
  const Graph graph = make_graph(16);
  const double bytes = graph.cost(NodeId(1)).wire_bytes;
  CHECK(bytes == Catch::Approx(16 * 8 * 4));  // of two ranks each sends 2 (2 - 1) / 2 of the tensor
  CHECK(table.estimate(graph, expert_link(0.25, 1024))[1] == Catch::Approx(0.25 + bytes / 1024));
  CHECK(table.estimate(graph, expert_link(0.25, 1024))[0] == 1);
  CHECK(table.estimate(graph, expert_link(0.25, 0))[1] == 2);  // speed not known
  LinkModels other;
  other[static_cast<std::size_t>(MeshAxis::data)] = {0.25, 1024};
  CHECK(table.estimate(graph, other)[1] == 2);
}

TEST_CASE("a link stands in for a collective that was never measured") {
  const Graph graph = make_graph(16);
  CostTable table;
  table.add(graph, NodeId(0), 1);
  table.add(graph, NodeId(2), 1);
  CHECK_THROWS_WITH(table.estimate(graph), ContainsSubstring("nothing has been measured for all_reduce"));
  CHECK(table.estimate(graph, expert_link(0.5, 512))[1] == Catch::Approx(1.5));
}

TEST_CASE("an op of which nothing is known is refused by name, as a mistake of the user") {
  const CostTable table = measured(16, 1, 2, 0.1);
  const Graph graph = parse_graph("%0 = input \"x\" : f32[8, 8]\n%1 = swiglu(%0)\noutput \"y\" = %1\n");
  CHECK_THROWS_WITH(table.estimate(graph), ContainsSubstring("swiglu"));
  CHECK_THROWS_AS(table.estimate(graph), UsageError);
  CHECK_THROWS_AS(CostTable{}.estimate(make_graph(8)), UsageError);
}

TEST_CASE("text reads back to the same estimates and the same text") {
  CostTable table;
  for (const int rows : {8, 16, 100}) add_all(table, rows, 1.0 / rows, 0.1234567 * rows, 3e-6);
  const std::string text = table.text();
  const CostTable again = CostTable::parse(text);
  CHECK(again.text() == text);
  for (const int rows : {8, 100, 7, 55}) {
    const NodeSeconds want = table.estimate(make_graph(rows)), got = again.estimate(make_graph(rows));
    REQUIRE(got.size() == want.size());
    for (std::size_t n = 0; n < got.size(); ++n) CHECK(got[n] == Catch::Approx(want[n]).epsilon(1e-5));
  }
  CHECK(CostTable::parse("").empty());
}

TEST_CASE("text that is no table of costs is refused with what is wrong") {
  const std::string good = "add\t 8x8 8x8\t64\t0.5\n";
  CHECK_NOTHROW(CostTable::parse(good));
  for (const char* bad : {"add", "add\t8x8\t64", "\n", "add\t8x8\t64\tsoon", "add\t8x8\t64\t0.5\t1",
                          "add\t8x8\tbig\t0.5", "add\t8x8\t64\t", "add\t8x8\t64\t-0.5", "add\t8x8\t64\tnan",
                          "add\t8x8\t64\tinf", "add\t8x8\t-64\t0.5", "add\t8x8\t0\t0.5", "add\t8x8\t64\t0.5 ",
                          "add\t8x8\t64\t0x1", "add\t8x8\t64\t1e999"}) {
    INFO(bad);
    CHECK_THROWS_AS(CostTable::parse(good + bad + "\n"), DataError);
  }
}

}  // namespace
}  // namespace farskip
