#pragma once
// bf16 on the CPU, for tests: each kernel reads its low inputs exactly, computes in f32, and rounds its low
// outputs once, which is what the backends promise of bf16 kernels.

#include "farskip/backend/device.h"

namespace farskip {

/// The CPU's f32 kernels, and from each of them a bf16 one under the rules of farskip/ops/ops.h.
const KernelTable& rounded_kernel_table();

/// A CPU with these kernels that, unlike the CPU, keeps its memory to itself: all that the host wants there must
/// be copied, as on a GPU.
std::shared_ptr<Device> make_rounded_device();

}  // namespace farskip
