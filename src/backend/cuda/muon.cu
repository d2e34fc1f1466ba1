// SPDX-License-Identifier: Apache-2.0
// Muon's update: momentum, made orthogonal by Newton-Schulz in bf16 with sums in f32.
#include <algorithm>
#include <utility>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/product.h"
#include "backend/random_rounding.h"
#include "farskip/ops/optimizer_ops.h"
#include "tensor/alignment.h"

namespace farskip {
namespace cuda {
namespace {

constexpr int kSumBlocks = 264;

template <class Moment>
struct MomentumArguments {
  const Moment* m;
  const float *gradient, *factor, *hyper;
  Moment* m_out;
  float* look_ahead;
  std::int64_t n;
  float old, rest;
  ops::StateRounding rounding;  // of the matrix
};

/// The new momentum and Nesterov's look ahead of it; sums[block] = Σ of the squares of the latter, in f64.
template <class Moment>
__global__ void __launch_bounds__(kThreads) momentum_kernel(MomentumArguments<Moment> a, double* sums) {
  __shared__ double shared[kWarpsPerBlock];
  const RoundingBits bits(a.rounding, a.hyper[ops::kStep]);
  const float factor = *a.factor;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  double sum = 0.0;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < a.n; i += step) {
    float now = to_float(a.m[i]), ahead = 0.0F;
    if (factor != 0.0F) {  // else the gradient may be NaN, and nothing changes
      const float g = factor * a.gradient[i];
      now = a.old * now + a.rest * g;
      ahead = a.old * now + a.rest * g;
    }
    if constexpr (sizeof(Moment) == sizeof(float)) {
      a.m_out[i] = now;
    } else {
      const std::uint32_t word = bits.word(static_cast<std::uint64_t>(a.rounding.first + i));
      reinterpret_cast<std::uint16_t*>(a.m_out)[i] = round_at_random(now, word & 0xffffU);
    }
    a.look_ahead[i] = ahead;
    sum += static_cast<double>(ahead) * static_cast<double>(ahead);
  }
  sum = block_sum<kThreads>(sum, shared);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

/// x = look_ahead / max(‖look_ahead‖, eps), in bf16. Every block adds the sums in the same order.
__global__ void __launch_bounds__(kThreads)
    normalise_kernel(const float* look_ahead, const double* sums, int num_sums, bf16* x, std::int64_t n) {
  __shared__ double shared[kWarpsPerBlock];
  __shared__ float over_norm;
  double sum = 0.0;
  for (int i = static_cast<int>(threadIdx.x); i < num_sums; i += kThreads) sum += sums[i];
  sum = block_sum<kThreads>(sum, shared);
  if (threadIdx.x == 0) over_norm = 1.0F / fmaxf(static_cast<float>(sqrt(sum)), ops::Muon::kEps);
  __syncthreads();
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += step)
    x[i] = __float2bfloat16_rn(look_ahead[i] * over_norm);
}

struct ApplyArguments {
  const float *p, *factor, *hyper;
  const bf16* x;
  float* p_out;
  bf16* low_copy;  // may be nullptr
  std::int64_t n;
  double weight_decay, scale;
};

__global__ void __launch_bounds__(kThreads) apply_kernel(ApplyArguments a) {
  const bool skip = *a.factor == 0.0F;
  const double rate = static_cast<double>(a.hyper[0]);
  const auto keep = static_cast<float>(1.0 - rate * a.weight_decay);
  const auto move = static_cast<float>(rate * a.scale);
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < a.n; i += step) {
    const float p = skip ? a.p[i] : keep * a.p[i] - move * __bfloat162float(a.x[i]);
    a.p_out[i] = p;
    if (a.low_copy != nullptr) a.low_copy[i] = __float2bfloat16_rn(p);
  }
}

std::size_t bf16_bytes(std::int64_t elements) {
  return aligned(static_cast<std::size_t>(elements) * sizeof(bf16));
}

/// Scratch of one matrix: two of its size and two of its side in bf16, its look ahead, sums, what products
/// need.
class Scratch {
 public:
  Scratch(const ops::MuonMatrix& size, std::byte* at) {
    const auto take = [&](std::size_t bytes) {
      std::byte* const here = at + bytes_;
      bytes_ += bytes;
      return here;
    };
    x = reinterpret_cast<bf16*>(take(bf16_bytes(size.elements)));
    next = reinterpret_cast<bf16*>(take(bf16_bytes(size.elements)));
    gram = reinterpret_cast<bf16*>(take(bf16_bytes(size.side * size.side)));
    polynomial = reinterpret_cast<bf16*>(take(bf16_bytes(size.side * size.side)));
    look_ahead =
        reinterpret_cast<float*>(take(aligned(static_cast<std::size_t>(size.elements) * sizeof(float))));
    sums = reinterpret_cast<double*>(take(aligned(kSumBlocks * sizeof(double))));
    products = {take(kProductWorkspace), kProductWorkspace};
  }
  std::size_t bytes() const { return bytes_; }

  bf16 *x, *next, *gram, *polynomial;
  float* look_ahead;
  double* sums;
  std::span<std::byte> products;

 private:
  std::size_t bytes_ = 0;
};

std::size_t muon_workspace(const OpTypes& types) {
  return Scratch(ops::MuonMatrix(types.get<ops::Muon>(), types.shape(0)), nullptr).bytes();
}

/// x ← a x + (b A + c A²) x with A = x xᵀ, or from the right with xᵀ x where that is smaller.
void iterate(const KernelCall& call, const ops::MuonMatrix& size, Scratch& s) {
  const bool wide = size.is_wide();
  const auto product = [&](Product p) {
    p.in = p.out = DType::bf16;
    multiply(*call.gpu, p, s.products);
  };
  const std::int64_t k = size.side, columns = size.columns;
  product({.transpose_a = !wide,
           .transpose_b = wide,
           .m = k,
           .n = k,
           .k = wide ? columns : size.rows,
           .a = s.x,
           .lda = columns,
           .b = s.x,
           .ldb = columns,
           .c = s.gram,
           .ldc = k});
  product({.m = k,
           .n = k,
           .k = k,
           .a = s.gram,
           .lda = k,
           .b = s.gram,
           .ldb = k,
           .c = s.polynomial,
           .ldc = k,
           .accumulate = s.gram,
           .alpha = ops::Muon::kC,
           .beta = ops::Muon::kB});
  product({.m = size.rows,
           .n = columns,
           .k = k,
           .a = wide ? s.polynomial : s.x,
           .lda = wide ? k : columns,
           .b = wide ? s.x : s.polynomial,
           .ldb = wide ? columns : k,
           .c = s.next,
           .ldc = columns,
           .accumulate = s.x,
           .alpha = 1.0F,
           .beta = ops::Muon::kA});
  std::swap(s.x, s.next);
}

template <class Moment>
void take_momentum(const KernelCall& call, std::int64_t first, std::int64_t elements, int blocks,
                   const Scratch& s) {
  const auto& a = call.get<ops::Muon>();
  ops::StateRounding rounding = a.rounding;
  rounding.first += first;
  launch(call, momentum_kernel<Moment>, blocks, kThreads, 0,
         MomentumArguments<Moment>{.m = call.in<Moment>(1) + first,
                                   .gradient = call.in(2) + first,
                                   .factor = call.in(3),
                                   .hyper = call.in(4),
                                   .m_out = call.out<Moment>(1) + first,
                                   .look_ahead = s.look_ahead,
                                   .n = elements,
                                   .old = static_cast<float>(a.momentum),
                                   .rest = static_cast<float>(1.0 - a.momentum),
                                   .rounding = rounding},
         s.sums);
}

// parameter, momentum, gradient, factor[1], hyper → parameter, momentum, [parameter in bf16]
void run_muon(const KernelCall& call) {
  const auto& a = call.get<ops::Muon>();
  const std::int64_t all = call.in_shape(0).num_elements();
  if (all == 0) return;
  const ops::MuonMatrix size(a, call.in_shape(0));
  Scratch s(size, call.workspace.data());
  const int blocks = static_cast<int>(std::min<std::int64_t>(kSumBlocks, ceil_div(size.elements, kThreads)));
  for (std::int64_t first = 0; first < all; first += size.elements) {
    if (call.inputs[1].dtype == DType::bf16)
      take_momentum<bf16>(call, first, size.elements, blocks, s);
    else
      take_momentum<float>(call, first, size.elements, blocks, s);
    launch(call, normalise_kernel, blocks, kThreads, 0, s.look_ahead, s.sums, blocks, s.x, size.elements);
    for (int step = 0; step < ops::Muon::kSteps; ++step) iterate(call, size, s);
    launch(call, apply_kernel, blocks, kThreads, 0,
           ApplyArguments{.p = call.in(0) + first,
                          .factor = call.in(3),
                          .hyper = call.in(4),
                          .x = s.x,
                          .p_out = call.out(0) + first,
                          .low_copy = call.outputs.size() > 2 ? call.out<bf16>(2) + first : nullptr,
                          .n = size.elements,
                          .weight_decay = a.weight_decay,
                          .scale = size.scale()});
  }
}

}  // namespace
}  // namespace cuda

void register_cuda_muon(KernelTable& table);
void register_cuda_muon(KernelTable& table) {
  table.add("muon", DType::f32, DeviceKind::cuda, {.run = cuda::run_muon, .workspace = cuda::muon_workspace});
}

}  // namespace farskip
