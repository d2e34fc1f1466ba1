// SPDX-License-Identifier: Apache-2.0
#pragma once
// cuBLASLt and NVRTC are loaded by whoever is about to use a GPU, not at each start of a program: the loader
// writes 555,000 addresses into them, which takes 0.07 s, GPU or not.

namespace farskip::cuda {

/// Before the first call of one of their functions. Throws UsageError where one of them is not there.
void load_libraries();

}  // namespace farskip::cuda
