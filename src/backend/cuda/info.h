// SPDX-License-Identifier: Apache-2.0
#pragma once
// What this build and this machine offer for GPUs. Never fails: what is missing is said in `problem`.

#include <cstddef>
#include <string>
#include <vector>

namespace farskip::cuda {

struct GpuInfo {
  std::string name;
  std::string architecture;  // "9.0"
  std::size_t memory_bytes = 0;
  int num_multiprocessors = 0;
};

struct Info {
  bool built = false;                                // whether this build has a CUDA backend at all
  std::string toolkit, driver, cublas, cudnn, nccl;  // versions; empty: not there (nccl: as compiled against)
  std::string unrepeatable;  // kernels for `deterministic: false` that do not repeat their bits
  std::vector<GpuInfo> gpus;
  std::string problem;  // why no GPU can be used; empty where one can
};
Info info();

}  // namespace farskip::cuda
