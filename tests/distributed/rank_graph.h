// SPDX-License-Identifier: Apache-2.0
#pragma once
// One rank's graph with the tensors that it works on, run over ranks that are threads.

#include <omp.h>

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "comm/local.h"
#include "farskip/comm/mesh.h"
#include "farskip/graph/graph.h"
#include "farskip/runtime/executor.h"

namespace farskip::test {

/// What f(world) returns on each of `size` ranks. Assert on the results: Catch is not for several threads.
template <class F>
auto on_ranks(int size, const F& f) {
  std::vector<decltype(f(std::declval<const Communicator&>()))> results(static_cast<std::size_t>(size));
  run_local_ranks(size, [&](const Communicator& world) {
    omp_set_num_threads(1);  // of this rank
    results[static_cast<std::size_t>(world.rank())] = f(world);
  });
  return results;
}

inline HostTensor copy_tensor(const TensorView& view) {
  HostTensor copy(view.dtype, view.shape);
  if (view.num_bytes() > 0) std::memcpy(copy.bytes().data(), view.data, view.num_bytes());
  return copy;
}

inline bool same_bits(const HostTensor& a, const HostTensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         (a.bytes().empty() || std::memcmp(a.bytes().data(), b.bytes().data(), a.bytes().size()) == 0);
}

using Tensors = std::map<std::string, HostTensor>;

/// A graph under construction, its externals bound as they are added.
struct RankGraph {
  Graph graph;
  Builder b{graph, {}};
  std::map<std::string, TensorView> bound;

  RankGraph() = default;
  RankGraph(const RankGraph&) = delete;
  RankGraph& operator=(const RankGraph&) = delete;

  ValueId add(ExternalKind kind, const std::string& name, const TensorView& view) {
    bound.emplace(name, view);
    return graph.add_external(kind, name, {view.dtype, view.shape, {}});
  }

  /// Runs it twice, since every buffer is then used again, and copies the outputs.
  Tensors run(const Mesh& mesh, Waits waits, int times = 1) {
    verify_graph(graph);
    Arena arena;
    Plan plan = make_serial_plan(graph, cpu_workspace, waits);
    Executor executor(graph, std::move(plan), cpu_kernel_table(), arena, {&mesh, nullptr});
    for (const auto& [name, view] : bound) executor.bind(name, view);
    for (int i = 0; i < times; ++i) executor.run();
    Tensors outputs;
    for (const Output& o : graph.outputs()) outputs[o.name] = copy_tensor(executor.output(o.name));
    return outputs;
  }
};

}  // namespace farskip::test
