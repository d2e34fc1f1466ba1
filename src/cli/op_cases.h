// SPDX-License-Identifier: Apache-2.0
#pragma once
// The ops that a configuration's own graphs run, each once with the types and attributes that it has there,
// as `farskip bench ops` times them.

#include <cstdint>
#include <string>
#include <vector>

#include "cli/command_inputs.h"
#include "cli/op_run.h"

namespace farskip {

/// Nodes of one op that are alike.
struct ProgramOp {
  std::string name;   // "grouped_matmul routed.forward f32[8192, 512], f32[16, 512, 512], …, skewed"
  std::string scope;  // of the first of them, without its layer
  std::vector<std::string> inputs;  // "f32[8192, 512]", "_" where one is absent
  std::int64_t count = 0;           // in a step of one rank; 0: not in it, but in a run over a cache
  OpCase op;
  /// Its inputs are rows by expert, whose offsets are input 2.
  bool by_expert = false;
};

/// Those of a training step of one rank that has the whole model; then what only a run over a cache has, the
/// next token of each sequence of a micro-batch. Integers are what the graph's own ops make of random tokens
/// and of a router that chooses all experts alike; ops on rows by expert come a second time, with rows by
/// Zipf's law (expert e has a share of 1 / (e + 1)), the choice of a token once for each way to choose.
/// `only`: those whose name contains it.
std::vector<ProgramOp> program_ops(const LoadedRun& run, Device& device, std::string_view only,
                                   const Logger& logger);

/// Rows of each expert: offsets i32[experts + 1] of `rows` rows.
std::vector<std::int32_t> spread_rows(std::int64_t rows, std::int64_t experts, bool skewed);

}  // namespace farskip
