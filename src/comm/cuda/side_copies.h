// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a rank sends to itself, copied beside what goes to its peers.

#include <span>

#include "comm/cuda/check.h"
#include "farskip/comm/device_communicator.h"

namespace farskip {

class SideCopies {
 public:
  SideCopies(int gpu, std::string group) : group_(std::move(group)) {
    check_transport(cudaSetDevice(gpu), group_);
    check_transport(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), group_);
    for (cudaEvent_t* event : {&begin_, &end_})
      check_transport(cudaEventCreateWithFlags(event, cudaEventDisableTiming), group_);
  }
  ~SideCopies() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
    cudaStreamDestroy(stream_);
  }
  SideCopies(const SideCopies&) = delete;
  SideCopies& operator=(const SideCopies&) = delete;

  /// Those of `transfers` from `rank` to itself begin once `stream` has come here.
  void begin(std::span<const PeerTransfer> transfers, int rank, cudaStream_t stream) {
    any_ = false;
    for (const PeerTransfer& t : transfers) {
      if (t.peer != rank || t.receive_bytes == 0 || t.receive == t.send) continue;
      if (!any_) {
        check_transport(cudaEventRecord(begin_, stream), group_);
        check_transport(cudaStreamWaitEvent(stream_, begin_, 0), group_);
        any_ = true;
      }
      check_transport(cudaMemcpyAsync(t.receive, t.send, t.receive_bytes, cudaMemcpyDeviceToDevice, stream_),
                      group_);
    }
  }
  /// `stream` goes on when they have ended.
  void end(cudaStream_t stream) {
    if (!any_) return;
    check_transport(cudaEventRecord(end_, stream_), group_);
    check_transport(cudaStreamWaitEvent(stream, end_, 0), group_);
  }

 private:
  std::string group_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  bool any_ = false;
};

}  // namespace farskip
