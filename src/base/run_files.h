// SPDX-License-Identifier: Apache-2.0
#pragma once
// What programs that read the folder of a run share with those that write it.

#include <cstdint>

namespace farskip {

/// Bytes of metrics.jsonl that are read: a long run of many experts writes gigabytes.
inline constexpr std::uint64_t kMostMetricsBytes = std::uint64_t{1} << 40;

}  // namespace farskip
