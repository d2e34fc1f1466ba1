// SPDX-License-Identifier: Apache-2.0
#pragma once
// GPUs by name, for planning where there is none: what their data sheets promise, and the part of it that
// training attains.

#include <span>
#include <string_view>

#include "farskip/schedule/costs.h"

namespace farskip {

/// Peaks of one GPU, as published.
struct GpuCard {
  std::string_view name;                                // of --gpu
  std::string_view title;                               // the product
  double bf16_flops_per_second, fp32_flops_per_second;  // dense, tensor cores and ordinary ones
  double memory_bytes_per_second, memory_bytes;
  double link_bytes_per_second;  // NVLink, each way
  int linked;                    // GPUs that NVLink joins in a host
};
std::span<const GpuCard> gpu_cards();
/// UsageError that lists the names, for another one.
const GpuCard& gpu_card(std::string_view name);

/// What kernels of a graph in this type, and messages over NVLink, attain.
DeviceRates attained_rates(const GpuCard& card, DType dtype);
LinkModel attained_link(const GpuCard& card, double latency_seconds);

}  // namespace farskip
