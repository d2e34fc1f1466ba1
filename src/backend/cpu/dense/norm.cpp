// SPDX-License-Identifier: Apache-2.0
// Root-mean-square norm over groups of D elements (a row, or a head of it).
#include <cmath>

#include "backend/cpu/dense/column_sums.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/reduce.h"
#include "farskip/backend/kernel.h"
#include "farskip/ops/ops.h"

namespace farskip {
namespace {

// x[T, N*D], w[D] → y[T, N*D], rstd[T, N]
void run_rms_norm(const KernelCall& call) {
  const float *x = call.in(0), *w = call.in(1);
  float *y = call.out(0), *rstd = call.out(1);
  const std::int64_t size = call.in_shape(1).num_elements(), num_groups = call.out_shape(1).num_elements();
  const double eps = call.get<ops::RmsNorm>().eps;
  const auto normalise = [&](std::int64_t group) {
    const float* in = x + group * size;
    float* out = y + group * size;
    const float sum = cpu::lane_sum<float>(size, [&](std::int64_t i) { return in[i] * in[i]; });
    const double mean = static_cast<double>(sum) / static_cast<double>(size);
    const auto scale = static_cast<float>(1.0 / std::sqrt(mean + eps));
    rstd[group] = scale;
#pragma omp simd
    for (std::int64_t i = 0; i < size; ++i) out[i] = in[i] * scale * w[i];
  };
  cpu::parallel_ranges(num_groups, cpu::rows_per_tile(size), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t group = begin; group < end; ++group) normalise(group);
  });
}

// Groups whose share of dw is summed in one go, in f32; the shares of the blocks are then summed in f64.
constexpr std::int64_t kGroupsPerBlock = 32;

std::size_t rms_norm_grad_workspace(const OpTypes& types) {
  const std::int64_t size = types.shape(2).num_elements();
  const std::int64_t num_groups = types.shape(3).num_elements();
  const std::int64_t blocks = (num_groups + kGroupsPerBlock - 1) / kGroupsPerBlock;
  return static_cast<std::size_t>(blocks * size) * sizeof(float);
}

// With g = dy·w: dx = rstd (g - x rstd² mean(g x)); dw = Σ over groups of dy x rstd. Either may be added to
// something.
void run_rms_norm_grad(const KernelCall& call) {
  const float *dy = call.in(0), *x = call.in(1), *w = call.in(2), *rstd = call.in(3);
  const float* dw_before = call.has(4) ? call.in(4) : nullptr;
  const float* dx_before = call.has(5) ? call.in(5) : nullptr;
  float *dx = call.out(0), *dw = call.out(1);
  const std::int64_t size = call.in_shape(2).num_elements(), num_groups = call.in_shape(3).num_elements();
  const std::int64_t blocks = (num_groups + kGroupsPerBlock - 1) / kGroupsPerBlock;
  auto* shares = reinterpret_cast<float*>(call.workspace.data());  // [blocks, D]

  const auto differentiate = [&](std::int64_t group, float* share) {
    const float *g = dy + group * size, *in = x + group * size;
    float* out = dx + group * size;
    const float scale = rstd[group];
    const float dot = cpu::lane_sum<float>(size, [&](std::int64_t i) { return g[i] * w[i] * in[i]; });
    const float along_x = dot / static_cast<float>(size) * scale * scale;
    const auto store = [&](const auto& before) {
#pragma omp simd
      for (std::int64_t i = 0; i < size; ++i) {
        share[i] += g[i] * in[i] * scale;
        out[i] = before(i) + scale * (g[i] * w[i] - in[i] * along_x);
      }
    };
    if (const float* const sum = dx_before == nullptr ? nullptr : dx_before + group * size)
      store([&](std::int64_t i) { return sum[i]; });
    else
      store([](std::int64_t) { return 0.0F; });
  };
  cpu::parallel_for(blocks, [&](std::int64_t block) {
    float* share = shares + block * size;
    std::fill(share, share + size, 0.0F);
    const std::int64_t end = std::min(num_groups, (block + 1) * kGroupsPerBlock);
    for (std::int64_t group = block * kGroupsPerBlock; group < end; ++group) differentiate(group, share);
  });

  cpu::sum_columns(shares, blocks, size, dw_before, dw);
}

}  // namespace

void register_norm(KernelTable& table);
void register_norm(KernelTable& table) {
  table.add("rms_norm", DType::f32, DeviceKind::cpu, {.run = run_rms_norm, .workspace = nullptr});
  table.add("rms_norm_grad", DType::f32, DeviceKind::cpu,
            {.run = run_rms_norm_grad, .workspace = rms_norm_grad_workspace});
}

}  // namespace farskip
