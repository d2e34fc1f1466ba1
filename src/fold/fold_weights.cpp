// SPDX-License-Identifier: Apache-2.0
#include "fold/fold_weights.h"

#include <optional>
#include <utility>

#include "backend/cpu/parallel.h"
#include "farskip/ops/ops.h"
#include "fold/graph_runner.h"
#include "fold/matrices.h"

namespace farskip {

namespace {

/// "sum" += "x" "change"ᵀ.
Graph change_graph(std::int64_t rows, std::int64_t columns) {
  Graph graph;
  Builder b{graph, {0, 0, -1, SubBlock::none, Phase::forward}};
  const auto add = [&](ExternalKind kind, const char* name, std::int64_t height) {
    return graph.add_external(kind, name, {DType::f32, Shape{height, columns}, {}});
  };
  const ValueId x = add(ExternalKind::input, "x", rows), change = add(ExternalKind::input, "change", columns),
                sum = add(ExternalKind::state, "sum", rows);
  graph.add_update(sum, b.emit("matmul", ops::Matmul{.transpose_b = true}, {x, change, sum})[0]);
  return graph;
}

/// Rows [begin, end) of W ← W + W Dᵀ.
void change_rows(const Context& context, const TensorView& weight, const HostTensor& change,
                 std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t most = 8192;
  Device& device = *context.device();
  std::optional<GraphRunner> runner;
  for (std::int64_t row = begin, count = 0; row < end; row += count) {
    const std::int64_t now = std::min(most, end - row);
    if (now != std::exchange(count, now)) {
      runner.emplace(change_graph(count, row_size(weight.shape)), context);
      runner->write("change", change.view().data);
    }
    const TensorView rows = rows_view(weight, row, count);
    for (const char* name : {"x", "sum"})
      device.copy_within(runner->at(name).data, rows.data, rows.num_bytes());
    runner->run();
    device.copy_within(rows.data, runner->at("sum").data, rows.num_bytes());
  }
}

}  // namespace

HostTensor fold_input(const Context& context, const TensorView& weight, const Eigen::MatrixXd& change,
                      const Communicator& world) {
  const HostTensor low(DType::f32, Shape{change.rows(), change.cols()});
  as_matrix(low.view()) = change.cast<float>();
  const std::int64_t rows = row_count(weight.shape), columns = row_size(weight.shape);
  const auto first = [&](int rank) { return rows * rank / world.size(); };
  change_rows(context, weight, low, first(world.rank()), first(world.rank() + 1));
  HostTensor changed = copy_to_host(*context.device(), weight);
  if (world.size() == 1) return changed;
  std::vector<std::int64_t> offsets;
  for (int rank = 0; rank <= world.size(); ++rank) offsets.push_back(first(rank) * columns);
  const auto own = static_cast<std::size_t>(world.rank());
  const std::span<float> all = changed.values<float>();
  world.all_gather(
      std::span<const float>(all.subspan(static_cast<std::size_t>(offsets[own]),
                                         static_cast<std::size_t>(offsets[own + 1] - offsets[own]))),
      offsets, all);
  context.device()->copy_in(weight.data, changed.view().data, changed.bytes().size());
  return changed;
}

HostTensor fold_output(Device& device, const TensorView& weight,
                       const std::vector<Eigen::MatrixXd>& changes) {
  const HostTensor now = copy_to_host(device, weight);
  MatrixView w = as_matrix(now.view());
  const Eigen::Index height = w.rows() / static_cast<Eigen::Index>(changes.size());
  cpu::parallel_for(static_cast<std::int64_t>(changes.size()), [&](std::int64_t i) {
    w.middleRows(i * height, height) += changes[static_cast<std::size_t>(i)].transpose().cast<float>();
  });
  device.copy_in(weight.data, now.view().data, now.bytes().size());
  return now;
}

}  // namespace farskip
