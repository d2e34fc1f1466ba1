#pragma once
// A choice by time that no bit depends on.

#include <cstddef>
#include <functional>
#include <span>

#include "farskip/backend/cuda/context.h"

namespace farskip::cuda {

/// Launches on the context's stream what fills `output`, device memory aligned to 256 bytes.
using Alternative = std::function<void(void* output)>;

/// Which of several ways to the same `bytes` bytes is the quickest, of those that give the bits of the first;
/// clearly quicker, or it is the first. All are run a few times, into memory taken for it, and waited for.
/// The first without a look at the others where that memory is not to be had, while the stream is being
/// recorded, or where most of its output is zeros, so that equal bits say little.
std::size_t quickest_of_equal(const LaunchContext& gpu, std::size_t bytes,
                              std::span<const Alternative> alternatives);

}  // namespace farskip::cuda
