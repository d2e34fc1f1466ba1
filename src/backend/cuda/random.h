// SPDX-License-Identifier: Apache-2.0
#pragma once
// Random numbers made in device memory.

#include "backend/cuda/context.h"
#include "farskip/base/random.h"
#include "farskip/tensor/tensor.h"

namespace farskip::cuda {

/// Device::fill_normal, on the context's stream; never waits.
void fill_normal(const LaunchContext& context, const TensorView& to, const NormalNumbers& numbers);

}  // namespace farskip::cuda
