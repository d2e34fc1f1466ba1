// SPDX-License-Identifier: Apache-2.0
#pragma once
// How graphs are made: in passes, one list for each kind of graph.

#include <functional>
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
  std::function<Graph(const Graph&)> run;
};

/// Passes in order, under the name of the graph that they make. The first one makes it from an empty graph.
struct PassPipeline {
  std::string name;
  std::vector<Pass> passes;
  std::vector<Pass> last{};  // behind the common passes
};

struct PipelineOptions {
  std::set<std::string> skip;  // names of passes to leave out
  std::string stop_after;      // empty: run all
  std::string
      dump_folder;  // empty: none; otherwise gets NAME/NN-pass.txt after each pass that changed the graph
};

/// The one pass that is for some devices only (passes/rows_in_slabs.h); others skip it.
inline constexpr std::string_view kRowsInSlabs = "rows_in_slabs";

/// The passes of every graph, behind its own.
std::span<const Pass> common_passes();

/// Runs the pipeline, in it the common passes; logs each pass with node counts, and verifies the graph after
/// it: InternalError that names the pass. An unknown name in the options is a UsageError that lists the
/// passes.
Graph run_pipeline(const PassPipeline& pipeline, const PipelineOptions& options, const Logger& logger);
/// The common passes alone.
Graph run_pipeline(Graph graph, const PipelineOptions& options, const Logger& logger);
/// Its own passes up to the common ones, without a word.
Graph build_graph(const PassPipeline& pipeline);

}  // namespace farskip
