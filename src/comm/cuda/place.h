// SPDX-License-Identifier: Apache-2.0
#pragma once
// Where the ranks of a group have their GPUs.

#include <unistd.h>

#include <array>
#include <vector>

#include "comm/collective_errors.h"
#include "comm/cuda/check.h"

namespace farskip {

struct GpuPlace {
  std::string host, bus;  // the GPU's address, as all processes of a host name it
  std::string process;
  bool same_gpu(const GpuPlace& other) const { return host == other.host && bus == other.bus; }
};

inline GpuPlace place_of(int gpu, const std::string& group) {
  std::array<char, 64> bus{}, host{};
  check_transport(cudaDeviceGetPCIBusId(bus.data(), bus.size(), gpu), group);
  if (::gethostname(host.data(), host.size() - 1) != 0) host[0] = '\0';
  return {host.data(), bus.data(), std::to_string(::getpid())};
}

/// Of all ranks, in their order. Collective.
inline std::vector<GpuPlace> places_of(const Communicator& group, const GpuPlace& mine) {
  std::vector<GpuPlace> places;
  for (const std::string& line : all_gather_text(group, mine.host + "\n" + mine.bus + "\n" + mine.process)) {
    const std::size_t first = line.find('\n'), second = line.find('\n', first + 1);
    places.push_back(
        {line.substr(0, first), line.substr(first + 1, second - first - 1), line.substr(second + 1)});
  }
  return places;
}

}  // namespace farskip
