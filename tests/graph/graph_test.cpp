// SPDX-License-Identifier: Apache-2.0
#include "farskip/graph/graph.h"

#include "farskip/ops/ops.h"
#include "support/catch.h"

namespace farskip {
namespace {

const char* const kText = R"(%0 = input "tokens" : i32[6]
%1 = parameter "table" : f32[10, 4]
%2 = parameter "w" : f32[4]
%3 = embedding(%1, %0) {first=0, of=0} @embedding.forward : f32[6, 4]
%4, %5 = rms_norm(%3, %2) {eps=1e-05} @2.attention.forward : f32[6, 4], f32[6, 1]
%6 = matmul(%4, %1) {transpose_a=false, transpose_b=true, wide=false} @m1.b2.0.routed.backward : f32[6, 10]
output "y" = %6
update %2 -> %2
)";

TEST_CASE("a graph's text reads back to the same text") {
  const Graph graph = parse_graph(kText);
  verify_graph(graph);
  CHECK(print_graph(graph) == kText);
  CHECK(graph.nodes()[2].scope == (Scope{1, 2, 0, SubBlock::routed, Phase::backward}));
}

TEST_CASE("graph text keeps absent inputs, lists and row counts") {
  const std::string text = R"(%0 = input "rows" : i32[1]
%1 = input "x" : f32[<=9:%0, 6]
%2 = input "scores" : f32[4, 3]
%3 = input "indices" : i32[4, 1]
%4 = add(%1, %1) @none.forward : f32[<=9:%0, 6]
%5, %6 = split_columns(%2) {widths=[1 2]} @none.forward : f32[4, 1], f32[4, 2]
%7 = route_grad(_, %2, %2, %3) {top_k=1, score=sigmoid, num_groups=1, top_groups=1, group_score=max, normalize=true, scaling=2.5, by_logits=false} @none.backward : f32[4, 3]
output "a" = %5
)";
  CHECK(print_graph(parse_graph(text)) == text);
}

TEST_CASE("text that is no graph is refused with its line") {
  const auto refused = [](const std::string& line, const std::string& message) {
    const std::string text = "%0 = input \"x\" : f32[2, 3]\n" + line;
    CAPTURE(line);
    CHECK_THROWS_WITH(parse_graph(text), ContainsSubstring("line 2") && ContainsSubstring(message));
  };
  refused("%1 = nonsense(%0)", "unknown op 'nonsense'");
  refused("%1 = add(%0, %7)", "not defined");
  refused("%0 = add(%0, %0)", "defined twice");
  refused("%1 = add(%0, %0) : f32[9, 9]", "type does not follow");
  refused("%1, %2 = add(%0, %0)", "1 outputs");
  refused("%1 = add(%0, %0) trailing", "end of line");
  refused("%1 = input \"y\" : f99[2]", "element type");
}

TEST_CASE("shape rules refuse inputs that do not fit") {
  Graph graph;
  const ValueId a = graph.add_external(ExternalKind::input, "a", {DType::f32, Shape{2, 3}, {}});
  const ValueId b = graph.add_external(ExternalKind::input, "b", {DType::f32, Shape{4, 3}, {}});
  Builder builder{graph, {}};
  CHECK_THROWS_WITH(ops::add(builder, a, b), ContainsSubstring("f32[2, 3], f32[4, 3]"));
  CHECK_THROWS_WITH(ops::matmul(builder, a, b), ContainsSubstring("matmul"));
  CHECK_NOTHROW(ops::linear(builder, a, b));
  CHECK_THROWS_WITH(graph.add_external(ExternalKind::input, "a", {DType::f32, Shape{1}, {}}),
                    ContainsSubstring("exists already"));
}

TEST_CASE("costs count products twice and bytes once") {
  const Graph graph = parse_graph(kText);
  const OpCost cost = graph.cost(NodeId(2));
  CHECK(cost.flops == 2.0 * 6 * 4 * 10);
  CHECK(cost.bytes == 4.0 * (6 * 4 + 10 * 4 + 6 * 10));
}

TEST_CASE("attributes print, parse and compare by their fields") {
  const Attributes a = Attributes::of(ops::RmsNorm{0.1});
  CHECK(a.text() == "eps=0.1");
  CHECK(Attributes::parse<ops::RmsNorm>({{"eps", "0.1"}}) == a);
  CHECK(Attributes::parse<ops::RmsNorm>({}).get<ops::RmsNorm>().eps == 1e-6);
  CHECK_THROWS_AS(Attributes::parse<ops::RmsNorm>({{"epsilon", "0.1"}}), DataError);
  CHECK_THROWS_AS(a.get<ops::Rope>(), InternalError);
}

TEST_CASE("every op's text form parses with its own attribute reader") {
  for (const auto& [name, op] : op_table().all()) {
    CAPTURE(name);
    CHECK_NOTHROW(op.parse_attributes({}));
    CHECK(op.parse_attributes({}) == op.parse_attributes({}));
  }
}

}  // namespace
}  // namespace farskip
