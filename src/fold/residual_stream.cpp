// SPDX-License-Identifier: Apache-2.0
#include "farskip/fold/residual_stream.h"

#include <algorithm>
#include <cstring>

#include "farskip/backend/cpu/parallel.h"

namespace farskip {
namespace {

void add_to(const TensorView& sum, const TensorView& term) {
  float* to = sum.as<float>();
  const float* from = term.as<float>();
  constexpr std::int64_t grain = 1 << 16;
  cpu::parallel_ranges(sum.num_elements(), grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) to[i] += from[i];
  });
}

}  // namespace

ResidualStream::ResidualStream(LayerGraph layers)
    : layers_(std::move(layers)), last_omission_(layers_.blocks.size(), -1) {
  for (std::size_t i = 0; i < layers_.blocks.size(); ++i)
    for (const int omitted : layers_.blocks[i].omits)
      last_omission_[static_cast<std::size_t>(omitted)] = static_cast<int>(i);
}

void ResidualStream::sum_rows(const std::vector<int>& omits, std::int64_t first, const TensorView& to) const {
  const auto rows_of = [&](const HostTensor& tensor) {
    return rows_view(tensor.view(), first, row_count(to.shape));
  };
  bool is_empty = !settled_.view();
  if (!is_empty) std::memcpy(to.data, rows_of(settled_).data, to.num_bytes());
  for (const auto& [block, contribution] : pending_) {
    if (std::binary_search(omits.begin(), omits.end(), block)) continue;
    if (is_empty)
      std::memcpy(to.data, rows_of(contribution).data, to.num_bytes());
    else
      add_to(to, rows_of(contribution));
    is_empty = false;
  }
  FARSKIP_CHECK(!is_empty, "a block reads nothing");
}

void ResidualStream::read(int block, std::int64_t first, const TensorView& to) const {
  FARSKIP_CHECK(block == num_added_, "block {} is read after {} contributions", block, num_added_);
  sum_rows(layers_.blocks[static_cast<std::size_t>(block)].omits, first, to);
}

void ResidualStream::read_all(std::int64_t first, const TensorView& to) const {
  sum_rows({}, first, to);
}

void ResidualStream::add(HostTensor contribution) {
  pending_.emplace(num_added_++, std::move(contribution));
  settle();
}

void ResidualStream::settle() {
  while (!pending_.empty()) {
    const auto oldest = pending_.begin();
    if (last_omission_[static_cast<std::size_t>(oldest->first)] >= num_added_) return;
    if (settled_.view())
      add_to(settled_.view(), oldest->second.view());
    else
      settled_ = std::move(oldest->second);
    pending_.erase(oldest);
  }
}

}  // namespace farskip
