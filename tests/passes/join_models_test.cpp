// SPDX-License-Identifier: Apache-2.0
#include "passes/join_models.h"

#include "farskip/ops/ops.h"
#include "support/catch.h"

namespace farskip {
namespace {

/// hidden = x w.
Graph model() {
  Graph graph;
  const ValueId tokens = graph.add_external(ExternalKind::input, "tokens", {DType::i32, {3}, {}});
  const ValueId table = graph.add_external(ExternalKind::parameter, "table", {DType::f32, {5, 4}, {}});
  const ValueId w = graph.add_external(ExternalKind::parameter, "w", {DType::f32, {2, 4}, {}});
  Builder b{graph, {0, 0, 1, SubBlock::attention, Phase::forward}};
  graph.add_output("hidden", ops::linear(b, ops::embedding(b, table, tokens), w));
  return graph;
}

TEST_CASE("joined models share inputs and the parameters that are called the same") {
  const JoinedModels joined = join_models(model(), model(), [](std::string_view name) {
    return name == "table" ? std::string(name) : fmt::format("teacher.{}", name);
  });
  const Graph& graph = joined.graph;
  verify_graph(graph);
  std::vector<std::string> names;
  for (const External& e : graph.externals()) names.push_back(e.name);
  CHECK(names == std::vector<std::string>{"tokens", "table", "teacher.w", "w"});
  REQUIRE(graph.nodes().size() == 4);
  for (std::size_t n = 0; n < 4; ++n) {
    CHECK(graph.nodes()[n].scope.model == (n < 2 ? 1 : 0));
    CHECK(graph.nodes()[n].scope.layer == 1);
  }
  CHECK(graph.outputs().empty());
  CHECK(joined.values.at("teacher.hidden") == graph.nodes()[1].outputs[0]);
  CHECK(joined.values.at("hidden") == graph.nodes()[3].outputs[0]);
  CHECK(graph.nodes()[1].inputs[1] == *graph.find_external("teacher.w"));
  CHECK(graph.nodes()[3].inputs[1] == *graph.find_external("w"));
}

TEST_CASE("models whose shared tensors differ are not joined") {
  Graph other;
  other.add_external(ExternalKind::parameter, "table", {DType::f32, {5, 3}, {}});
  CHECK_THROWS_AS(join_models(model(), other, [](std::string_view name) { return std::string(name); }),
                  InternalError);
}

}  // namespace
}  // namespace farskip
