// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/pinned_ring.h"

#include <algorithm>
#include <cstring>

#include "backend/cuda/check.h"

namespace farskip::cuda {

void PinnedRing::release_oldest() {
  spare_.push_back(std::move(in_flight_.front().done));
  in_flight_.pop_front();
}

void PinnedRing::copy_in(void* device, const void* host, std::size_t bytes, cudaStream_t stream) {
  FARSKIP_CHECK(bytes <= kMostPerCopy, "{} bytes at once", bytes);
  if (memory_.get() == nullptr) FARSKIP_CUDA_CHECK(cudaMallocHost(memory_.address(), kBytes));
  constexpr std::size_t alignment = 256;
  const std::size_t begin = next_ + bytes > kBytes ? 0 : next_;
  const std::size_t end = begin + (bytes + alignment - 1) / alignment * alignment;
  const auto in_the_way = [&](const Piece& piece) { return piece.begin < end && begin < piece.end; };
  // Copies are done in the order in which they were asked for, so the oldest are waited for first.
  while (std::any_of(in_flight_.begin(), in_flight_.end(), in_the_way)) {
    FARSKIP_CUDA_CHECK(cudaEventSynchronize(in_flight_.front().done.get()));
    release_oldest();
  }
  while (!in_flight_.empty() && cudaEventQuery(in_flight_.front().done.get()) == cudaSuccess)
    release_oldest();
  cudaGetLastError();  // "not ready" is no error here, and must not come up after the next launch

  Event done;
  if (!spare_.empty()) {
    done = std::move(spare_.back());
    spare_.pop_back();
  } else {
    FARSKIP_CUDA_CHECK(cudaEventCreateWithFlags(done.address(), cudaEventDisableTiming));
  }
  auto* const place = static_cast<std::byte*>(memory_.get()) + begin;
  std::memcpy(place, host, bytes);
  FARSKIP_CUDA_CHECK(cudaMemcpyAsync(device, place, bytes, cudaMemcpyHostToDevice, stream));
  FARSKIP_CUDA_CHECK(cudaEventRecord(done.get(), stream));
  in_flight_.push_back({begin, end, std::move(done)});
  next_ = end;
}

}  // namespace farskip::cuda
