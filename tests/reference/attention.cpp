// SPDX-License-Identifier: Apache-2.0
// Reference kernels of attention: one query position at a time, softmax over an explicit list.
#include <algorithm>
#include <cmath>
#include <vector>

#include "farskip/ops/ops.h"
#include "reference/reference.h"

namespace farskip::reference {
namespace {

void run_attention(const KernelCall& call) {
  const auto& a = call.get<ops::Attention>();
  const std::int64_t tokens = call.in_shape(0).num_rows();
  const std::int64_t dim = call.in_shape(0).back() / a.heads, v_dim = call.in_shape(2).back() / a.kv_heads;
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t head = 0; head < a.heads; ++head) {
      const std::int64_t position = t % a.sequence_length, sequence_start = t - position;
      const std::int64_t kv_head = head / (a.heads / a.kv_heads);
      std::int64_t first = call.has(3) ? call.in<std::int32_t>(3)[t] : 0;
      if (a.chunk > 0) first = std::max(first, position - position % a.chunk);
      std::vector<double> scores;
      for (std::int64_t j = first; j <= position; ++j) {
        double dot = 0.0;
        for (std::int64_t d = 0; d < dim; ++d)
          dot += call.in<double>(0)[(t * a.heads + head) * dim + d] *
                 call.in<double>(1)[((sequence_start + j) * a.kv_heads + kv_head) * dim + d];
        scores.push_back(a.scale * dot);
      }
      const double largest = *std::max_element(scores.begin(), scores.end());
      double sum = 0.0;
      for (const double score : scores) sum += std::exp(score - largest);
      for (std::int64_t d = 0; d < v_dim; ++d) {
        double out = 0.0;
        for (std::int64_t j = first; j <= position; ++j)
          out += std::exp(scores[static_cast<std::size_t>(j - first)] - largest) / sum *
                 call.in<double>(2)[((sequence_start + j) * a.kv_heads + kv_head) * v_dim + d];
        call.out<double>(0)[(t * a.heads + head) * v_dim + d] = out;
      }
      call.out<double>(1)[t * a.heads + head] = largest + std::log(sum);
    }
}

void run_mla_key_value(const KernelCall& call) {
  const auto& a = call.get<ops::MlaKeyValue>();
  const std::int64_t k_dim = a.nope_dim + a.rope_dim, kv_dim = a.nope_dim + a.v_dim;
  for (std::int64_t t = 0; t < call.in_shape(0).num_rows(); ++t)
    for (std::int64_t head = 0; head < a.heads; ++head) {
      const double* kv = call.in<double>(0) + (t * a.heads + head) * kv_dim;
      double* k = call.out<double>(0) + (t * a.heads + head) * k_dim;
      for (std::int64_t d = 0; d < a.nope_dim; ++d) k[d] = kv[d];
      for (std::int64_t d = 0; d < a.rope_dim; ++d)
        k[a.nope_dim + d] = call.in<double>(1)[t * a.rope_dim + d];
      for (std::int64_t d = 0; d < a.v_dim; ++d)
        call.out<double>(1)[(t * a.heads + head) * a.v_dim + d] = kv[a.nope_dim + d];
    }
}

}  // namespace

void register_attention(KernelTable& table) {
  add_reference(table, "attention", run_attention);
  add_reference(table, "mla_key_value", run_mla_key_value);
}

}  // namespace farskip::reference
