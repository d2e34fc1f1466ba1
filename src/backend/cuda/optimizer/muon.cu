// SPDX-License-Identifier: Apache-2.0
// Muon's update: momentum, made orthogonal by Newton-Schulz in bf16 with sums in f32. The equal matrices of a
// tensor (experts) are updated together: every kernel and product is launched for many of them.
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

constexpr std::int64_t kBlocksPerMatrix = 264;        // the most, and so many sums
constexpr std::int64_t kScratchOfGroup = 256 << 20;   // bytes
constexpr std::int64_t kMostMatricesOfGroup = 65535;  // blockIdx.y

/// How the matrices of a tensor are dealt with: `matrices` at a time, and the rest in the end. In scratch
/// memory each begins at an aligned address, as a buffer of its own would.
struct Groups {
  Groups(const ops::Muon& a, const Shape& shape)
      : size(a, shape),
        stride(padded(size.elements)),
        square_stride(padded(size.side * size.side)),
        blocks(std::min(kBlocksPerMatrix, ceil_div(size.elements, kThreads))) {
    if (size.elements == 0) return;
    const std::int64_t all = shape.num_elements() / size.elements;
    const std::int64_t most =
        std::clamp<std::int64_t>(kScratchOfGroup / bytes_per_matrix(), 1, kMostMatricesOfGroup);
    matrices = ceil_div(all, std::max<std::int64_t>(ceil_div(all, most), 1));
  }
  ops::MuonMatrix size;
  std::int64_t stride, square_stride;  // elements from a matrix to the next one: of its size, of its side
  std::int64_t blocks;                 // of each
  std::int64_t matrices = 0;

 private:
  static std::int64_t padded(std::int64_t elements) {
    return static_cast<std::int64_t>(aligned(static_cast<std::size_t>(elements) * sizeof(bf16)) /
                                     sizeof(bf16));
  }
  std::int64_t bytes_per_matrix() const {
    constexpr std::int64_t low = sizeof(bf16), high = sizeof(float), sum = sizeof(double);
    return stride * (2 * low + high) + square_stride * 2 * low + blocks * sum;
  }
};

template <class Moment>
struct MomentumArguments {
  const Moment* m;
  const float *gradient, *factor, *hyper;
  Moment* m_out;
  float* look_ahead;
  std::int64_t n, stride;  // elements of a matrix; of look_ahead from one to the next
  float old, rest;
  ops::StateRounding rounding;  // of the first matrix
};

/// Where matrix blockIdx.y begins, if each is n elements from the one before.
__device__ __forceinline__ std::int64_t matrix_position(std::int64_t n) {
  return static_cast<std::int64_t>(blockIdx.y) * n;
}

/// The new momentum and Nesterov's look ahead of it; sums[matrix][block] = Σ of the squares of the latter, in
/// f64.
template <class Moment>
__global__ void __launch_bounds__(kThreads) momentum_kernel(MomentumArguments<Moment> a, double* sums) {
  __shared__ double shared[kWarpsPerBlock];
  const RoundingBits bits(a.rounding, a.hyper[ops::kStep]);
  const float factor = *a.factor;
  const std::int64_t first = matrix_position(a.n), step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  float* const look_ahead = a.look_ahead + matrix_position(a.stride);
  double sum = 0.0;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < a.n; i += step) {
    float now = to_float(a.m[first + i]), ahead = 0.0F;
    if (factor != 0.0F) {  // else the gradient may be NaN, and nothing changes
      const float g = factor * a.gradient[first + i];
      now = a.old * now + a.rest * g;
      ahead = a.old * now + a.rest * g;
    }
    if constexpr (sizeof(Moment) == sizeof(float)) {
      a.m_out[first + i] = now;
    } else {
      const std::uint32_t word = bits.word(static_cast<std::uint64_t>(a.rounding.first + first + i));
      reinterpret_cast<std::uint16_t*>(a.m_out)[first + i] = round_at_random(now, word & 0xffffU);
    }
    look_ahead[i] = ahead;
    sum += static_cast<double>(ahead) * static_cast<double>(ahead);
  }
  sum = block_sum<kThreads>(sum, shared);
  if (threadIdx.x == 0) sums[blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

/// x = look_ahead / max(‖look_ahead‖, eps) of each matrix, in bf16. Its blocks are as many as
/// momentum_kernel's, and every one adds their sums in the same order.
__global__ void __launch_bounds__(kThreads) normalise_kernel(const float* look_ahead, const double* sums,
                                                             bf16* x, std::int64_t n, std::int64_t stride) {
  __shared__ double shared[kWarpsPerBlock];
  __shared__ float over_norm;
  double sum = 0.0;
  sums += blockIdx.y * gridDim.x;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += kThreads) sum += sums[i];
  sum = block_sum<kThreads>(sum, shared);
  if (threadIdx.x == 0) over_norm = 1.0F / fmaxf(static_cast<float>(sqrt(sum)), ops::Muon::kEps);
  __syncthreads();
  look_ahead += matrix_position(stride);
  x += matrix_position(stride);
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += step)
    x[i] = __float2bfloat16_rn(look_ahead[i] * over_norm);
}

struct ApplyArguments {
  const float *p, *factor, *hyper;
  const bf16* x;
  float* p_out;
  bf16* low_copy;          // may be nullptr
  std::int64_t n, stride;  // elements of a matrix; of x from one to the next
  double weight_decay, scale;
};

__global__ void __launch_bounds__(kThreads) apply_kernel(ApplyArguments a) {
  const bool skip = *a.factor == 0.0F;
  const double rate = static_cast<double>(a.hyper[0]);
  const auto keep = static_cast<float>(1.0 - rate * a.weight_decay);
  const auto move = static_cast<float>(rate * a.scale);
  const std::int64_t first = matrix_position(a.n), step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  const bf16* const x = a.x + matrix_position(a.stride);
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < a.n; i += step) {
    const float now = a.p[first + i], p = skip ? now : keep * now - move * __bfloat162float(x[i]);
    a.p_out[first + i] = p;
    if (a.low_copy != nullptr) a.low_copy[first + i] = __float2bfloat16_rn(p);
  }
}

/// Scratch memory of a group: of each matrix two of its size and two of its side in bf16, its look ahead, and
/// sums; and what products need.
class Scratch {
 public:
  Scratch(const Groups& g, std::byte* at) {
    const auto take = [&]<class T>(T*& place, std::int64_t elements_per_matrix) {
      place = reinterpret_cast<T*>(at + bytes_);
      bytes_ += aligned(static_cast<std::size_t>(g.matrices * elements_per_matrix) * sizeof(T));
    };
    take(x, g.stride);
    take(next, g.stride);
    take(gram, g.square_stride);
    take(polynomial, g.square_stride);
    take(look_ahead, g.stride);
    take(sums, g.blocks);
    products = {at + bytes_, kProductWorkspace};
    bytes_ += kProductWorkspace;
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
  const Groups groups(types.get<ops::Muon>(), types.shape(0));
  return groups.matrices == 0 ? 0 : Scratch(groups, nullptr).bytes();
}

class MuonUpdate {
 public:
  explicit MuonUpdate(const KernelCall& call)
      : call_(call),
        a_(call.get<ops::Muon>()),
        groups_(a_, call.in_shape(0)),
        scratch_(groups_, call.workspace.data()) {
    FARSKIP_CHECK(call.workspace.size() >= scratch_.bytes(), "{} bytes of scratch memory instead of {}",
                  call.workspace.size(), scratch_.bytes());
  }

  void run() {
    const std::int64_t all = call_.in_shape(0).num_elements(), n = groups_.size.elements;
    for (std::int64_t first = 0; first < all; first += groups_.matrices * n)
      update(first, std::min(groups_.matrices, (all - first) / n));
  }

 private:
  /// So many matrices from element `first` on.
  void update(std::int64_t first, std::int64_t matrices) {
    const dim3 grid(grid_size(groups_.blocks), grid_size(matrices));
    if (call_.inputs[1].dtype == DType::bf16)
      take_momentum<bf16>(grid, first);
    else
      take_momentum<float>(grid, first);
    Scratch& s = scratch_;
    launch(call_, normalise_kernel, grid, kThreads, 0, s.look_ahead, s.sums, s.x, groups_.size.elements,
           groups_.stride);
    for (int step = 0; step < ops::Muon::kSteps; ++step) iterate(matrices);
    launch(call_, apply_kernel, grid, kThreads, 0,
           ApplyArguments{.p = call_.in(0) + first,
                          .factor = call_.in(3),
                          .hyper = call_.in(4),
                          .x = s.x,
                          .p_out = call_.out(0) + first,
                          .low_copy = call_.outputs.size() > 2 ? call_.out<bf16>(2) + first : nullptr,
                          .n = groups_.size.elements,
                          .stride = groups_.stride,
                          .weight_decay = a_.weight_decay,
                          .scale = groups_.size.scale()});
  }

  template <class Moment>
  void take_momentum(dim3 grid, std::int64_t first) const {
    ops::StateRounding rounding = a_.rounding;
    rounding.first += first;
    launch(call_, momentum_kernel<Moment>, grid, kThreads, 0,
           MomentumArguments<Moment>{.m = call_.in<Moment>(1) + first,
                                     .gradient = call_.in(2) + first,
                                     .factor = call_.in(3),
                                     .hyper = call_.in(4),
                                     .m_out = call_.out<Moment>(1) + first,
                                     .look_ahead = scratch_.look_ahead,
                                     .n = groups_.size.elements,
                                     .stride = groups_.stride,
                                     .old = static_cast<float>(a_.momentum),
                                     .rest = static_cast<float>(1.0 - a_.momentum),
                                     .rounding = rounding},
           scratch_.sums);
  }

  /// x ← a x + (b A + c A²) x with A = x xᵀ, or from the right with xᵀ x where that is smaller.
  void iterate(std::int64_t matrices) {
    Scratch& s = scratch_;
    const bool wide = groups_.size.is_wide();
    const std::int64_t k = groups_.size.side, rows = groups_.size.rows, columns = groups_.size.columns;
    const std::int64_t stride = groups_.stride, square = groups_.square_stride;
    const auto product = [&](Product p) {
      p.in = p.out = DType::bf16;
      p.batches = matrices;
      multiply(*call_.gpu, p, s.products);
    };
    product({.transpose_a = !wide,
             .transpose_b = wide,
             .m = k,
             .n = k,
             .k = wide ? columns : rows,
             .a = s.x,
             .lda = columns,
             .b = s.x,
             .ldb = columns,
             .c = s.gram,
             .ldc = k,
             .stride_a = stride,
             .stride_b = stride,
             .stride_c = square});
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
             .beta = ops::Muon::kB,
             .stride_a = square,
             .stride_b = square,
             .stride_c = square});
    product({.m = rows,
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
             .beta = ops::Muon::kA,
             .stride_a = wide ? square : stride,
             .stride_b = wide ? stride : square,
             .stride_c = stride});
    std::swap(s.x, s.next);
  }

  const KernelCall& call_;
  const ops::Muon& a_;
  const Groups groups_;
  Scratch scratch_;
};

// parameter, momentum, gradient, factor[1], hyper → parameter, momentum, [parameter in bf16]
void run_muon(const KernelCall& call) {
  if (call.in_shape(0).num_elements() > 0) MuonUpdate(call).run();
}

}  // namespace
}  // namespace cuda

void register_cuda_muon(KernelTable& table);
void register_cuda_muon(KernelTable& table) {
  table.add("muon", DType::f32, DeviceKind::cuda, {.run = cuda::run_muon, .workspace = cuda::muon_workspace});
}

}  // namespace farskip
