// SPDX-License-Identifier: Apache-2.0
// Graph text in, graph text out.

#include "farskip/base/file.h"
#include "farskip/passes/pipeline.h"
#include "passes/dead_code.h"
#include "passes/fuse_accumulate.h"
#include "passes/fuse_loss.h"
#include "passes/rematerialise.h"
#include "support/catch.h"
#include "support/support.h"

namespace farskip {
namespace {

std::string run_pass(Graph (*pass)(const Graph&), const std::string& text) {
  const Graph graph = pass(parse_graph(text));
  verify_graph(graph);
  return print_graph(graph);
}

TEST_CASE("dead code goes, externals and state updates stay") {
  CHECK(run_pass(eliminate_dead_code, R"(%0 = input "x" : f32[2, 2]
%1 = input "unused" : f32[3]
%2 = state "s" : f32[2, 2]
%3 = add(%0, %0)
%4 = add(%3, %0)
%5 = add(%2, %0)
output "y" = %3
update %2 -> %5
)") == R"(%0 = input "x" : f32[2, 2]
%1 = input "unused" : f32[3]
%2 = state "s" : f32[2, 2]
%3 = add(%0, %0) @none.forward : f32[2, 2]
%4 = add(%2, %0) @none.forward : f32[2, 2]
output "y" = %3
update %2 -> %4
)");
}

const char* const kAccumulate = R"(%0 = input "a" : f32[3, 2]
%1 = input "b" : f32[3, 2]
%2 = state "s" : f32[2, 2]
)";

TEST_CASE("a sum with a product becomes an accumulating product, whichever side it stands on") {
  const std::string fused =
      std::string(kAccumulate) +
      R"(%3 = matmul(%0, %1, %2) {transpose_a=true, transpose_b=false, wide=false} @none.forward : f32[2, 2]
update %2 -> %3
)";
  for (const char* sum : {"%4 = add(%2, %3)", "%4 = add(%3, %2)"})
    CHECK(run_pass(fuse_accumulate, std::string(kAccumulate) + "%3 = matmul(%0, %1) {transpose_a=true}\n" +
                                        sum + "\nupdate %2 -> %4\n") == fused);
}

TEST_CASE("sums chain through several accumulating products") {
  CHECK(
      run_pass(fuse_accumulate, std::string(kAccumulate) + R"(%3 = matmul(%0, %1) {transpose_a=true}
%4 = matmul(%1, %0) {transpose_a=true}
%5 = add(%3, %4)
%6 = add(%2, %5)
update %2 -> %6
)") ==
      std::string(kAccumulate) +
          R"(%3 = matmul(%0, %1, %2) {transpose_a=true, transpose_b=false, wide=false} @none.forward : f32[2, 2]
%4 = matmul(%1, %0, %3) {transpose_a=true, transpose_b=false, wide=false} @none.forward : f32[2, 2]
update %2 -> %4
)");
}

TEST_CASE("a product that something else reads too, or that runs before the other summand exists, stays") {
  const std::string read_twice =
      std::string(kAccumulate) +
      R"(%3 = matmul(%0, %1) {transpose_a=true, transpose_b=false, wide=false} @none.forward : f32[2, 2]
%4 = add(%2, %3) @none.forward : f32[2, 2]
output "y" = %3
update %2 -> %4
)";
  CHECK(run_pass(fuse_accumulate, read_twice) == read_twice);
  const std::string too_early =
      std::string(kAccumulate) +
      R"(%3 = matmul(%0, %1) {transpose_a=true, transpose_b=false, wide=false} @none.forward : f32[2, 2]
%4 = add(%2, %2) @none.forward : f32[2, 2]
%5 = add(%3, %4) @none.forward : f32[2, 2]
output "y" = %5
)";
  CHECK(run_pass(fuse_accumulate, too_early) == too_early);
}

TEST_CASE("each output of an op takes its own sum, and low ones too") {
  CHECK(run_pass(fuse_accumulate, R"(%0 = input "dy" : bf16[3, 2]
%1 = input "x" : bf16[3, 2]
%2 = input "w" : f32[2]
%3 = input "rstd" : f32[3, 1]
%4 = input "stream" : bf16[3, 2]
%5 = state "dw" : f32[2]
%6, %7 = rms_norm_grad(%0, %1, %2, %3)
%8 = add(%4, %6)
%9 = add(%5, %7)
output "dx" = %8
update %5 -> %9
)") == R"(%0 = input "dy" : bf16[3, 2]
%1 = input "x" : bf16[3, 2]
%2 = input "w" : f32[2]
%3 = input "rstd" : f32[3, 1]
%4 = input "stream" : bf16[3, 2]
%5 = state "dw" : f32[2]
%6, %7 = rms_norm_grad(%0, %1, %2, %3, %5, %4) {eps=1e-06} @none.forward : bf16[3, 2], f32[2]
output "dx" = %6
update %5 -> %7
)");
}

const char* const kLoss = R"(%0 = input "h" : f32[3, 2]
%1 = input "w" : f32[5, 2]
%2 = input "t" : i32[3]
%3 = input "seed" : f32[1]
)";

TEST_CASE("the loss comes from its gradient op where both are there") {
  CHECK(
      run_pass(fuse_loss, std::string(kLoss) + R"(%4, %5 = linear_cross_entropy(%0, %1, %2)
%6, %7, %8, %9 = linear_cross_entropy_grad(%3, %0, %1, %2)
output "loss" = %4
output "dh" = %8
)") ==
      std::string(kLoss) +
          R"(%4, %5, %6, %7 = linear_cross_entropy_grad(%3, %0, %1, %2) @none.forward : f32[1], i32[1], f32[3, 2], f32[5, 2]
output "loss" = %4
output "dh" = %6
)");
}

TEST_CASE("a loss that another op reads keeps its own op") {
  const std::string text =
      std::string(kLoss) + R"(%4, %5 = linear_cross_entropy(%0, %1, %2) @head.forward : f32[1], i32[1]
%6 = add(%4, %3) @head.forward : f32[1]
%7, %8, %9, %10 = linear_cross_entropy_grad(%6, %0, %1, %2) @head.backward : f32[1], i32[1], f32[3, 2], f32[5, 2]
output "loss" = %4
output "dh" = %9
)";
  CHECK(run_pass(fuse_loss, text) == text);
}

TEST_CASE("a cheap value whose inputs are kept anyway is computed again before its first backward reader") {
  CHECK(run_pass(rematerialise_cheap, R"(%0 = parameter "w" : f32[6, 4]
%1 = input "x" : f32[3, 4]
%2 = matmul(%1, %0) {transpose_b=true} @0.dense.forward
%3 = swiglu(%2) @0.dense.forward
%4 = matmul(%3, %3) {transpose_a=true} @0.dense.backward
%5 = swiglu_grad(%3, %2) @0.dense.backward
output "a" = %4
output "b" = %5
)") == R"(%0 = parameter "w" : f32[6, 4]
%1 = input "x" : f32[3, 4]
%2 = matmul(%1, %0) {transpose_a=false, transpose_b=true, wide=false} @0.dense.forward : f32[3, 6]
%3 = swiglu(%2) @0.dense.forward : f32[3, 3]
%4 = swiglu(%2) @0.dense.backward : f32[3, 3]
%5 = matmul(%4, %4) {transpose_a=true, transpose_b=false, wide=false} @0.dense.backward : f32[3, 3]
%6 = swiglu_grad(%4, %2) @0.dense.backward : f32[3, 6]
output "a" = %5
output "b" = %6
)");
}

TEST_CASE("a cheap value whose input is not kept for the backward is not computed again") {
  const std::string text = R"(%0 = parameter "w" : f32[6, 4]
%1 = input "x" : f32[3, 4]
%2 = matmul(%1, %0) {transpose_a=false, transpose_b=true, wide=false} @0.dense.forward : f32[3, 6]
%3 = swiglu(%2) @0.dense.forward : f32[3, 3]
%4 = matmul(%3, %3) {transpose_a=true, transpose_b=false, wide=false} @0.dense.backward : f32[3, 3]
output "a" = %4
)";
  CHECK(run_pass(rematerialise_cheap, text) == text);
}

TEST_CASE("what is made of a cheap value that has to be kept is computed again") {
  // The weights of rows that came from other ranks: gathered from what is not kept.
  CHECK(run_pass(rematerialise_cheap, R"(%0 = input "sent" : f32[3]
%1 = input "order" : i32[3]
%2 = input "up" : f32[3, 8]
%3 = add(%0, %0) @0.routed.forward
%4 = gather_rows(%3, %1) @0.routed.forward
%5 = swiglu(%2, %4) @0.routed.forward
%6 = matmul(%5, %5) {transpose_a=true} @0.routed.backward
%7 = add(%4, %4) @0.routed.backward
output "a" = %6
output "b" = %7
)") == R"(%0 = input "sent" : f32[3]
%1 = input "order" : i32[3]
%2 = input "up" : f32[3, 8]
%3 = add(%0, %0) @0.routed.forward : f32[3]
%4 = gather_rows(%3, %1) @0.routed.forward : f32[3]
%5 = swiglu(%2, %4) @0.routed.forward : f32[3, 4]
%6 = swiglu(%2, %4) @0.routed.backward : f32[3, 4]
%7 = matmul(%6, %6) {transpose_a=true, transpose_b=false, wide=false} @0.routed.backward : f32[4, 4]
%8 = add(%4, %4) @0.routed.backward : f32[3]
output "a" = %7
output "b" = %8
)");
}

TEST_CASE("the pipeline skips, stops and dumps by name, and refuses names it does not know") {
  const std::string text = std::string(kAccumulate) +
                           "%3 = matmul(%0, %1) {transpose_a=true}\n%4 = add(%2, %3)\n" +
                           "%5 = add(%2, %2)\nupdate %2 -> %4\n";
  const Logger quiet(LogLevel::off);
  CHECK(run_pipeline(parse_graph(text), {}, quiet).nodes().size() == 1);
  CHECK(run_pipeline(parse_graph(text), {{"fuse_accumulate"}, "", ""}, quiet).nodes().size() == 2);
  CHECK(run_pipeline(parse_graph(text), {{}, "fuse_loss", ""}, quiet).nodes().size() == 3);
  const test::TemporaryFolder folder;
  run_pipeline(parse_graph(text), {{}, "", folder.path().string()}, quiet);
  CHECK_FALSE(std::filesystem::exists(folder / "graph" / "02-fuse_loss.txt"));  // changed nothing
  CHECK(std::filesystem::exists(folder / "graph" / "03-fuse_accumulate.txt"));
  CHECK_THROWS_WITH(run_pipeline(parse_graph(text), {{"fuse_everything"}, "", ""}, quiet),
                    ContainsSubstring("fuse_everything") && ContainsSubstring("fuse_accumulate"));
}

TEST_CASE("a dump replaces that of an earlier run, and writes through no link") {
  const test::TemporaryFolder folder;
  const Logger quiet(LogLevel::off);
  const PassPipeline make{
      "step", {{"make", [](const Graph&) { return parse_graph("%0 = state \"s\" : f32[2]\n"); }}}};
  const std::filesystem::path own = folder / "graphs" / "step";
  std::filesystem::create_directories(own);
  write_text_file(folder / "precious.txt", "precious");
  write_text_file(own / "notes.txt", "mine");
  write_text_file(own / "05-recompute.txt", "of another run");
  std::filesystem::create_symlink(folder / "precious.txt", own / "01-make.txt");
  run_pipeline(make, {{}, "", (folder / "graphs").string()}, quiet);
  CHECK(read_text_file(folder / "precious.txt") == "precious");
  CHECK_THAT(read_text_file(own / "01-make.txt", std::uint64_t{1} << 20, Links::refuse),
             ContainsSubstring("state"));
  CHECK_FALSE(std::filesystem::exists(own / "05-recompute.txt"));
  CHECK(read_text_file(own / "notes.txt") == "mine");
  write_text_file(folder / "file", "");
  CHECK_THROWS_WITH(run_pipeline(make, {{}, "", (folder / "file").string()}, quiet),
                    ContainsSubstring("--dump-graphs") && ContainsSubstring("name another folder"));
}

TEST_CASE("a pipeline makes its graph from nothing, pass by pass, and names the pass that breaks it") {
  const auto sound = [](const Graph&) {
    return parse_graph("%0 = state \"s\" : f32[2]\n%1 = add(%0, %0)\nupdate %0 -> %1\n");
  };
  const auto broken = [](const Graph& graph) {
    Graph other = graph;
    other.add_update(ValueId(1), ValueId(0));  // only what comes from outside has new versions
    return other;
  };
  const PassPipeline whole{"step",
                           {{"make", sound}, {"recompute", [](const Graph& graph) { return graph; }}}};
  CHECK(print_graph(build_graph(whole)) == print_graph(sound(Graph())));
  const test::TemporaryFolder folder;
  run_pipeline(whole, {{}, "", folder.path().string()}, Logger(LogLevel::off));
  CHECK(read_text_file(folder / "step" / "01-make.txt") == print_graph(sound(Graph())));
  CHECK_FALSE(std::filesystem::exists(folder / "step" / "02-recompute.txt"));  // changed nothing
  CHECK_THROWS_WITH(build_graph({"step", {{"make", sound}, {"recompute", broken}}}),
                    ContainsSubstring("the pass recompute gave a graph"));
}

}  // namespace
}  // namespace farskip
