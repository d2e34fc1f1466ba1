// SPDX-License-Identifier: Apache-2.0
// Transport between GPUs of one host by their copy engines: a rank copies into the memory of its peers, and
// tells them so there. No multiprocessor and no host takes part.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "comm/collective_errors.h"
#include "comm/cuda/check.h"
#include "comm/cuda/place.h"
#include "comm/cuda/side_copies.h"
#include "farskip/comm/device_communicator.h"

namespace farskip {
namespace {

/// Memory of one process as another one can open it.
struct SharedAddress {
  cudaIpcMemHandle_t allocation{};
  std::uint64_t offset = 0, bytes = 0;
  std::int32_t peer = 0;  // for whom it is
  std::int32_t reserved = 0;
};

template <class Function>
Function driver_function(const char* name, const std::string& group) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check_transport(cudaGetDriverEntryPointByVersion(name, &address, 12000, cudaEnableDefault, &found), group);
  if (found != cudaDriverEntryPointSuccess)
    throw CommunicationError(fmt::format("{}: the driver has no {}", group, name));
  return reinterpret_cast<Function>(address);
}

/// Lets memory be opened while this thread records a graph: nothing of that becomes part of it.
class OutsideOfRecording {
 public:
  OutsideOfRecording() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~OutsideOfRecording() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  OutsideOfRecording(const OutsideOfRecording&) = delete;
  OutsideOfRecording& operator=(const OutsideOfRecording&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

/// A peer's allocations that are open here.
class OpenedMemory {
 public:
  explicit OpenedMemory(std::string group) : group_(std::move(group)) {}
  ~OpenedMemory() { close(); }
  OpenedMemory(const OpenedMemory&) = delete;
  OpenedMemory& operator=(const OpenedMemory&) = delete;

  std::byte* address(const SharedAddress& shared) {
    const std::string key(reinterpret_cast<const char*>(&shared.allocation), sizeof(shared.allocation));
    auto [it, is_new] = opened_.try_emplace(key, nullptr);
    if (is_new) {
      const OutsideOfRecording outside;
      const cudaError_t status =
          cudaIpcOpenMemHandle(&it->second, shared.allocation, cudaIpcMemLazyEnablePeerAccess);
      if (status != cudaSuccess) opened_.erase(it);
      check_transport(status, group_);
    }
    return static_cast<std::byte*>(it->second) + shared.offset;
  }
  void close() noexcept {
    for (const auto& [key, address] : opened_) cudaIpcCloseMemHandle(address);
    opened_.clear();
  }

 private:
  std::string group_;
  std::map<std::string, void*> opened_;
};

// Two flags a peer stand in this rank's memory, set to 1 by the peer and to 0 by this rank once it has seen
// that: `ready`, the peer's buffers may be written; `arrived`, what the peer sends is here. Every pair of
// ranks sets both in every transfer. So a flag is 0 again before the peer can set it for the next transfer:
// it first waits for this rank's flag, which is set later in the order of this rank's stream.
enum Flag { ready, arrived, num_flags };

class CopyEngineCommunicator final : public DeviceCommunicator {
 public:
  CopyEngineCommunicator(const Communicator& group, int gpu)
      : group_(group),
        name_(group.name().substr(0, group.name().find(' ')) + " (copy engines)"),
        own_(gpu, name_),
        buffers_(name_),
        peer_flags_memory_(name_) {
    std::vector<SharedAddress> mine;
    together([&] {
      check(cudaSetDevice(gpu));
      address_range_ = driver_function<decltype(address_range_)>("cuMemGetAddressRange", name_);
      memory_operations_ = driver_function<decltype(memory_operations_)>("cuStreamBatchMemOp", name_);
      // An allocation of their own: what is shared with a peer is the whole of one.
      constexpr std::size_t kBytes = std::size_t{2} << 20;
      void* memory = nullptr;
      check(cudaMalloc(&memory, kBytes));
      flags_.reset(static_cast<std::uint32_t*>(memory));
      check(cudaMemset(memory, 0, kBytes));
      constexpr std::uint32_t one = 1;
      check(cudaMemcpy(one_in_memory(), &one, sizeof(one), cudaMemcpyHostToDevice));
      for (int p = 0; p < size(); ++p) mine.push_back(share(p, flags_.get(), sizeof(one)));
    });
    const auto theirs = exchange(mine);
    together([&] {
      for (int p = 0; p < size(); ++p)
        peer_flags_.push_back(
            p == rank() ? nullptr
                        : reinterpret_cast<std::uint32_t*>(peer_flags_memory_.address(theirs[p].front())));
    });
  }
  CopyEngineCommunicator(const CopyEngineCommunicator&) = delete;
  CopyEngineCommunicator& operator=(const CopyEngineCommunicator&) = delete;

  int rank() const override { return group_.rank(); }
  int size() const override { return group_.size(); }
  std::string name() const override { return name_; }

  void transfer(std::span<const PeerTransfer> transfers, CUstream_st* stream) override {
    const std::vector<std::byte*> targets = find_targets(transfers);
    own_.begin(transfers, rank(), stream);
    for (int step = 1; step < size(); ++step) set(ready, (rank() + step) % size(), stream);
    for (int step = 1; step < size(); ++step) {  // not all to the same peer at once
      const int peer = (rank() + step) % size();
      wait(ready, peer, stream);
      for (std::size_t i = 0; i < transfers.size(); ++i)
        if (transfers[i].peer == peer && transfers[i].send_bytes > 0)
          check(cudaMemcpyAsync(targets[i], transfers[i].send, transfers[i].send_bytes,
                                cudaMemcpyDeviceToDevice, stream));
      set(arrived, peer, stream);
    }
    for (int step = 1; step < size(); ++step) wait(arrived, (rank() - step + size()) % size(), stream);
    own_.end(stream);
  }

  void forget_addresses() override {
    check(cudaDeviceSynchronize());
    buffers_.close();
    group_.barrier();
    ++generation_;
  }
  std::uint64_t generation() const override { return generation_; }

 private:
  struct FreeOnDevice {
    void operator()(std::uint32_t* memory) const { cudaFree(memory); }
  };

  /// A step of setting up, such as opening a peer's memory, which a container may forbid: where it fails on
  /// one rank, all of them throw.
  template <class Step>
  void together(const Step& step) const {
    std::exception_ptr problem;
    try {
      step();
    } catch (const Error&) {
      cudaGetLastError();
      problem = std::current_exception();
    }
    throw_together(group_, problem);
  }

  void check(cudaError_t status) const { check_transport(status, name_); }
  void check(CUresult status) const {
    if (status != CUDA_SUCCESS)
      throw CommunicationError(fmt::format("{}: error {} of the driver", name_, static_cast<int>(status)));
  }

  std::uint32_t* one_in_memory() const { return flags_.get() + num_flags * size(); }  // behind the flags

  void set(Flag flag, int peer, CUstream_st* stream) const {
    check(cudaMemcpyAsync(peer_flags_[static_cast<std::size_t>(peer)] + num_flags * rank() + flag,
                          one_in_memory(), sizeof(std::uint32_t), cudaMemcpyDeviceToDevice, stream));
  }
  void wait(Flag flag, int peer, CUstream_st* stream) const {
    const auto address = reinterpret_cast<CUdeviceptr>(flags_.get() + num_flags * peer + flag);
    std::array<CUstreamBatchMemOpParams, 2> operations{};
    operations[0].waitValue = {.operation = CU_STREAM_MEM_OP_WAIT_VALUE_32,
                               .address = address,
                               .value = 1,
                               .flags = CU_STREAM_WAIT_VALUE_EQ,
                               .alias = 0};
    operations[1].writeValue = {.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32,
                                .address = address,
                                .value = 0,
                                .flags = CU_STREAM_WRITE_VALUE_DEFAULT,
                                .alias = 0};
    check(memory_operations_(stream, operations.size(), operations.data(), 0));
  }

  SharedAddress share(int peer, const void* address, std::size_t bytes) const {
    CUdeviceptr begin = 0;
    check(address_range_(&begin, nullptr, reinterpret_cast<CUdeviceptr>(address)));
    SharedAddress shared{
        .offset = reinterpret_cast<CUdeviceptr>(address) - begin, .bytes = bytes, .peer = peer};
    check(cudaIpcGetMemHandle(&shared.allocation, reinterpret_cast<void*>(begin)));
    return shared;
  }

  /// What each rank shares with this one, in the order in which it said so.
  std::vector<std::vector<SharedAddress>> exchange(const std::vector<SharedAddress>& mine) const {
    const std::string_view text(reinterpret_cast<const char*>(mine.data()),
                                mine.size() * sizeof(SharedAddress));
    std::vector<std::vector<SharedAddress>> theirs;
    for (const std::string& message : all_gather_text(group_, text)) {
      std::vector<SharedAddress>& from = theirs.emplace_back();
      for (std::size_t at = 0; at + sizeof(SharedAddress) <= message.size(); at += sizeof(SharedAddress)) {
        SharedAddress shared;
        std::memcpy(&shared, message.data() + at, sizeof(shared));
        if (shared.peer == rank()) from.push_back(shared);
      }
    }
    return theirs;
  }

  /// Where, in its peer's memory, each of the transfers goes. Asked for each time: whether a buffer of a peer
  /// has moved is not known here, and a recording asks once.
  std::vector<std::byte*> find_targets(std::span<const PeerTransfer> transfers) {
    const OutsideOfRecording outside;
    std::vector<SharedAddress> mine;
    for (const PeerTransfer& t : transfers)
      if (t.peer != rank() && t.receive_bytes > 0) mine.push_back(share(t.peer, t.receive, t.receive_bytes));
    const auto theirs = exchange(mine);
    std::vector<std::size_t> next(theirs.size(), 0);
    std::vector<std::byte*> targets;
    for (const PeerTransfer& t : transfers) {
      std::byte*& target = targets.emplace_back(nullptr);
      if (t.peer == rank() || t.send_bytes == 0) continue;
      const auto& offered = theirs[static_cast<std::size_t>(t.peer)];
      std::size_t& i = next[static_cast<std::size_t>(t.peer)];
      if (i == offered.size() || offered[i].bytes != t.send_bytes)
        throw CommunicationError(fmt::format(
            "{}: rank {} sends {} bytes to rank {}, which awaits {}", name_, rank(), t.send_bytes, t.peer,
            i == offered.size() ? std::string("nothing") : std::to_string(offered[i].bytes)));
      target = buffers_.address(offered[i++]);
    }
    return targets;
  }

  Communicator group_;
  std::string name_;
  SideCopies own_;
  CUresult(CUDAAPI* address_range_)(CUdeviceptr*, std::size_t*, CUdeviceptr) = nullptr;
  CUresult(CUDAAPI* memory_operations_)(CUstream, unsigned, CUstreamBatchMemOpParams*, unsigned) = nullptr;
  std::unique_ptr<std::uint32_t, FreeOnDevice> flags_;
  OpenedMemory buffers_, peer_flags_memory_;
  std::vector<std::uint32_t*> peer_flags_;
  std::uint64_t generation_ = 0;
};

/// Why this rank cannot copy to GPU `bus` (its address); empty where it can.
std::string why_unreachable(int gpu, const std::string& bus) {
  int peer = 0, can = 0;
  if (cudaDeviceGetByPCIBusId(&peer, bus.c_str()) != cudaSuccess) {
    cudaGetLastError();
    return fmt::format("GPU {} is not visible to every rank (CUDA_VISIBLE_DEVICES)", bus);
  }
  if (peer == gpu) return {};
  if (cudaDeviceCanAccessPeer(&can, gpu, peer) != cudaSuccess || can == 0)
    return fmt::format("a GPU cannot reach the memory of GPU {}", bus);
  return {};
}

}  // namespace

std::string why_no_copy_engines(const Communicator& group, int gpu, bool may_share_gpus) {
  const GpuPlace mine = place_of(gpu, group.name());
  const std::vector<GpuPlace> places = places_of(group, mine);
  std::string why;
  for (std::size_t p = 0; p < places.size() && why.empty(); ++p) {
    if (static_cast<int>(p) == group.rank()) continue;
    if (places[p].host != mine.host)
      why = "its ranks are on several hosts";
    else if (places[p].process == mine.process)
      why = "its ranks share a process";
    else if (places[p].same_gpu(mine) && !may_share_gpus)
      why = "its ranks share a GPU";
    else
      why = why_unreachable(gpu, places[p].bus);
  }
  for (const std::string& reason : all_gather_text(group, why))
    if (!reason.empty()) return reason;
  return {};
}

std::shared_ptr<DeviceCommunicator> make_copy_engine_communicator(const Communicator& group, int gpu) {
  return std::make_shared<CopyEngineCommunicator>(group, gpu);
}

}  // namespace farskip
