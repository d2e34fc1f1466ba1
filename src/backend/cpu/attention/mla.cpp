// SPDX-License-Identifier: Apache-2.0
// Keys and values of multi-head latent attention, put together from the up-projected latent and the
// rotated part that all heads share.
#include <algorithm>
#include <cstring>

#include "backend/cpu/parallel.h"
#include "farskip/backend/kernel.h"
#include "farskip/ops/ops.h"

namespace farskip {
namespace {

constexpr std::int64_t kTokens = 16;  // of one tile

void copy(const float* from, std::int64_t n, float* to) {
  std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(float));
}

void run_mla_key_value(const KernelCall& call) {
  const auto& a = call.get<ops::MlaKeyValue>();
  const float *kv = call.in(0), *k_rope = call.in(1);
  float *k = call.out(0), *v = call.out(1);
  cpu::parallel_ranges(call.in_shape(0)[0], kTokens, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t)
      for (std::int64_t i = t * a.heads; i < (t + 1) * a.heads; ++i) {
        const float* from = kv + i * (a.nope_dim + a.v_dim);
        float* key = k + i * (a.nope_dim + a.rope_dim);
        copy(from, a.nope_dim, key);
        copy(k_rope + t * a.rope_dim, a.rope_dim, key + a.nope_dim);
        copy(from + a.nope_dim, a.v_dim, v + i * a.v_dim);
      }
  });
}

void run_mla_key_value_grad(const KernelCall& call) {
  const auto& a = call.get<ops::MlaKeyValue>();
  const float *dk = call.in(0), *dv = call.in(1);
  float *dkv = call.out(0), *dk_rope = call.out(1);
  cpu::parallel_ranges(call.in_shape(0)[0], kTokens, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      float* sum = dk_rope + t * a.rope_dim;
      std::fill_n(sum, a.rope_dim, 0.0F);
      for (std::int64_t i = t * a.heads; i < (t + 1) * a.heads; ++i) {
        const float* key = dk + i * (a.nope_dim + a.rope_dim);
        float* to = dkv + i * (a.nope_dim + a.v_dim);
        copy(key, a.nope_dim, to);
        copy(dv + i * a.v_dim, a.v_dim, to + a.nope_dim);
#pragma omp simd
        for (std::int64_t r = 0; r < a.rope_dim; ++r) sum[r] += key[a.nope_dim + r];
      }
    }
  });
}

}  // namespace

void register_mla(KernelTable& table);

void register_mla(KernelTable& table) {
  table.add("mla_key_value", DType::f32, DeviceKind::cpu, {.run = run_mla_key_value, .workspace = nullptr});
  table.add("mla_key_value_grad", DType::f32, DeviceKind::cpu,
            {.run = run_mla_key_value_grad, .workspace = nullptr});
}

}  // namespace farskip
