// SPDX-License-Identifier: Apache-2.0
#pragma once
// The residual stream of a model over many tokens, in host memory, while its sub-blocks are computed one
// after the other: each for all tokens before the next.

#include <map>

#include "farskip/model/layer_graph.h"
#include "farskip/tensor/tensor.h"

namespace farskip {

/// Contributions that every later block reads are summed up at once, so that a few tensors [T, H] are held
/// whatever the depth: one in the standard wiring of a dense model, at most one more for each block that some
/// later block omits.
class ResidualStream {
 public:
  explicit ResidualStream(LayerGraph layers);

  /// What block `block` reads, which is the next one: f32 rows of tokens from `first` on, as many as `to`
  /// has.
  void read(int block, std::int64_t first, const TensorView& to) const;
  /// The sum of all contributions so far.
  void read_all(std::int64_t first, const TensorView& to) const;
  /// The contribution of the next block, f32 [T, H].
  void add(HostTensor contribution);

 private:
  void sum_rows(const std::vector<int>& omits, std::int64_t first, const TensorView& to) const;
  void settle();

  LayerGraph layers_;
  std::vector<int> last_omission_;  // by contribution: the last block that does not read it; -1: all read it
  HostTensor settled_;              // the sum of those that are not pending; without data before the first
  std::map<int, HostTensor> pending_;  // contributions that a later block may omit, and those behind one
  int num_added_ = 0;
};

}  // namespace farskip
