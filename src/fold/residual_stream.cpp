// SPDX-License-Identifier: Apache-2.0
#include "fold/residual_stream.h"

#include <algorithm>

#include "farskip/ops/ops.h"

namespace farskip {
namespace {

Graph adder_graph(const Shape& rows) {
  Graph graph;
  Builder b{graph, {0, 0, -1, SubBlock::none, Phase::forward}};
  const auto add = [&](ExternalKind kind, const char* name) {
    return graph.add_external(kind, name, {DType::f32, rows, {}});
  };
  const ValueId sum = add(ExternalKind::state, "sum"), term = add(ExternalKind::input, "term");
  graph.add_update(sum, ops::add(b, sum, term));
  return graph;
}

void copy(Device& from_device, const TensorView& from, Device& to_device, const TensorView& to) {
  FARSKIP_CHECK(from.num_bytes() == to.num_bytes(), "{} bytes to {}", from.num_bytes(), to.num_bytes());
  if (&from_device == &to_device) return to_device.copy_within(to.data, from.data, to.num_bytes());
  if (from_device.shares_host_memory()) return to_device.copy_in(to.data, from.data, to.num_bytes());
  from_device.copy_out(to.data, from.data, to.num_bytes());
}

}  // namespace

ResidualStream::ResidualStream(LayerGraph layers, const StreamPlace& place)
    : layers_(std::move(layers)),
      place_(place),
      adder_(adder_graph({place.rows, place.shape[1]}), place_.memory),
      last_omission_(layers_.blocks.size(), -1) {
  FARSKIP_CHECK(place.shape[0] % place.rows == 0, "{} of {} rows", place.rows, place.shape[0]);
  for (std::size_t i = 0; i < layers_.blocks.size(); ++i)
    for (const int omitted : layers_.blocks[i].omits)
      last_omission_[static_cast<std::size_t>(omitted)] = static_cast<int>(i);
}

TensorView ResidualStream::rows_of(const DeviceTensor& tensor, std::int64_t first) const {
  return rows_view(tensor.view, first, place_.rows);
}

void ResidualStream::sum_rows(const std::vector<int>& omits, std::int64_t first) {
  std::vector<TensorView> terms;
  if (settled_.view) terms.push_back(rows_of(settled_, first));
  for (const auto& [block, contribution] : pending_)
    if (!std::binary_search(omits.begin(), omits.end(), block)) terms.push_back(rows_of(contribution, first));
  FARSKIP_CHECK(!terms.empty(), "a block reads nothing");
  for (std::size_t i = 0; i < terms.size(); ++i) {
    copy(memory(), terms[i], memory(), adder_.at(i == 0 ? "sum" : "term"));
    if (i > 0) adder_.run();
  }
}

void ResidualStream::read(int block, std::int64_t first, const TensorView& to) {
  FARSKIP_CHECK(block == num_added_, "block {} is read after {} contributions", block, num_added_);
  sum_rows(layers_.blocks[static_cast<std::size_t>(block)].omits, first);
  copy(memory(), adder_.at("sum"), *place_.device, to);
}

void ResidualStream::read_all(std::int64_t first, const TensorView& to) {
  sum_rows({}, first);
  copy(memory(), adder_.at("sum"), *place_.device, to);
}

void ResidualStream::begin_contribution() {
  next_ = DeviceTensor(memory(), DType::f32, place_.shape);
}

void ResidualStream::contribute(std::int64_t first, const TensorView& rows) {
  copy(*place_.device, rows, memory(), rows_of(next_, first));
}

void ResidualStream::finish_contribution() {
  pending_.emplace(num_added_++, std::move(next_));
  settle();
}

void ResidualStream::settle() {
  while (!pending_.empty()) {
    const auto oldest = pending_.begin();
    if (last_omission_[static_cast<std::size_t>(oldest->first)] >= num_added_) return;
    if (settled_.view)
      add_settled(oldest->second);
    else
      settled_ = std::move(oldest->second);
    pending_.erase(oldest);
  }
}

void ResidualStream::add_settled(const DeviceTensor& term) {
  for (std::int64_t first = 0; first < place_.shape[0]; first += place_.rows) {
    copy(memory(), rows_of(settled_, first), memory(), adder_.at("sum"));
    copy(memory(), rows_of(term, first), memory(), adder_.at("term"));
    adder_.run();
    copy(memory(), adder_.at("sum"), memory(), rows_of(settled_, first));
  }
}

}  // namespace farskip
