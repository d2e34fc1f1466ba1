// SPDX-License-Identifier: Apache-2.0
#pragma once
// Transport between the memories of GPUs, in the order of a stream. A group moves bytes between peers and
// nothing else: sums, slabs of rows and parts of tensors are made of that by kernels (src/backend/cuda/).

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "farskip/comm/communicator.h"

struct CUstream_st;

namespace farskip {

/// What this rank sends to one peer, and what it receives from it. Device memory; either may be nothing.
struct PeerTransfer {
  int peer = 0;
  const void* send = nullptr;
  std::size_t send_bytes = 0;
  void* receive = nullptr;
  std::size_t receive_bytes = 0;
  /// Where an emulated peer, which holds what this rank holds, finds what it sends: receive_bytes from here.
  /// Absent: `send`.
  const void* echo = nullptr;
};

/// One group of ranks, one GPU each.
class DeviceCommunicator {
 public:
  virtual ~DeviceCommunicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// "expert (nccl)": the group and its transport, as messages show it.
  virtual std::string name() const = 0;
  /// Launches all of them on the stream, as one, and returns at once; may be recorded into a CUDA graph. All
  /// ranks of the group call with sizes that agree. CommunicationError where the transport has failed.
  virtual void transfer(std::span<const PeerTransfer> transfers, CUstream_st* stream) = 0;
  /// Buffers of any rank may be freed or moved from here on: transfers that were recorded before must not be
  /// replayed any more. Collective, blocking.
  virtual void forget_addresses() {}
  /// How often addresses were forgotten.
  virtual std::uint64_t generation() const { return 0; }
};

/// NCCL between GPU `gpu` of this process and those of its peers in `group`, over which it is set up.
/// Collective, blocking. UsageError where two ranks of a host have the same GPU.
std::shared_ptr<DeviceCommunicator> make_nccl_communicator(const Communicator& group, int gpu);

/// Copy engines between GPU `gpu` of this process and those of its peers, which may be the same GPU.
/// Collective, blocking. Error on every rank where one of them cannot open the memory of another.
std::shared_ptr<DeviceCommunicator> make_copy_engine_communicator(const Communicator& group, int gpu);
/// Why there is no such communicator for these ranks: they must be processes of one host, with GPUs that
/// reach each other's memory, and one each unless `may_share_gpus`. Empty where there is. Collective; the
/// same answer on every rank.
std::string why_no_copy_engines(const Communicator& group, int gpu, bool may_share_gpus);

/// One rank of many without the others, for measuring overlap on one GPU: what goes to a peer crosses to the
/// host's memory and comes back, by the copy engines, at the rate of the bus in both directions at once. Each
/// peer is a mirror of this rank, as in make_mirror_communicator.
///
/// `payload`: how often each byte crosses. 0.5: every other part of the message is copied within the GPU
/// instead; 2: all of it crosses twice. So a bus of 45 GB/s stands in for a link of 45 / payload GB/s.
std::shared_ptr<DeviceCommunicator> make_emulated_communicator(int size, int rank, const std::string& name,
                                                               int gpu, double payload = 1.0);

}  // namespace farskip
