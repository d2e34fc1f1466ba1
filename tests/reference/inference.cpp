// SPDX-License-Identifier: Apache-2.0
// Reference kernels of the ops that read and write a cache.
#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/inference_ops.h"
#include "reference/reference.h"

namespace farskip::reference {
namespace {

void run_write_cache(const KernelCall& call) {
  const std::int64_t width = call.out_shape(0).back(), columns = call.in_shape(2).back();
  std::copy_n(call.in<double>(0), call.in_shape(0).num_elements(), call.out<double>(0));
  for (std::int64_t t = 0; t < call.in_shape(1)[0]; ++t)
    for (std::int64_t i = 0; i < width && call.in<std::int32_t>(1)[t] >= 0; ++i)
      call.out<double>(0)[call.in<std::int32_t>(1)[t] * width + i] =
          i < columns ? call.in<double>(2)[t * columns + i]
                      : call.in<double>(3)[t * (width - columns) + i - columns];
}

void run_cached_attention(const KernelCall& call) {
  const auto& a = call.get<ops::CachedAttention>();
  const std::int64_t dim = call.in_shape(0).back() / a.heads, key_width = call.in_shape(1).back();
  const double* values = call.has(5) ? call.in<double>(5) : call.in<double>(1);
  const std::int64_t value_width = call.in_shape(call.has(5) ? 5 : 1).back();
  for (std::int64_t t = 0; t < call.in_shape(0)[0]; ++t)
    for (std::int64_t head = 0; head < a.heads; ++head) {
      double* out = call.out<double>(0) + (t * a.heads + head) * a.value_size;
      std::fill_n(out, a.value_size, 0.0);
      const std::int64_t position = call.in<std::int32_t>(3)[t], kv_head = head / (a.heads / a.kv_heads);
      const auto row = [&](std::int64_t p) {
        const std::int64_t at = call.in<std::int32_t>(2)[t] * call.in_shape(4)[1] + p / a.block_tokens;
        return call.in<std::int32_t>(4)[at] * a.block_tokens + p % a.block_tokens;
      };
      std::vector<std::pair<std::int64_t, double>> scores;  // by row of the cache
      const std::int64_t first = a.chunk > 0 && position >= 0 ? position / a.chunk * a.chunk : 0;
      double largest = -HUGE_VAL, sum = 0.0;
      for (std::int64_t p = first; p <= position; ++p) {
        double dot = 0.0;
        for (std::int64_t d = 0; d < dim; ++d)
          dot += call.in<double>(0)[(t * a.heads + head) * dim + d] *
                 call.in<double>(1)[row(p) * key_width + kv_head * dim + d];
        scores.emplace_back(row(p), a.scale * dot);
        largest = std::max(largest, a.scale * dot);
      }
      for (const auto& [at, score] : scores) sum += std::exp(score - largest);
      for (const auto& [at, score] : scores)
        for (std::int64_t d = 0; d < a.value_size; ++d)
          out[d] += std::exp(score - largest) / sum * values[at * value_width + kv_head * a.value_size + d];
    }
}

/// Element (i, j) of W_k (`of_value`: W_v) of a head.
double head_weight(const KernelCall& call, std::int64_t head, bool of_value, std::int64_t i, std::int64_t j) {
  const auto& a = call.get<ops::MlaKeyValue>();
  const std::int64_t row = head * (a.nope_dim + a.v_dim) + (of_value ? a.nope_dim : 0) + i;
  return call.in<double>(1)[row * call.in_shape(1)[1] + j];
}

void run_absorb_query(const KernelCall& call) {
  const auto& a = call.get<ops::MlaKeyValue>();
  const std::int64_t latent = call.in_shape(1)[1];
  for (std::int64_t i = 0; i < call.in_shape(0)[0] * a.heads; ++i) {
    const double* q = call.in<double>(0) + i * (a.nope_dim + a.rope_dim);
    double* out = call.out<double>(0) + i * (latent + a.rope_dim);
    for (std::int64_t j = 0; j < latent; ++j) {
      out[j] = 0.0;
      for (std::int64_t d = 0; d < a.nope_dim; ++d)
        out[j] += q[d] * head_weight(call, i % a.heads, false, d, j);
    }
    for (std::int64_t d = 0; d < a.rope_dim; ++d) out[latent + d] = q[a.nope_dim + d];
  }
}

void run_expand_value(const KernelCall& call) {
  const auto& a = call.get<ops::MlaKeyValue>();
  const std::int64_t latent = call.in_shape(1)[1];
  for (std::int64_t i = 0; i < call.in_shape(0)[0] * a.heads; ++i)
    for (std::int64_t d = 0; d < a.v_dim; ++d) {
      double& out = call.out<double>(0)[i * a.v_dim + d];
      out = 0.0;
      for (std::int64_t j = 0; j < latent; ++j)
        out += call.in<double>(0)[i * latent + j] * head_weight(call, i % a.heads, true, d, j);
    }
}

}  // namespace

void register_inference(KernelTable& table) {
  add_reference(table, "write_cache", run_write_cache);
  add_reference(table, "cached_attention", run_cached_attention);
  add_reference(table, "absorb_query", run_absorb_query);
  add_reference(table, "expand_value", run_expand_value);
}

}  // namespace farskip::reference
