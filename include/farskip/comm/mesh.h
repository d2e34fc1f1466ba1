#pragma once

#include "farskip/comm/communicator.h"

namespace farskip {

/// The ranks of a world as a grid of two axes, data and expert. Expert is the inner one: rank = data index *
/// expert size + expert index, so that the ranks that exchange routed rows are neighbours.
///
/// Experts are sharded over `expert` and replicated over `data`; all other parameters are replicated over
/// `world`.
class Mesh {
 public:
  /// Collective over `world`. Throws UsageError unless `expert_size` divides the world's size.
  Mesh(const Communicator& world, int expert_size);

  const Communicator& world() const { return world_; }
  const Communicator& expert() const { return expert_; }  // this rank's row: same data index
  const Communicator& data() const { return data_; }      // this rank's column: same expert index

 private:
  Communicator world_, expert_, data_;
};

}  // namespace farskip
