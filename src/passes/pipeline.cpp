// SPDX-License-Identifier: Apache-2.0
#include "farskip/passes/pipeline.h"

#include <array>

#include "farskip/base/file.h"
#include "farskip/passes/dead_code.h"
#include "farskip/passes/fuse_accumulate.h"
#include "farskip/passes/fuse_loss.h"
#include "farskip/passes/rematerialise.h"
#include "farskip/passes/rows_in_slabs.h"

namespace farskip {

std::span<const Pass> graph_passes() {
  static const std::array<Pass, 5> passes{{
      {"fuse_loss", fuse_loss},
      {"fuse_accumulate", fuse_accumulate},
      {std::string(kRowsInSlabs), rows_in_slabs},
      {"dead_code", eliminate_dead_code},
      {"rematerialise_cheap", rematerialise_cheap},
  }};
  return passes;
}

namespace {

void check_names(const PipelineOptions& options) {
  std::set<std::string> names;
  for (const Pass& pass : graph_passes()) names.insert(pass.name);
  std::set<std::string> asked = options.skip;
  if (!options.stop_after.empty()) asked.insert(options.stop_after);
  for (const std::string& name : asked)
    if (!names.contains(name))
      throw UsageError(fmt::format("no pass named '{}'; the passes are {}", name, fmt::join(names, ", ")));
}

}  // namespace

Graph verified(std::string_view pass, Graph graph) {
  try {
    verify_graph(graph);
  } catch (const InternalError& error) {
    throw InternalError(fmt::format("the pass {} gave a graph that is not sound: {}", pass, error.what()));
  }
  return graph;
}

Graph run_pipeline(Graph graph, const PipelineOptions& options, const Logger& logger) {
  check_names(options);
  verify_graph(graph);
  int number = 0;
  for (const Pass& pass : graph_passes()) {
    ++number;
    if (options.skip.contains(pass.name)) continue;
    const std::size_t nodes_before = graph.nodes().size();
    const std::string before = options.dump_folder.empty() ? std::string() : print_graph(graph);
    graph = verified(pass.name, pass.run(graph));
    logger.debug("pass {:02} {}: {} -> {} nodes", number, pass.name, nodes_before, graph.nodes().size());
    if (!options.dump_folder.empty())
      if (const std::string after = print_graph(graph); after != before)
        write_text_file(fs::path(options.dump_folder) / fmt::format("{:02}-{}.txt", number, pass.name),
                        after);
    if (pass.name == options.stop_after) break;
  }
  return graph;
}

}  // namespace farskip
