// SPDX-License-Identifier: Apache-2.0
// Transport by NCCL: one group call of sends and receives.
#include <nccl.h>

#include "comm/cuda/place.h"
#include "comm/cuda/side_copies.h"
#include "farskip/comm/device_communicator.h"

namespace farskip {
namespace {

class NcclCommunicator final : public DeviceCommunicator {
 public:
  NcclCommunicator(const Communicator& group, int gpu)
      : rank_(group.rank()),
        size_(group.size()),
        name_(group.name().substr(0, group.name().find(' ')) + " (nccl)"),
        own_(gpu, name_) {
    ncclUniqueId id{};
    if (rank_ == 0) check(ncclGetUniqueId(&id));
    group.broadcast(std::span(reinterpret_cast<std::byte*>(&id), sizeof(id)), 0);
    check(ncclCommInitRank(&communicator_, size_, id, rank_));
  }
  // Abort and not destroy: a peer that has gone must not keep this rank from ending.
  ~NcclCommunicator() override {
    if (communicator_ != nullptr) ncclCommAbort(communicator_);
  }
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string name() const override { return name_; }

  void transfer(std::span<const PeerTransfer> transfers, CUstream_st* stream) override {
    ncclResult_t failed = ncclSuccess;
    check(ncclCommGetAsyncError(communicator_, &failed));
    check(failed);
    own_.begin(transfers, rank_, stream);
    check(ncclGroupStart());
    for (const PeerTransfer& t : transfers) {
      if (t.peer == rank_) continue;
      if (t.send_bytes > 0) check(ncclSend(t.send, t.send_bytes, ncclInt8, t.peer, communicator_, stream));
      if (t.receive_bytes > 0)
        check(ncclRecv(t.receive, t.receive_bytes, ncclInt8, t.peer, communicator_, stream));
    }
    check(ncclGroupEnd());
    own_.end(stream);
  }

 private:
  void check(ncclResult_t result) const {
    if (result == ncclSuccess) return;
    const char* detail = ncclGetLastError(communicator_);
    throw CommunicationError(fmt::format("{}: {}{}{}", name_, ncclGetErrorString(result),
                                         detail != nullptr && *detail != '\0' ? ": " : "",
                                         detail != nullptr ? detail : ""));
  }

  int rank_, size_;
  std::string name_;
  SideCopies own_;
  ncclComm_t communicator_ = nullptr;
};

}  // namespace

std::shared_ptr<DeviceCommunicator> make_nccl_communicator(const Communicator& group, int gpu) {
  const std::vector<GpuPlace> places = places_of(group, place_of(gpu, group.name()));
  for (std::size_t a = 0; a < places.size(); ++a)
    for (std::size_t b = 0; b < a; ++b)
      if (places[a].same_gpu(places[b]))
        throw UsageError(fmt::format(
            "ranks {} and {} of {} would share GPU {} of {}; start one rank per GPU, or use device cpu", b, a,
            group.name(), places[a].bus, places[a].host));
  return std::make_shared<NcclCommunicator>(group, gpu);
}

}  // namespace farskip
