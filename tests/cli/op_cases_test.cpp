// SPDX-License-Identifier: Apache-2.0
// The cases of bench ops against the graphs that they are taken from.
#include "cli/op_cases.h"

#include <set>

#include "engine/engine_options.h"
#include "farskip/engine/compile.h"
#include "farskip/program/training_program.h"
#include "support/catch.h"

namespace farskip {
namespace {

const Logger kQuiet(LogLevel::off);

LoadedRun small_run(std::vector<std::string> overrides) {
  for (const char* size : {"model.hidden_size=64", "model.vocab_size=512", "model.moe_intermediate_size=32",
                           "train.sequence_length=40", "train.micro_batch=2", "train.global_batch=6"})
    overrides.emplace_back(size);
  return load_run(FARSKIP_SOURCE_DIR "/configs/bench/cpu_moe.yaml", overrides, {.model = true, .data = false},
                  kQuiet);
}

std::span<const std::int32_t> integers(const ProgramOp& p, std::size_t input) {
  return p.op.values.at(input).values<std::int32_t>();
}

TEST_CASE("every node of a step is counted once, and every integer that an op reads is one it may read") {
  const LoadedRun run =
      small_run({GENERATE("schedule.recompute=none", "schedule.recompute=full", "data.document_mask=true")});
  const std::vector<ProgramOp> ops = program_ops(run, *make_cpu_device(), "", kQuiet);

  const TrainingProgram program(wire_model(run.model), engine_options(run.config, 1), {1, 0, 1});
  const PipelineOptions options = pipeline_for(DeviceKind::cpu, {});
  std::map<std::string, std::int64_t> nodes, counted;
  const auto add = [&](const PassPipeline& pipeline, std::int64_t runs) {
    const Graph graph = run_pipeline(pipeline, options, kQuiet);
    for (const Node& node : graph.nodes()) nodes[node.op->name] += runs;
  };
  for (const auto& [kind, runs] : program.micro_batches()) add(program.micro_batch(kind), runs);
  add(program.update(), 1);
  std::set<std::string> names, cached;
  for (const ProgramOp& p : ops) {
    CAPTURE(p.name);
    CHECK(names.insert(p.name + p.op.attributes.text()).second);
    if (p.count == 0) cached.insert(p.op.op);
    if (p.count > 0 && !p.name.ends_with("skewed")) counted[p.op.op] += p.count;
  }
  CHECK(counted == nodes);
  for (const char* op : {"cached_attention", "write_cache", "sample"}) CHECK(cached.contains(op));

  const std::int64_t tokens = 80, rows = tokens * run.model.moe.top_k, experts = run.model.moe.num_experts;
  for (const ProgramOp& p : ops) {
    CAPTURE(p.name);
    for (std::size_t i = 0; i < p.op.inputs.size(); ++i)
      if (p.op.inputs[i] && p.op.inputs[i]->dtype == DType::i32) REQUIRE(p.op.values.contains(i));
    if (p.by_expert) {
      const std::span<const std::int32_t> offsets = integers(p, 2);
      const bool skewed = p.name.ends_with("skewed");
      CHECK(std::vector<std::int32_t>(offsets.begin(), offsets.end()) == spread_rows(rows, experts, skewed));
    }
    if (p.op.op == "dispatch_rows") {
      std::set<std::int32_t> slots(integers(p, 1).begin(), integers(p, 1).end());
      CHECK(slots.size() == static_cast<std::size_t>(rows));
      CHECK(*slots.rbegin() == rows - 1);
    }
    if (p.op.op == "embedding")
      for (const std::int32_t id : integers(p, 1)) CHECK((id >= 0 && id < 512));
  }
}

TEST_CASE("the rows of experts go by equal shares, or by Zipf's law") {
  CHECK(spread_rows(10, 4, false) == std::vector<std::int32_t>{0, 3, 5, 8, 10});
  CHECK(spread_rows(11, 3, true) == std::vector<std::int32_t>{0, 6, 9, 11});
}

}  // namespace
}  // namespace farskip
