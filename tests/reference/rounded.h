// SPDX-License-Identifier: Apache-2.0
#pragma once
// bf16, and devices that are not the host, on the CPU, for tests. Each kernel reads its low inputs exactly,
// computes in f32, and rounds its low outputs once, which is what the backends promise of bf16 kernels.

#include "farskip/backend/device.h"

namespace farskip {

/// A CPU with f32 and bf16 kernels that, unlike the CPU, keeps its memory to itself: all that the host wants
/// there must be copied, as on a GPU. Fresh memory is NaN.
std::shared_ptr<Device> make_rounded_device();

/// The same kernels behind all that a GPU demands: launches on a stream, numbers of rows read by the kernels,
/// and recordings, which must not hold copies.
std::shared_ptr<Device> make_pretended_gpu();

}  // namespace farskip
