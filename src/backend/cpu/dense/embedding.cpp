// SPDX-License-Identifier: Apache-2.0
// Rows of the embedding table, and the sum of gradients that fall on one row.
#include <algorithm>
#include <cstring>

#include "backend/cpu/parallel.h"
#include "backend/cpu/reduce.h"
#include "farskip/backend/kernel.h"
#include "farskip/ops/ops.h"

namespace farskip {
namespace {

void check_tokens(const std::int32_t* tokens, std::int64_t num_tokens, std::int64_t vocab) {
  for (std::int64_t t = 0; t < num_tokens; ++t)
    FARSKIP_CHECK(tokens[t] >= 0 && tokens[t] < vocab, "token {} at position {} is outside [0, {})",
                  tokens[t], t, vocab);
}

// table[V, H], tokens[T] → [T, H], zeros where another part of the vocabulary has the token
void run_embedding(const KernelCall& call) {
  const auto* table = call.in(0);
  const auto* tokens = call.in<std::int32_t>(1);
  auto* out = call.out(0);
  const std::int64_t num_tokens = call.in_shape(1).num_elements(), hidden = call.in_shape(0)[1];
  const auto& part = call.get<ops::VocabularyPart>();
  const Range own = part.own(call.in_shape(0)[0]);
  check_tokens(tokens, num_tokens, part.size(call.in_shape(0)[0]));
  cpu::parallel_ranges(num_tokens, cpu::rows_per_tile(hidden), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t)
      if (const std::int64_t row = tokens[t] - own.first; row >= 0 && row < own.count)
        std::copy_n(table + row * hidden, hidden, out + t * hidden);
      else
        std::fill_n(out + t * hidden, hidden, 0.0F);
  });
}

// dy[T, H], tokens[T], [accumulate[V, H]] → dtable[V, H]. Tiles are column ranges: each walks the tokens in
// order, so that a token's rows are summed in order of t however often it occurs, and hot tokens do not
// unbalance the tiles.
void run_embedding_grad(const KernelCall& call) {
  const auto* dy = call.in(0);
  const auto* tokens = call.in<std::int32_t>(1);
  auto* dtable = call.out(0);
  const std::int64_t num_tokens = call.in_shape(1).num_elements();
  const std::int64_t vocab = call.out_shape(0)[0], hidden = call.out_shape(0)[1];
  const ops::VocabularyPart part = call.get<ops::EmbeddingGrad>().part();
  const Range own = part.own(vocab);
  check_tokens(tokens, num_tokens, part.size(vocab));
  const float* accumulate = call.has(2) ? call.in(2) : nullptr;
  if (accumulate != dtable)
    cpu::parallel_ranges(vocab * hidden, cpu::kElementsPerTile, [&](std::int64_t begin, std::int64_t end) {
      const auto bytes = static_cast<std::size_t>(end - begin) * sizeof(float);
      if (accumulate != nullptr) {
        std::memcpy(dtable + begin, accumulate + begin, bytes);
      } else {
        std::memset(dtable + begin, 0, bytes);
      }
    });
  constexpr std::int64_t columns_per_tile = 256;
  cpu::parallel_ranges(hidden, columns_per_tile, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = 0; t < num_tokens; ++t) {
      const std::int64_t of_token = tokens[t] - own.first;
      if (of_token < 0 || of_token >= own.count) continue;
      float* row = dtable + of_token * hidden;
      const float* gradient = dy + t * hidden;
#pragma omp simd
      for (std::int64_t h = begin; h < end; ++h) row[h] += gradient[h];
    }
  });
}

}  // namespace

void register_embedding(KernelTable& table);
void register_embedding(KernelTable& table) {
  table.add("embedding", DType::f32, DeviceKind::cpu, {.run = run_embedding, .workspace = nullptr});
  table.add("embedding_grad", DType::f32, DeviceKind::cpu, {.run = run_embedding_grad, .workspace = nullptr});
}

}  // namespace farskip
