// SPDX-License-Identifier: Apache-2.0
#pragma once
// The passes a graph goes through between autograd and schedule, in one list.

#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/base/log.h"
#include "farskip/graph/graph.h"

namespace farskip {

struct Pass {
  std::string name;
  Graph (*run)(const Graph&);
};

struct PipelineOptions {
  std::set<std::string> skip;  // names of passes to leave out
  std::string stop_after;      // empty: run all
  std::string dump_folder;     // empty: none; otherwise NN-name.txt after each pass that changed the graph
};

/// The one pass that is for some devices only (passes/rows_in_slabs.h); others skip it.
inline constexpr std::string_view kRowsInSlabs = "rows_in_slabs";

/// All passes, top to bottom.
std::span<const Pass> graph_passes();

/// Runs them, logs each by name with node counts, and verifies the graph after each. An unknown name in
/// the options is a UsageError that lists the passes.
Graph run_pipeline(Graph graph, const PipelineOptions& options, const Logger& logger);

/// The graph that `pass` has given, if it is sound (verify_graph); else an InternalError that names the pass.
/// For passes outside of the list.
Graph verified(std::string_view pass, Graph graph);

}  // namespace farskip
