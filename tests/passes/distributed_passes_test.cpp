// SPDX-License-Identifier: Apache-2.0
// Graphs of one rank out of graphs of all: experts split, gradients summed.

#include <algorithm>

#include "ops/collective_ops.h"
#include "passes/chunk_experts.h"
#include "passes/dead_code.h"
#include "passes/gather_weights.h"
#include "passes/reduce_gradients.h"
#include "passes/rows_in_slabs.h"
#include "passes/shard_experts.h"
#include "support/catch.h"

namespace farskip {
namespace {

std::string shard(const std::string& text, const ExpertSharding& sharding) {
  const Graph graph = shard_experts(parse_graph(text), sharding);
  verify_graph(graph);
  return print_graph(graph);
}

std::size_t count_nodes(const Graph& graph, const std::string& op) {
  return static_cast<std::size_t>(std::count_if(graph.nodes().begin(), graph.nodes().end(),
                                                [&](const Node& node) { return node.op->name == op; }));
}

// A routed block as the models have it: 6 tokens, 4 experts, 2 for each token.
const char* const kMoe = R"(%0 = input "x" : f32[6, 4]
%1 = input "choice" : i32[6, 2]
%2 = input "weight" : f32[6, 2]
%3 = parameter "up" : f32[4, 6, 4]
%4 = parameter "down" : f32[4, 4, 3]
%5, %6, %7 = sort_by_expert(%1) {num_experts=4} @3.routed.forward : i32[12], i32[12], i32[5]
%8 = permute_values(%2, %5, %6) {columns=0} @3.routed.forward : f32[12]
%9 = dispatch_rows(%0, %5, %6) {top_k=2} @3.routed.forward : f32[12, 4]
%10 = grouped_matmul(%9, %3, %7) {transpose_w=true} @3.routed.forward : f32[12, 6]
%11 = swiglu(%10, %8) @3.routed.forward : f32[12, 3]
%12 = grouped_matmul(%11, %4, %7) {transpose_w=true} @3.routed.forward : f32[12, 4]
%13 = combine_rows(%12, %5, %6) {top_k=2} @3.routed.forward : f32[6, 4]
output "y" = %13
output "expert_offsets.3" = %7
)";

TEST_CASE("experts spread over ranks: one exchange for each value that travels, weights of the own experts") {
  CHECK(shard(kMoe, {.peers = 2, .max_rows = 9}) == R"(%0 = input "x" : f32[6, 4]
%1 = input "choice" : i32[6, 2]
%2 = input "weight" : f32[6, 2]
%3 = parameter "up" : f32[2, 6, 4]
%4 = parameter "down" : f32[2, 4, 3]
%5, %6, %7 = sort_by_expert(%1) {num_experts=4} @3.routed.forward : i32[12], i32[12], i32[5]
%8 = permute_values(%2, %5, %6) {columns=0} @3.routed.forward : f32[12]
%9 = dispatch_rows(%0, %5, %6) {top_k=2} @3.routed.forward : f32[12, 4]
%10, %11, %12 = exchange_rows(%9, %7) {peers=2, groups=2, max_rows=9, rows=12} @3.routed.forward : f32[18, 4], i32[4], i32[1]
%13, %14, %15 = order_by_expert(%11) {peers=2, groups=2, max_rows=9, rows=12} @3.routed.forward : i32[<=18:%15], i32[3], i32[1]
%16 = gather_rows(%10, %13) @3.routed.forward : f32[<=18:%15, 4]
%17 = grouped_matmul(%16, %3, %14) {transpose_w=true} @3.routed.forward : f32[<=18:%15, 6]
%18, %19, %20 = exchange_rows(%8, %7) {peers=2, groups=2, max_rows=9, rows=12} @3.routed.forward : f32[18], i32[4], i32[1]
%21 = gather_rows(%18, %13) @3.routed.forward : f32[<=18:%15]
%22 = swiglu(%17, %21) @3.routed.forward : f32[<=18:%15, 3]
%23 = grouped_matmul(%22, %4, %14) {transpose_w=true} @3.routed.forward : f32[<=18:%15, 4]
%24 = scatter_rows(%23, %13) {rows=18} @3.routed.forward : f32[18, 4]
%25 = return_rows(%24, %11, %7) {peers=2, groups=2, max_rows=9, rows=12} @3.routed.forward : f32[12, 4]
%26 = combine_rows(%25, %5, %6) {top_k=2} @3.routed.forward : f32[6, 4]
output "y" = %26
output "expert_offsets.3" = %7
output "row_overflow.3" = %12
)");
}

TEST_CASE("in slabs, rows are put where they are sent from and taken from where they come back to") {
  const Graph sharded = shard_experts(parse_graph(kMoe), {.peers = 2, .max_rows = 9});
  const Graph graph = eliminate_dead_code(rows_in_slabs(sharded));
  verify_graph(graph);
  CHECK(print_graph(graph) == R"(%0 = input "x" : f32[6, 4]
%1 = input "choice" : i32[6, 2]
%2 = input "weight" : f32[6, 2]
%3 = parameter "up" : f32[2, 6, 4]
%4 = parameter "down" : f32[2, 4, 3]
%5, %6, %7 = sort_by_expert(%1) {num_experts=4} @3.routed.forward : i32[12], i32[12], i32[5]
%8, %9, %10 = slab_places(%6, %7) {peers=2, groups=2, max_rows=9, rows=12} @3.routed.forward : i32[12], i32[4], i32[1]
%11 = put_into_slabs(%0, %8) {top_k=2, rows=18, columns=0} @3.routed.forward : f32[18, 4]
%12, %13 = exchange_slabs(%11, %9) {peers=2, groups=2, max_rows=9, rows=12} @3.routed.forward : f32[18, 4], i32[4]
%14, %15, %16 = order_by_expert(%13) {peers=2, groups=2, max_rows=9, rows=12} @3.routed.forward : i32[<=18:%16], i32[3], i32[1]
%17 = gather_rows(%12, %14) @3.routed.forward : f32[<=18:%16, 4]
%18 = grouped_matmul(%17, %3, %15) {transpose_w=true} @3.routed.forward : f32[<=18:%16, 6]
%19 = put_into_slabs(%2, %8) {top_k=0, rows=18, columns=0} @3.routed.forward : f32[18]
%20, %21 = exchange_slabs(%19, %9) {peers=2, groups=2, max_rows=9, rows=12} @3.routed.forward : f32[18], i32[4]
%22 = gather_rows(%20, %14) @3.routed.forward : f32[<=18:%16]
%23 = swiglu(%18, %22) @3.routed.forward : f32[<=18:%16, 3]
%24 = grouped_matmul(%23, %4, %15) {transpose_w=true} @3.routed.forward : f32[<=18:%16, 4]
%25 = scatter_rows(%24, %14) {rows=18} @3.routed.forward : f32[18, 4]
%26 = return_slabs(%25) {peers=2, groups=2, max_rows=9, rows=12} @3.routed.forward : f32[18, 4]
%27 = take_from_slabs(%26, %8) {top_k=2, rows=18, columns=0} @3.routed.forward : f32[6, 4]
output "y" = %27
output "expert_offsets.3" = %7
output "row_overflow.3" = %10
)");
}

TEST_CASE(
    "rows that are scaled on their way to the experts are scaled there: what travels is what was "
    "dispatched") {
  const Graph scaled = parse_graph(R"(%0 = input "x" : f32[6, 4]
%1 = input "choice" : i32[6, 2]
%2 = input "weight" : f32[6, 2]
%3 = parameter "up" : f32[4, 6, 4]
%5, %6, %7 = sort_by_expert(%1) {num_experts=4} @3.routed.forward
%8 = permute_values(%2, %5, %6) {columns=0} @3.routed.forward
%9 = dispatch_rows(%0, %5, %6) {top_k=2} @3.routed.forward
%10 = scale_rows(%9, %8) @3.routed.forward
%11 = grouped_matmul(%10, %3, %7) {transpose_w=true} @3.routed.forward
%12 = combine_rows(%11, %5, %6) {top_k=2} @3.routed.forward
output "y" = %12
)");
  const Graph graph = eliminate_dead_code(rows_in_slabs(shard_experts(scaled, {.peers = 2, .max_rows = 9})));
  verify_graph(graph);
  const std::string text = print_graph(graph);
  CHECK_THAT(text, ContainsSubstring("%21 = scale_rows(%16, %20) @3.routed.forward : f32[<=18:%15, 4]"));
  CHECK(count_nodes(graph, "scale_rows") == 1);
  CHECK(count_nodes(graph, "exchange_slabs") == 2);
}

TEST_CASE("in chunks, what lies between sort and combine is repeated for each part of the tokens") {
  const Graph graph = chunk_experts(parse_graph(kMoe), 2);
  verify_graph(graph);
  CHECK(print_graph(graph) == R"(%0 = input "x" : f32[6, 4]
%1 = input "choice" : i32[6, 2]
%2 = input "weight" : f32[6, 2]
%3 = parameter "up" : f32[4, 6, 4]
%4 = parameter "down" : f32[4, 4, 3]
%5, %6, %7 = sort_by_expert(%1) {num_experts=4} @3.routed.forward : i32[12], i32[12], i32[5]
%8, %9 = split_rows(%1) {rows=[3 3]} @3.routed.forward : i32[3, 2], i32[3, 2]
%10, %11 = split_rows(%2) {rows=[3 3]} @3.routed.forward : f32[3, 2], f32[3, 2]
%12, %13 = split_rows(%0) {rows=[3 3]} @3.routed.forward : f32[3, 4], f32[3, 4]
%14, %15, %16 = sort_by_expert(%8) {num_experts=4} @3.routed.forward : i32[6], i32[6], i32[5]
%17 = permute_values(%10, %14, %15) {columns=0} @3.routed.forward : f32[6]
%18 = dispatch_rows(%12, %14, %15) {top_k=2} @3.routed.forward : f32[6, 4]
%19 = grouped_matmul(%18, %3, %16) {transpose_w=true} @3.routed.forward : f32[6, 6]
%20 = swiglu(%19, %17) @3.routed.forward : f32[6, 3]
%21 = grouped_matmul(%20, %4, %16) {transpose_w=true} @3.routed.forward : f32[6, 4]
%22 = combine_rows(%21, %14, %15) {top_k=2} @3.routed.forward : f32[3, 4]
%23, %24, %25 = sort_by_expert(%9) {num_experts=4} @3.routed.forward : i32[6], i32[6], i32[5]
%26 = permute_values(%11, %23, %24) {columns=0} @3.routed.forward : f32[6]
%27 = dispatch_rows(%13, %23, %24) {top_k=2} @3.routed.forward : f32[6, 4]
%28 = grouped_matmul(%27, %3, %25) {transpose_w=true} @3.routed.forward : f32[6, 6]
%29 = swiglu(%28, %26) @3.routed.forward : f32[6, 3]
%30 = grouped_matmul(%29, %4, %25) {transpose_w=true} @3.routed.forward : f32[6, 4]
%31 = combine_rows(%30, %23, %24) {top_k=2} @3.routed.forward : f32[3, 4]
%32 = concat_rows(%22, %31) @3.routed.forward : f32[6, 4]
output "y" = %32
output "expert_offsets.3" = %7
)");
  CHECK(print_graph(chunk_experts(parse_graph(kMoe), 1)) == kMoe);
  CHECK_THROWS_WITH(chunk_experts(parse_graph(kMoe), 7), ContainsSubstring("6 tokens in 7 chunks"));
}

TEST_CASE(
    "a route with a part of the rows has that part of the bound, rounded up, and all where all may go") {
  // 6 tokens in 4 chunks: 1, 2, 1 and 2 of them, so 2, 4, 2 and 4 rows.
  for (const auto& [most, bounds] :
       {std::pair<std::int64_t, std::vector<std::int64_t>>{7, {2, 3, 2, 3}}, {12, {2, 4, 2, 4}}}) {
    const Graph graph =
        shard_experts(chunk_experts(parse_graph(kMoe), 4), {.peers = 2, .max_rows = most, .rows = 12});
    verify_graph(graph);
    std::vector<std::int64_t> got;
    for (const Node& node : graph.nodes())
      if (node.op->name == "order_by_expert") got.push_back(node.attributes.get<ops::RowExchange>().max_rows);
    CHECK(got == bounds);
    for (const char* name : {"row_overflow.3", "row_overflow.3.1", "row_overflow.3.2", "row_overflow.3.3"})
      CHECK(graph.find_output(name));
    verify_graph(rows_in_slabs(graph));
  }
}

TEST_CASE("rows that something else has made or reads do not go into slabs") {
  const Graph graph = parse_graph(R"(%0 = input "rows" : f32[12, 4]
%1 = input "offsets" : i32[5]
%2 = parameter "up" : f32[4, 6, 4]
%3 = grouped_matmul(%0, %2, %1) @1.routed.forward
output "y" = %3
)");
  CHECK_THROWS_AS(rows_in_slabs(shard_experts(graph, {.peers = 2, .max_rows = 9})), InternalError);
}

TEST_CASE("with all experts on one rank the graph stays as it is") {
  CHECK(shard(kMoe, {.peers = 1, .max_rows = 9}) == kMoe);
}

TEST_CASE(
    "a value travels once, however many read it there, and comes back once, however many read it here") {
  const Graph graph = parse_graph(R"(%0 = input "rows" : f32[12, 4]
%1 = input "offsets" : i32[5]
%2 = parameter "up" : f32[4, 6, 4]
%3 = parameter "gate" : f32[4, 6, 4]
%4 = grouped_matmul(%0, %2, %1) @1.routed.forward
%5 = grouped_matmul(%0, %3, %1) @1.routed.forward
%6 = swiglu(%5) @1.routed.forward
%7 = add(%4, %4) @1.routed.forward
%8 = add(%7, %4) @2.dense.forward
output "a" = %5
output "b" = %6
output "c" = %7
output "d" = %8
)");
  const Graph sharded = shard_experts(graph, {.peers = 4, .max_rows = 5});
  verify_graph(sharded);
  CHECK(count_nodes(sharded, "exchange_rows") == 1);
  CHECK(count_nodes(sharded, "return_rows") == 3);  // %4 once; what is only returned, too
  CHECK(sharded.type(*sharded.find_external("up")).shape == Shape{1, 6, 4});
  for (const char* name : {"a", "b", "c", "d"})
    CHECK(sharded.type(*sharded.find_output(name)) == graph.type(*graph.find_output(name)));
}

TEST_CASE("each layer has its own routes and says where its rows did not fit") {
  std::string text(kMoe);
  text.erase(text.find("output"));
  const Graph graph =
      parse_graph(text + R"(%14, %15, %16 = sort_by_expert(%1) {num_experts=4} @5.routed.forward
%17 = dispatch_rows(%13, %14, %15) {top_k=2} @5.routed.forward
%18 = grouped_matmul(%17, %3, %16) @5.routed.forward
%19 = combine_rows(%18, %14, %15) {top_k=2} @5.routed.forward
output "y" = %19
)");
  const Graph sharded = shard_experts(graph, {.peers = 4, .max_rows = 3});
  verify_graph(sharded);
  CHECK(count_nodes(sharded, "order_by_expert") == 2);
  for (const int layer : {3, 5}) {
    const auto overflow = sharded.find_output(fmt::format("row_overflow.{}", layer));
    REQUIRE(overflow);
    CHECK(sharded.node(sharded.value(*overflow).producer).scope.layer == layer);
  }
  CHECK(sharded.outputs().size() == 3);
}

TEST_CASE("experts that cannot be dealt out evenly are a mistake of the caller") {
  CHECK_THROWS_WITH(shard(kMoe, {.peers = 3, .max_rows = 9}), ContainsSubstring("4 experts on 3 ranks"));
}

// ---- sums of gradients

// Gradients of all sizes, in another order than that of the list: in order a, big, expert, b, c.
const char* const kExternals = R"(%0 = input "x" : f32[8]
%1 = state "c" : f32[5, 2]
%2 = state "a" : f32[8]
%3 = state "big" : f32[6, 5]
%4 = state "expert" : f32[2, 3, 4]
%5 = state "b" : f32[8]
%6 = input "y" : f32[5, 2]
%7 = input "z" : f32[6, 5]
%8 = input "w" : f32[2, 3, 4]
)";
const char* const kSums = R"(%9 = add(%2, %0) @1.attention.backward : f32[8]
%10 = add(%3, %7) @1.routed.backward : f32[6, 5]
%11 = add(%4, %8) @1.routed.backward : f32[2, 3, 4]
%12 = add(%5, %0) @0.attention.backward : f32[8]
%13 = add(%1, %6) @0.dense.backward : f32[5, 2]
update %2 -> %9
update %3 -> %10
update %4 -> %11
update %5 -> %12
update %1 -> %13
)";
const std::vector<ReplicatedGradient>& replicated() {
  static const std::vector<ReplicatedGradient> list{{"c", cut_evenly(MeshAxis::batch, 5, 4)},
                                                    {"a", cut_evenly(MeshAxis::batch, 8, 4)},
                                                    {"big", cut_evenly(MeshAxis::batch, 6, 4)},
                                                    {"expert", cut_evenly(MeshAxis::data, 6, 2)},
                                                    {"b", cut_evenly(MeshAxis::batch, 8, 4)}};
  return list;
}
std::string reduce(const ReductionOptions& options) {
  const Graph graph = reduce_gradients(parse_graph(std::string(kExternals) + kSums), replicated(), options);
  verify_graph(graph);
  return print_graph(graph);
}

TEST_CASE("gradients are summed in buckets, each as soon as its last one is there, a large one alone") {
  CHECK(reduce({.mesh = {4, 1, 2}, .bucket_bytes = 64}) ==
        std::string(kExternals) +
            R"(%9 = add(%2, %0) @1.attention.backward : f32[8]
%10 = add(%3, %7) @1.routed.backward : f32[6, 5]
%11 = all_reduce(%10) {axis=batch, size=4, rank=1, bounds=[], matrices=[]} @1.routed.backward : f32[6, 5]
%12 = add(%4, %8) @1.routed.backward : f32[2, 3, 4]
%13 = all_reduce(%12) {axis=data, size=2, rank=0, bounds=[], matrices=[]} @1.routed.backward : f32[2, 3, 4]
%14 = add(%5, %0) @0.attention.backward : f32[8]
%15, %16 = all_reduce(%9, %14) {axis=batch, size=4, rank=1, bounds=[], matrices=[]} @0.attention.backward : f32[8], f32[8]
%17 = add(%1, %6) @0.dense.backward : f32[5, 2]
%18 = all_reduce(%17) {axis=batch, size=4, rank=1, bounds=[], matrices=[]} @0.dense.backward : f32[5, 2]
update %2 -> %15
update %3 -> %11
update %4 -> %13
update %5 -> %16
update %1 -> %18
)");
}

TEST_CASE("scattered, a sum goes to a shard of its own and the accumulators keep this rank's gradients") {
  CHECK(reduce({.mesh = {4, 1, 2}, .kept = KeptSum::own_rows, .bucket_bytes = 64}) ==
        std::string(kExternals) +
            R"(%12 = state "own.big" : f32[2, 5]
%15 = state "own.expert" : f32[3, 4]
%19 = state "own.a" : f32[2]
%20 = state "own.b" : f32[2]
%23 = state "own.c" : f32[1, 2]
%9 = add(%2, %0) @1.attention.backward : f32[8]
%10 = add(%3, %7) @1.routed.backward : f32[6, 5]
%11 = reduce_scatter(%10) {axis=batch, size=4, rank=1, bounds=[0 1 3 4 6], matrices=[]} @1.routed.backward : f32[2, 5]
%13 = add(%4, %8) @1.routed.backward : f32[2, 3, 4]
%14 = reduce_scatter(%13) {axis=data, size=2, rank=0, bounds=[0 3 6], matrices=[]} @1.routed.backward : f32[3, 4]
%16 = add(%5, %0) @0.attention.backward : f32[8]
%17, %18 = reduce_scatter(%9, %16) {axis=batch, size=4, rank=1, bounds=[0 2 4 6 8 0 2 4 6 8], matrices=[]} @0.attention.backward : f32[2], f32[2]
%21 = add(%1, %6) @0.dense.backward : f32[5, 2]
%22 = reduce_scatter(%21) {axis=batch, size=4, rank=1, bounds=[0 1 2 3 5], matrices=[]} @0.dense.backward : f32[1, 2]
update %2 -> %9
update %3 -> %10
update %4 -> %13
update %5 -> %16
update %1 -> %21
update %12 -> %11
update %15 -> %14
update %19 -> %17
update %20 -> %18
update %23 -> %22
)");
}

TEST_CASE("with rows as the only accumulators the sum is added to them, one bucket later") {
  const char* const externals = R"(%0 = input "x" : f32[8]
%1 = input "y" : f32[5, 2]
)";
  const std::string graph = std::string(externals) + R"(%2 = state "a" : f32[8]
%3 = state "c" : f32[5, 2]
%4 = add(%0, %0) @1.attention.backward : f32[8]
%5 = add(%1, %1) @0.dense.backward : f32[5, 2]
update %2 -> %4
update %3 -> %5
)";
  const std::vector<ReplicatedGradient> list{{"a", cut_evenly(MeshAxis::batch, 8, 4)},
                                             {"c", cut_evenly(MeshAxis::batch, 5, 4)}};
  const auto reduced = [&](bool accumulate) {
    const Graph out = reduce_gradients(
        parse_graph(graph), list,
        {.mesh = {4, 1, 2}, .kept = KeptSum::accumulated_rows, .accumulate = accumulate, .bucket_bytes = 32});
    verify_graph(out);
    return print_graph(out);
  };
  CHECK(reduced(false) == std::string(externals) + R"(%4 = state "own.a" : f32[2]
%7 = state "own.c" : f32[1, 2]
%2 = add(%0, %0) @1.attention.backward : f32[8]
%3 = reduce_scatter(%2) {axis=batch, size=4, rank=1, bounds=[0 2 4 6 8], matrices=[]} @1.attention.backward : f32[2]
%5 = add(%1, %1) @0.dense.backward : f32[5, 2]
%6 = reduce_scatter(%5) {axis=batch, size=4, rank=1, bounds=[0 1 2 3 5], matrices=[]} @0.dense.backward : f32[1, 2]
update %4 -> %3
update %7 -> %6
)");
  CHECK(reduced(true) == std::string(externals) + R"(%4 = state "own.a" : f32[2]
%8 = state "own.c" : f32[1, 2]
%2 = add(%0, %0) @1.attention.backward : f32[8]
%3 = reduce_scatter(%2) {axis=batch, size=4, rank=1, bounds=[0 2 4 6 8], matrices=[]} @1.attention.backward : f32[2]
%5 = add(%1, %1) @0.dense.backward : f32[5, 2]
%6 = reduce_scatter(%5) {axis=batch, size=4, rank=1, bounds=[0 1 2 3 5], matrices=[]} @0.dense.backward : f32[1, 2]
%7 = add(%4, %3) @1.attention.backward : f32[2]
%9 = add(%8, %6) @0.dense.backward : f32[1, 2]
update %4 -> %7
update %8 -> %9
)");
}

/// Inputs of the sums over one axis, by the names of the accumulators they update: "a b | c".
std::string buckets(const ReductionOptions& options, MeshAxis axis) {
  const Graph graph = reduce_gradients(parse_graph(std::string(kExternals) + kSums), replicated(), options);
  std::string text;
  for (const Node& node : graph.nodes()) {
    if (node.op->name != "all_reduce" || node.attributes.get<ops::Replicas>().axis != axis) continue;
    if (!text.empty()) text += " |";
    for (const ValueId v : node.outputs)
      for (const StateUpdate& u : graph.updates())
        if (u.to == v)
          for (const External& e : graph.externals())
            if (e.value == u.from) text += (text.empty() ? "" : " ") + e.name;
  }
  return text;
}

TEST_CASE("how many gradients go together follows from bytes: a and b have 32, c 40, big 120, expert 96") {
  const MeshPosition mesh{4, 3, 2};
  const auto world = [&](std::size_t bytes) {
    return buckets({.mesh = mesh, .bucket_bytes = bytes}, MeshAxis::batch);
  };
  CHECK(world(1) == "a | big | b | c");
  CHECK(world(32) == "a | big | b | c");
  CHECK(world(33) == "big | a b | c");
  CHECK(world(64) == "big | a b | c");
  CHECK(world(65) == "big | a b c");
  CHECK(world(120) == "big | a b c");
  CHECK(world(121) == "a big | b c");
  CHECK(world(1000) == "a big b c");
  CHECK(buckets({.mesh = mesh, .bucket_bytes = 1000}, MeshAxis::data) == "expert");
  CHECK(buckets({.mesh = mesh, .bucket_bytes = 1000}, MeshAxis::expert) == "");
}

/// Gradients in each sum of 32 gradients of so many bytes.
std::vector<std::size_t> fill_buckets(std::int64_t bytes) {
  std::string externals, sums;
  std::vector<ReplicatedGradient> gradients;
  for (int i = 0; i < 32; ++i) {
    const std::string name = fmt::format("g{}", i), type = fmt::format("f32[{}]", bytes / 4);
    externals += fmt::format("%{} = state \"{}\" : {}\n", i, name, type);
    sums += fmt::format("%{} = add(%{}, %{}) @0.dense.backward : {}\n", 32 + i, i, i, type);
    gradients.push_back({name, cut_evenly(MeshAxis::batch, bytes / 4, 2)});
  }
  for (int i = 0; i < 32; ++i) sums += fmt::format("update %{} -> %{}\n", i, 32 + i);
  const Graph graph = reduce_gradients(parse_graph(externals + sums), gradients, {.mesh = {2, 0, 1}});
  std::vector<std::size_t> counts;
  for (const Node& node : graph.nodes())
    if (node.op->name == "all_reduce") counts.push_back(node.inputs.size());
  return counts;
}

TEST_CASE("the last bucket is a small part of all gradients, and none is tiny") {
  CHECK(fill_buckets(4 << 10) == std::vector<std::size_t>{32});      // 128 KiB in all
  CHECK(fill_buckets(64 << 10) == std::vector<std::size_t>(8, 4));   // 2 MiB: at least 256 KiB each
  CHECK(fill_buckets(128 << 10) == std::vector<std::size_t>(8, 4));  // an eighth each
  CHECK(fill_buckets(2 << 20) == std::vector<std::size_t>(16, 2));   // 4 MiB each at most
  CHECK(fill_buckets(4 << 20) == std::vector<std::size_t>(32, 1));
}

TEST_CASE("over axes of one rank nothing is summed") {
  CHECK(reduce({.mesh = {1, 0, 1}}) == std::string(kExternals) + kSums);
  const ReductionOptions experts_once{.mesh = {4, 2, 4}};
  CHECK(buckets(experts_once, MeshAxis::data) == "");
  CHECK(buckets(experts_once, MeshAxis::batch) == "a big b c");
  const ReductionOptions data_only{.mesh = {4, 2, 1}};
  CHECK(buckets(data_only, MeshAxis::data) == "expert");
  CHECK(buckets(data_only, MeshAxis::batch) == "a big b c");
}

TEST_CASE(
    "a weight in parts is gathered where it is read, in forward and backward, small ones of a block "
    "together") {
  const Graph graph = parse_graph(R"(%0 = input "x" : f32[3, 4]
%1 = parameter "a" : f32[4, 4]
%2 = parameter "b" : f32[4, 4]
%3 = parameter "norm" : f32[4]
%4 = parameter "large" : f32[12, 4]
%5 = matmul(%0, %1) {transpose_a=false, transpose_b=true, wide=false} @1.attention.forward : f32[3, 4]
%6 = matmul(%5, %2) {transpose_a=false, transpose_b=true, wide=false} @1.attention.forward : f32[3, 4]
%7 = matmul(%6, %4) {transpose_a=false, transpose_b=true, wide=false} @1.dense.forward : f32[3, 12]
%8 = matmul(%7, %4) {transpose_a=false, transpose_b=false, wide=false} @1.dense.backward : f32[3, 4]
%9 = matmul(%8, %2) {transpose_a=false, transpose_b=false, wide=false} @1.attention.backward : f32[3, 4]
output "y" = %9
)");
  const std::vector<TensorInParts> parts{{"a", cut_evenly(MeshAxis::batch, 4, 2)},
                                         {"b", cut_evenly(MeshAxis::batch, 4, 2)},
                                         {"large", cut_evenly(MeshAxis::batch, 12, 2)},
                                         {"elsewhere", cut_evenly(MeshAxis::batch, 4, 2)}};
  const Graph gathered = gather_weights(graph, parts, {2, 1, 1}, 100);
  verify_graph(gathered);
  CHECK(print_graph(gathered) == R"(%0 = input "x" : f32[3, 4]
%1 = parameter "norm" : f32[4]
%2 = parameter "own.a" : f32[2, 4]
%3 = parameter "own.b" : f32[2, 4]
%4 = parameter "own.large" : f32[6, 4]
%5, %6 = all_gather(%2, %3) {axis=batch, size=2, rank=1, bounds=[0 2 4 0 2 4], matrices=[0 0]} @1.attention.forward : f32[4, 4], f32[4, 4]
%7 = matmul(%0, %5) {transpose_a=false, transpose_b=true, wide=false} @1.attention.forward : f32[3, 4]
%8 = matmul(%7, %6) {transpose_a=false, transpose_b=true, wide=false} @1.attention.forward : f32[3, 4]
%9 = all_gather(%4) {axis=batch, size=2, rank=1, bounds=[0 6 12], matrices=[0]} @1.dense.forward : f32[12, 4]
%10 = matmul(%8, %9) {transpose_a=false, transpose_b=true, wide=false} @1.dense.forward : f32[3, 12]
%11 = all_gather(%4) {axis=batch, size=2, rank=1, bounds=[0 6 12], matrices=[0]} @1.dense.backward : f32[12, 4]
%12 = matmul(%10, %11) {transpose_a=false, transpose_b=false, wide=false} @1.dense.backward : f32[3, 4]
%13 = all_gather(%3) {axis=batch, size=2, rank=1, bounds=[0 2 4], matrices=[0]} @1.attention.backward : f32[4, 4]
%14 = matmul(%12, %13) {transpose_a=false, transpose_b=false, wide=false} @1.attention.backward : f32[3, 4]
output "y" = %14
)");
  CHECK(print_graph(gather_weights(graph, parts, {1, 0, 1})) == print_graph(graph));
}

TEST_CASE("a gradient that gets no new value is a mistake of the caller") {
  const Graph graph = parse_graph("%0 = state \"g\" : f32[2]\n%1 = add(%0, %0)\noutput \"y\" = %1\n");
  const std::vector<ReplicatedGradient> list{{"g", cut_evenly(MeshAxis::batch, 2, 2)}};
  CHECK_THROWS_WITH(reduce_gradients(graph, list, {.mesh = {2, 0, 1}}),
                    ContainsSubstring("g gets no new value"));
}

}  // namespace
}  // namespace farskip
