// SPDX-License-Identifier: Apache-2.0
#pragma once
// Where tensors that share one block of memory may begin.

#include <cstddef>

namespace farskip {

/// Alignment of every buffer in an arena, bytes.
inline constexpr std::size_t kBufferAlignment = 256;
/// The first offset from `bytes` on at which the next buffer may begin.
constexpr std::size_t aligned(std::size_t bytes) {
  return (bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
}

}  // namespace farskip
