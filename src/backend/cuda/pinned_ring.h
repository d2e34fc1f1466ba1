// SPDX-License-Identifier: Apache-2.0
#pragma once
// Pinned host memory through which small inputs travel to the GPU, so that the host can go on at once.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <deque>
#include <vector>

#include "backend/cuda/handle.h"

namespace farskip::cuda {

using Event = Handle<cudaEvent_t, cudaEventDestroy>;
using PinnedMemory = Handle<void*, cudaFreeHost>;

class PinnedRing {
 public:
  static constexpr std::size_t kBytes = 16 << 20, kMostPerCopy = 1 << 20;

  /// Copies at most kMostPerCopy bytes to the device in the order of `stream`. Waits only where the ring is
  /// full of copies that have not been done yet.
  void copy_in(void* device, const void* host, std::size_t bytes, cudaStream_t stream);

 private:
  struct Piece {
    std::size_t begin, end;
    Event done;
  };
  void release_oldest();

  PinnedMemory memory_;
  std::size_t next_ = 0;
  std::deque<Piece> in_flight_;  // oldest first
  std::vector<Event> spare_;
};

}  // namespace farskip::cuda
