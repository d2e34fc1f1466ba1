// SPDX-License-Identifier: Apache-2.0
// Attention over a cache. A query's sums have one order, by windows of keys that begin at multiples of kKeys,
// so its bits depend neither on what else is computed with it nor on where the blocks of its sequence lie.
#include <algorithm>
#include <limits>

#include "backend/cached_attention_sizes.h"
#include "backend/cpu/few_rows.h"
#include "backend/cpu/micro_kernel.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/reduce.h"
#include "backend/cpu/vector_math.h"
#include "farskip/backend/kernel.h"

namespace farskip {
namespace {

constexpr std::int64_t kKeys = 128;    // of a window
constexpr std::int64_t kQueries = 16;  // rows of scores at once: queries times heads of a group
constexpr float kLowest = -std::numeric_limits<float>::infinity();

struct Tensors {
  const float *q, *keys, *values;
  float* out;
};

/// Tokens [first, first + count) of a run, of one sequence, one after the other; and some heads of one group.
struct Queries {
  std::int64_t first, count, kv_head, first_head, heads;
  std::int64_t rows() const { return count * heads; }
};

/// Calls use(offset, count, row) for the keys [begin, end), in pieces that lie together in the cache.
template <class F>
void for_each_piece(const CachedAttentionSizes& s, std::int64_t token, std::int64_t begin, std::int64_t end,
                    const F& use) {
  for (std::int64_t p = begin; p < end;) {
    const std::int64_t next = std::min(end, (p / s.block_tokens + 1) * s.block_tokens);
    use(p - begin, next - p, s.row(token, p));
    p = next;
  }
}

/// Running softmax of a row: largest scaled score and Σ exp(score - max).
struct Running {
  float max = kLowest, sum = 0.0F;
};

/// Scores [begin, end) of a row become weights; what was summed up so far is rescaled.
void update_softmax(float* scores, std::int64_t begin, std::int64_t end, float scale, Running& state,
                    float* out, std::int64_t dv) {
  float max = state.max;
#pragma omp simd reduction(max : max)
  for (std::int64_t j = begin; j < end; ++j) {
    scores[j] *= scale;
    max = scores[j] > max ? scores[j] : max;
  }
#pragma omp simd
  for (std::int64_t j = begin; j < end; ++j) scores[j] = cpu::fast_exp(scores[j] - max);
  float sum = cpu::lane_sum<float>(end - begin, [&](std::int64_t j) { return scores[begin + j]; });
  if (state.max != kLowest) {
    const float factor = cpu::fast_exp(state.max - max);
    sum += state.sum * factor;
#pragma omp simd
    for (std::int64_t i = 0; i < dv; ++i) out[i] *= factor;
  }
  state = {max, sum};
}

/// out += weights · values, key by key.
void add_values(const float* weights, std::int64_t count, const float* values, std::int64_t stride,
                float* out, std::int64_t dv) {
  std::int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    const float *v = values + j * stride, *w = weights + j;
#pragma omp simd
    for (std::int64_t i = 0; i < dv; ++i)
      out[i] = (((out[i] + w[0] * v[i]) + w[1] * v[stride + i]) + w[2] * v[2 * stride + i]) +
               w[3] * v[3 * stride + i];
  }
  for (; j < count; ++j) {
    const float* v = values + j * stride;
#pragma omp simd
    for (std::int64_t i = 0; i < dv; ++i) out[i] += weights[j] * v[i];
  }
}

class Attend {
 public:
  Attend(const CachedAttentionSizes& s, const Tensors& x, const Queries& queries)
      : s_(s), x_(x), q_(queries) {}

  void run() {
    const std::int64_t last = s_.position(q_.first + q_.count - 1);
    for (std::int64_t r = 0; r < q_.rows(); ++r) std::fill_n(out(r), s_.dv, 0.0F);
    for (std::int64_t window = s_.first_key(q_.first) / kKeys * kKeys; window <= last; window += kKeys)
      add_window(window, std::min(window + kKeys, last + 1));
    for (std::int64_t r = 0; r < q_.rows(); ++r) {
      const float factor = 1.0F / running_[r].sum;
      float* to = out(r);
#pragma omp simd
      for (std::int64_t i = 0; i < s_.dv; ++i) to[i] *= factor;
    }
  }

 private:
  std::int64_t token(std::int64_t r) const {
    return q_.first + r / q_.heads;
  }
  std::int64_t head(std::int64_t r) const {
    return q_.first_head + r % q_.heads;
  }
  float* out(std::int64_t r) const {
    return x_.out + (token(r) * s_.heads + head(r)) * s_.dv;
  }

  void add_window(std::int64_t window, std::int64_t end) {
    const std::int64_t first = std::max(window, s_.first_key(q_.first));
    for_each_piece(s_, q_.first, first, end, [&](std::int64_t at, std::int64_t count, std::int64_t row) {
      const float* keys = x_.keys + row * s_.key_width + q_.kv_head * s_.d;
      for (std::int64_t t = 0; t < q_.count; ++t) {
        const float* q = x_.q + ((q_.first + t) * s_.heads + q_.first_head) * s_.d;
        cpu::multiply_few_rows(q_.heads, count, s_.d, q, s_.d, keys, s_.key_width, false,
                               scores_ + t * q_.heads * kKeys + (first - window) + at, kKeys);
      }
    });
    for (std::int64_t r = 0; r < q_.rows(); ++r) {
      const std::int64_t begin = std::max(first, s_.first_key(token(r)));
      const std::int64_t past = std::min(end, s_.position(token(r)) + 1);
      if (begin >= past) continue;
      float* scores = scores_ + r * kKeys;
      update_softmax(scores, begin - window, past - window, s_.scale, running_[r], out(r), s_.dv);
      for_each_piece(s_, q_.first, begin, past, [&](std::int64_t at, std::int64_t count, std::int64_t row) {
        add_values(scores + (begin - window) + at, count,
                   x_.values + row * s_.value_width + q_.kv_head * s_.dv, s_.value_width, out(r), s_.dv);
      });
    }
  }

  const CachedAttentionSizes& s_;
  const Tensors& x_;
  const Queries& q_;
  Running running_[kQueries];
  alignas(64) float scores_[kQueries * kKeys];
};

/// How many tokens from `first` on are of one sequence, one after the other, up to `most`.
std::int64_t run_length(const CachedAttentionSizes& s, std::int64_t first, std::int64_t most) {
  std::int64_t n = 1;
  while (n < most && first + n < s.tokens && s.sequences[first + n] == s.sequences[first] &&
         s.positions[first + n] == s.positions[first] + n)
    ++n;
  return n;
}

void run_cached_attention(const KernelCall& call) {
  const CachedAttentionSizes s = cached_attention_sizes(call);
  const Tensors x{call.in(0), call.in(1), call.has(5) ? call.in(5) : call.in(1), call.out(0)};
  const std::int64_t group = s.heads_per_kv(), heads = std::min(group, kQueries);
  const std::int64_t parts = cpu::ceil_div(group, heads), most = std::max<std::int64_t>(kQueries / heads, 1);
  // Tiles of tokens; each begins where a multiple of `most` does, so that they are found side by side.
  const std::int64_t tiles = cpu::ceil_div(s.tokens, most);
  cpu::parallel_for(tiles * s.kv_heads * parts, [&](std::int64_t i) {
    const std::int64_t tile = tiles - 1 - i / (s.kv_heads * parts);  // the last tokens see most keys: first
    const std::int64_t kv_head = i / parts % s.kv_heads, first_head = kv_head * group + i % parts * heads;
    const std::int64_t count = std::min(heads, (kv_head + 1) * group - first_head);
    const std::int64_t end = std::min(s.tokens, (tile + 1) * most);
    for (std::int64_t t = tile * most; t < end;) {
      if (s.position(t) < 0) {
        std::fill_n(x.out + (t * s.heads + first_head) * s.dv, count * s.dv, 0.0F);
        ++t;
        continue;
      }
      const Queries queries{t, run_length(s, t, end - t), kv_head, first_head, count};
      Attend(s, x, queries).run();
      t += queries.count;
    }
  });
}

}  // namespace

void register_cached_attention(KernelTable& table);

void register_cached_attention(KernelTable& table) {
  table.add("cached_attention", DType::f32, DeviceKind::cpu,
            {.run = run_cached_attention, .workspace = nullptr});
}

}  // namespace farskip
