// SPDX-License-Identifier: Apache-2.0
// A link of one GPU to itself, by way of the host's memory.
#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "comm/cuda/check.h"
#include "comm/cuda/side_copies.h"
#include "farskip/comm/device_communicator.h"

namespace farskip {
namespace {

constexpr std::size_t kChunkBytes = std::size_t{4} << 20;  // what has come out may go in while the rest comes
constexpr std::size_t kNumChunks = 16;                     // of pinned memory

struct Run {
  const std::byte* from;
  std::byte* to;
  std::size_t bytes;
};

/// What peers send, neighbours in memory as one.
std::vector<Run> runs_of(std::span<const PeerTransfer> transfers, int rank) {
  std::vector<Run> runs;
  for (const PeerTransfer& t : transfers) {
    if (t.peer == rank || t.receive_bytes == 0) continue;
    const Run run{static_cast<const std::byte*>(t.echo != nullptr ? t.echo : t.send),
                  static_cast<std::byte*>(t.receive), t.receive_bytes};
    if (!runs.empty() && runs.back().from + runs.back().bytes == run.from &&
        runs.back().to + runs.back().bytes == run.to)
      runs.back().bytes += run.bytes;
    else
      runs.push_back(run);
  }
  return runs;
}

std::vector<Run> cut(const std::vector<Run>& runs) {
  std::vector<Run> chunks;
  for (const Run& run : runs)
    for (std::size_t at = 0; at < run.bytes; at += kChunkBytes)
      chunks.push_back({run.from + at, run.to + at, std::min(kChunkBytes, run.bytes - at)});
  return chunks;
}

class EmulatedCommunicator final : public DeviceCommunicator {
 public:
  EmulatedCommunicator(int size, int rank, std::string name, int gpu, double payload)
      : size_(size), rank_(rank), name_(std::move(name)), payload_(payload), own_(gpu, name_) {
    check(cudaSetDevice(gpu));
    check(cudaMallocHost(reinterpret_cast<void**>(&pinned_), kNumChunks * kChunkBytes));
    for (cudaStream_t* stream : {&out_, &in_})
      check(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking));
    for (auto* events : {&left_, &arrived_})
      for (cudaEvent_t& event : *events) check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    for (cudaEvent_t* event : {&begun_, &ended_})
      check(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
  }
  ~EmulatedCommunicator() override {
    for (auto* events : {&left_, &arrived_})
      for (const cudaEvent_t event : *events) cudaEventDestroy(event);
    cudaEventDestroy(begun_);
    cudaEventDestroy(ended_);
    cudaStreamDestroy(out_);
    cudaStreamDestroy(in_);
    cudaFreeHost(pinned_);
  }
  EmulatedCommunicator(const EmulatedCommunicator&) = delete;
  EmulatedCommunicator& operator=(const EmulatedCommunicator&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string name() const override { return name_ + " (emulated)"; }

  void transfer(std::span<const PeerTransfer> transfers, CUstream_st* stream) override {
    own_.begin(transfers, rank_, stream);
    cross(transfers, stream);
    own_.end(stream);
  }

 private:
  void cross(std::span<const PeerTransfer> transfers, cudaStream_t stream) {
    const std::vector<Run> chunks = cut(runs_of(transfers, rank_));
    if (chunks.empty()) return;
    check(cudaEventRecord(begun_, stream));
    check(cudaStreamWaitEvent(out_, begun_, 0));
    check(cudaStreamWaitEvent(in_, begun_, 0));
    cross_link(chunks);
    check(cudaEventRecord(ended_, in_));  // what went out last has come in
    check(cudaStreamWaitEvent(stream, ended_, 0));
  }

  void cross_link(const std::vector<Run>& chunks) {
    std::size_t total = 0;
    for (const Run& chunk : chunks) total += chunk.bytes;
    auto left = static_cast<std::size_t>(payload_ * static_cast<double>(total));
    std::size_t place = 0;
    for (bool first = true; first || left > 0; first = false)
      for (const Run& chunk : chunks) {
        const std::size_t crossing = std::min(left, chunk.bytes);
        if (crossing > 0) cross(chunk, crossing, place++);
        left -= crossing;
        if (first && crossing < chunk.bytes)
          check(cudaMemcpyAsync(chunk.to + crossing, chunk.from + crossing, chunk.bytes - crossing,
                                cudaMemcpyDeviceToDevice, in_));
      }
  }

  void cross(const Run& chunk, std::size_t bytes, std::size_t number) {
    const std::size_t slot = number % kNumChunks;
    std::byte* const host = pinned_ + slot * kChunkBytes;
    if (number >= kNumChunks) check(cudaStreamWaitEvent(out_, arrived_[slot], 0));
    check(cudaMemcpyAsync(host, chunk.from, bytes, cudaMemcpyDeviceToHost, out_));
    check(cudaEventRecord(left_[slot], out_));
    check(cudaStreamWaitEvent(in_, left_[slot], 0));
    check(cudaMemcpyAsync(chunk.to, host, bytes, cudaMemcpyHostToDevice, in_));
    check(cudaEventRecord(arrived_[slot], in_));
  }

  void check(cudaError_t status) const { check_transport(status, name()); }

  int size_, rank_;
  std::string name_;
  double payload_;
  SideCopies own_;
  std::byte* pinned_ = nullptr;
  cudaStream_t out_ = nullptr, in_ = nullptr;
  std::array<cudaEvent_t, kNumChunks> left_{}, arrived_{};
  cudaEvent_t begun_ = nullptr, ended_ = nullptr;
};

}  // namespace

std::shared_ptr<DeviceCommunicator> make_emulated_communicator(int size, int rank, const std::string& name,
                                                               int gpu, double payload) {
  FARSKIP_CHECK(size >= 1 && rank >= 0 && rank < size && payload >= 0, "rank {} of {}, payload {}", rank,
                size, payload);
  return std::make_shared<EmulatedCommunicator>(size, rank, name, gpu, payload);
}

}  // namespace farskip
