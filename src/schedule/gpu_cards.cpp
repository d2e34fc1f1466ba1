// SPDX-License-Identifier: Apache-2.0
#include "schedule/gpu_cards.h"

#include <algorithm>
#include <array>

namespace farskip {
namespace {

constexpr double kTera = 1e12, kGiga = 1e9;

// H100: NVIDIA H100 Tensor Core GPU Architecture whitepaper and data sheet, column SXM5. H200: data sheet,
// column SXM. B200: NVIDIA Blackwell Architecture technical brief, column HGX B200 (1,000 W), memory as HGX
// B200 has it. Matrix rates are without sparsity (the sheets print twice these); NVLink is half of the
// sheets' figure, which counts both ways.
constexpr std::array<GpuCard, 3> kCards{{
    {"h100", "NVIDIA H100 SXM", 989.4 * kTera, 66.9 * kTera, 3.35 * kTera, 80 * kGiga, 450 * kGiga, 8},
    {"h200", "NVIDIA H200 SXM", 989.4 * kTera, 66.9 * kTera, 4.8 * kTera, 141 * kGiga, 450 * kGiga, 8},
    {"b200", "NVIDIA B200 (HGX)", 2250 * kTera, 80 * kTera, 8 * kTera, 180 * kGiga, 900 * kGiga, 8},
}};

// Parts of the peaks. On an H100 (docs/results.md) long runs of cuBLASLt's bf16 products reach 0.67 of 989
// TFLOP/s, attention and products of experts less; kernels that move rows reach 0.6 to 0.87 of the memory's
// rate. fp32 products come nearer to their peak, since they do not draw the card's full power.
constexpr double kMatrixBf16 = 0.6, kMatrixFp32 = 0.7, kMemory = 0.75, kLink = 0.8;

}  // namespace

std::span<const GpuCard> gpu_cards() {
  return kCards;
}

const GpuCard& gpu_card(std::string_view name) {
  const auto it =
      std::find_if(kCards.begin(), kCards.end(), [&](const GpuCard& c) { return c.name == name; });
  if (it != kCards.end()) return *it;
  std::string names;
  for (const GpuCard& card : kCards) names += fmt::format("{}{}", names.empty() ? "" : ", ", card.name);
  throw UsageError(
      fmt::format("--gpu '{}': no GPU of this name is known; allowed: {}. Give the rates of another one with "
                  "--device-rate",
                  name, names));
}

DeviceRates attained_rates(const GpuCard& card, DType dtype) {
  return {is_low(dtype) ? kMatrixBf16 * card.bf16_flops_per_second : kMatrixFp32 * card.fp32_flops_per_second,
          kMemory * card.memory_bytes_per_second};
}

LinkModel attained_link(const GpuCard& card, double latency_seconds) {
  return {latency_seconds, kLink * card.link_bytes_per_second};
}

}  // namespace farskip
