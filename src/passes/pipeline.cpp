// SPDX-License-Identifier: Apache-2.0
#include "farskip/passes/pipeline.h"

#include <array>
#include <cctype>

#include "base/folder.h"
#include "farskip/base/file.h"
#include "passes/dead_code.h"
#include "passes/drop_fan_out.h"
#include "passes/fuse_accumulate.h"
#include "passes/fuse_loss.h"
#include "passes/rematerialise.h"
#include "passes/rows_in_slabs.h"

namespace farskip {

std::span<const Pass> common_passes() {
  static const std::array<Pass, 6> passes{{
      {"drop_fan_out", drop_fan_out},
      {"fuse_loss", fuse_loss},
      {"fuse_accumulate", fuse_accumulate},
      {std::string(kRowsInSlabs), rows_in_slabs},
      {"dead_code", eliminate_dead_code},
      {"rematerialise_cheap", rematerialise_cheap},
  }};
  return passes;
}

namespace {

void check_names(std::span<const Pass> passes, const PipelineOptions& options) {
  std::set<std::string> names;
  for (const Pass& pass : passes) names.insert(pass.name);
  std::set<std::string> asked = options.skip;
  if (!options.stop_after.empty()) asked.insert(options.stop_after);
  for (const std::string& name : asked)
    if (!names.contains(name))
      throw UsageError(fmt::format("no pass named '{}'; the passes are {}", name, fmt::join(names, ", ")));
}

/// What `pass` makes of a graph, if that is sound.
Graph run_verified(const Pass& pass, const Graph& graph) {
  Graph result = pass.run(graph);
  try {
    verify_graph(result);
  } catch (const InternalError& error) {
    throw InternalError(
        fmt::format("the pass {} gave a graph that is not sound: {}", pass.name, error.what()));
  }
  return result;
}

/// "07-fuse_loss.txt"
bool is_dump(const std::string& name) {
  return name.size() > 7 && name.ends_with(".txt") &&
         std::isdigit(static_cast<unsigned char>(name[0])) != 0 &&
         std::isdigit(static_cast<unsigned char>(name[1])) != 0 && name[2] == '-';
}

/// The folder of a graph, without what an earlier run has left there (links go, what they lead to stays).
fs::path make_dump_folder(const PipelineOptions& options, const std::string& name) {
  const fs::path folder = fs::path(options.dump_folder) / name;
  std::error_code failure;
  fs::create_directories(folder, failure);
  if (failure || fs::is_symlink(folder))
    throw IoError(fmt::format("--dump-graphs {}: {}: {}; name another folder", options.dump_folder,
                              folder.string(), failure ? failure.message() : "is a link"));
  for (const std::string& file : list_entries(folder))
    if (is_dump(file)) fs::remove(folder / file);
  return folder;
}

Graph run_passes(Graph graph, const PassPipeline& pipeline, const PipelineOptions& options,
                 const Logger& logger) {
  check_names(pipeline.passes, options);
  verify_graph(graph);
  const fs::path folder = options.dump_folder.empty() ? "" : make_dump_folder(options, pipeline.name);
  std::string text = options.dump_folder.empty() ? "" : print_graph(graph);  // as it is
  int number = 0;
  for (const Pass& pass : pipeline.passes) {
    ++number;
    if (options.skip.contains(pass.name)) continue;
    const std::size_t nodes_before = graph.nodes().size();
    graph = run_verified(pass, graph);
    logger.debug("{}: pass {:02} {}: {} -> {} nodes", pipeline.name, number, pass.name, nodes_before,
                 graph.nodes().size());
    if (!options.dump_folder.empty())
      if (std::string now = print_graph(graph); now != text) {
        write_text_file(folder / fmt::format("{:02}-{}.txt", number, pass.name), now);
        text = std::move(now);
      }
    if (pass.name == options.stop_after) break;
  }
  if (!options.dump_folder.empty() && fs::is_empty(folder)) fs::remove(folder);
  return graph;
}

}  // namespace

Graph run_pipeline(const PassPipeline& pipeline, const PipelineOptions& options, const Logger& logger) {
  PassPipeline whole = pipeline;
  whole.passes.insert(whole.passes.end(), common_passes().begin(), common_passes().end());
  whole.passes.insert(whole.passes.end(), pipeline.last.begin(), pipeline.last.end());
  return run_passes(Graph(), whole, options, logger);
}

Graph run_pipeline(Graph graph, const PipelineOptions& options, const Logger& logger) {
  return run_passes(std::move(graph), {"graph", {common_passes().begin(), common_passes().end()}}, options,
                    logger);
}

Graph build_graph(const PassPipeline& pipeline) {
  return run_passes(Graph(), pipeline, {}, Logger(LogLevel::off));
}

}  // namespace farskip
