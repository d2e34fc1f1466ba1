// SPDX-License-Identifier: Apache-2.0
#pragma once
// The machine: quick measurements for `doctor`, and its cores among ranks.

namespace farskip::cpu {

/// The instruction set this program was compiled for: "AVX-512", "AVX2", …
const char* instruction_set();

struct Measured {
  int threads = 1;                // OpenMP threads in use
  double matmul_gflops = 0;       // fp32, 1024 cubed, best of 3
  double copy_gb_per_second = 0;  // bytes read + written, 128 MiB buffers, best of 3
};
Measured measure_machine();

/// UsageError where OMP_NUM_THREADS asks for more threads than this program works with; IoError where the
/// system does not allow as many as will compute (the OpenMP library would end the process at its first
/// loop). Returns their number.
int check_threads();

/// Where `num_ranks` > 1 ranks share `cores` cores, the calling thread's parallel loops use this rank's share
/// of them from here on: at least 1, and no more than the cores this process is bound to. OMP_NUM_THREADS, if
/// set, stays. Returns the number of threads.
int share_cores(int num_ranks, int cores);

}  // namespace farskip::cpu
