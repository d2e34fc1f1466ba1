// SPDX-License-Identifier: Apache-2.0
#pragma once
// The residual stream of a model over many tokens, while its sub-blocks are computed one after the other:
// each for all tokens before the next.

#include <map>

#include "farskip/model/layer_graph.h"
#include "fold/graph_runner.h"

namespace farskip {

/// StreamPlace says where streams lie, and where they are read.
struct StreamPlace {
  Context memory;                  // its device has the tensors and adds them up
  std::shared_ptr<Device> device;  // of what is read and of contributions
  Shape shape;                     // [T, H]
  std::int64_t rows = 0;           // that are read or added at a time; divides T
};

/// Contributions that every later block reads are summed up at once, so that a few tensors [T, H] are held
/// whatever the depth: one in the standard wiring of a dense model, at most one more for each block that some
/// later block omits.
class ResidualStream {
 public:
  ResidualStream(LayerGraph layers, const StreamPlace& place);

  /// What block `block` reads, which is the next one: f32 rows of tokens from `first` on.
  void read(int block, std::int64_t first, const TensorView& to);
  /// The sum of all contributions so far.
  void read_all(std::int64_t first, const TensorView& to);
  /// Begins the contribution of the next block; its rows are to follow, and finish() behind the last.
  void begin_contribution();
  void contribute(std::int64_t first, const TensorView& rows);
  void finish_contribution();

 private:
  /// Leaves it in the adder's "sum".
  void sum_rows(const std::vector<int>& omits, std::int64_t first);
  void settle();
  void add_settled(const DeviceTensor& term);
  TensorView rows_of(const DeviceTensor& tensor, std::int64_t first) const;
  Device& memory() const { return *place_.memory.device(); }

  LayerGraph layers_;
  StreamPlace place_;
  GraphRunner adder_;               // "sum" += "term", of some rows
  std::vector<int> last_omission_;  // by contribution: the last block that does not read it; -1: all read it
  DeviceTensor settled_;            // the sum of those that are not pending; without data before the first
  std::map<int, DeviceTensor> pending_;  // contributions that a later block may omit, and those behind one
  DeviceTensor next_;
  int num_added_ = 0;
};

}  // namespace farskip
