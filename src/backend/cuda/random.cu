// SPDX-License-Identifier: Apache-2.0
#include <numbers>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/random.h"

namespace farskip::cuda {
namespace {

/// A thread makes one block of the generator, draws 2 * block and 2 * block + 1, in f64 as the host does.
template <class T>
__global__ void __launch_bounds__(kThreads)
    fill_normal_kernel(T* out, std::int64_t n, std::uint64_t seed, std::uint64_t stream, std::uint64_t first,
                       double stddev) {
  const std::uint64_t block = first / 2 + static_cast<std::uint64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t even = static_cast<std::int64_t>(2 * block - first);  // -1 where the first draw is odd
  if (even >= n) return;
  const auto bits = uniform_bits(seed, stream, block);
  const double radius = sqrt(-2.0 * log(1.0 - to_unit(bits[0])));
  double sine = 0.0, cosine = 0.0;
  sincos(2.0 * std::numbers::pi * to_unit(bits[1]), &sine, &cosine);
  if (even >= 0) store_one(out + even, static_cast<float>(stddev * (radius * cosine)));
  if (even + 1 < n) store_one(out + even + 1, static_cast<float>(stddev * (radius * sine)));
}

/// Element i of rows that begin `stride` draws behind each other. A thread makes the generator's block for
/// one draw alone.
template <class T>
__global__ void __launch_bounds__(kThreads)
    fill_normal_rows_kernel(T* out, std::int64_t n, NormalNumbers numbers) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const std::int64_t row = i / numbers.row_length;
  const std::uint64_t draw =
      numbers.first + static_cast<std::uint64_t>(row * numbers.row_stride + i % numbers.row_length);
  const auto bits = uniform_bits(numbers.seed, numbers.stream, draw / 2);
  const double radius = sqrt(-2.0 * log(1.0 - to_unit(bits[0])));
  double sine = 0.0, cosine = 0.0;
  sincos(2.0 * std::numbers::pi * to_unit(bits[1]), &sine, &cosine);
  store_one(out + i, static_cast<float>(numbers.stddev * (radius * (draw % 2 == 0 ? cosine : sine))));
}

}  // namespace

void fill_normal(const LaunchContext& context, const TensorView& to, const NormalNumbers& numbers) {
  const std::int64_t n = to.num_elements();
  const std::int64_t blocks = n / 2 + 1;  // of the generator, of which the first and last may be cut
  with_element_type(to.dtype, [&](auto element) {
    using T = decltype(element);
    if (numbers.row_length > 0)
      return launch(context.stream, fill_normal_rows_kernel<T>, grid_size(ceil_div(n, kThreads)), kThreads, 0,
                    to.as<T>(), n, numbers);
    launch(context.stream, fill_normal_kernel<T>, grid_size(ceil_div(blocks, kThreads)), kThreads, 0,
           to.as<T>(), n, numbers.seed, numbers.stream, numbers.first, numbers.stddev);
  });
}

}  // namespace farskip::cuda
