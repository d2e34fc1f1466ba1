#pragma once
// Quick measurements of the machine for `doctor`.

namespace farskip::cpu {

/// The instruction set this program was compiled for: "AVX-512", "AVX2", …
const char* instruction_set();

struct Measured {
  int threads = 1;                // OpenMP threads in use
  double matmul_gflops = 0;       // fp32, 1024 cubed, best of 3
  double copy_gb_per_second = 0;  // bytes read + written, 128 MiB buffers, best of 3
};
Measured measure_machine();

}  // namespace farskip::cpu
