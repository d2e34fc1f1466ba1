// SPDX-License-Identifier: Apache-2.0
#pragma once
// Rows copied from places to places, as bytes: what dispatch, gather, scatter, embedding and columns have in
// common.

#include <numeric>

#include "backend/cuda/launch.cuh"

namespace farskip::cuda {

/// Where a row begins: base + (index[r], or r without an index) / divisor * stride. In elements of the rows.
struct RowPlace {
  void* base = nullptr;
  std::int64_t stride = 0;
  const std::int32_t* index = nullptr;
  std::int32_t divisor = 1;
  std::int32_t limit = 0x7fffffff;  // an index outside [0, limit) stops the kernel instead of touching memory
  bool may_miss = false;            // an index of -1: that row is not copied
  // Of rows of which a part is here: indices count from `first`, and rows outside the part are not copied.
  std::int32_t first = 0, count = 0x7fffffff;
};

struct RowCopy {
  RowPlace from, to;
  std::int64_t rows = 0, width = 0;  // elements of a row
  std::size_t element_bytes = 0;
  const std::int32_t* count = nullptr;
};

template <class Word>
__device__ __forceinline__ Word* row_address(const RowPlace& place, std::int64_t row) {
  std::int32_t at = static_cast<std::int32_t>(row);
  if (place.index != nullptr) {
    at = place.index[row];
    if (place.may_miss && at == -1) return nullptr;
    if (at < 0 || at >= place.limit) __trap();
    at -= place.first;
    if (at < 0 || at >= place.count) return nullptr;
  }
  return static_cast<Word*>(place.base) + at / place.divisor * place.stride;
}

/// One row by `threads` threads, of which this one is `lane`.
template <class Word>
__device__ __forceinline__ void copy_row(const Word* from, Word* to, std::int64_t width, int lane,
                                         int threads) {
  constexpr int unroll = 4;
  std::int64_t i = lane;
  for (; i + (unroll - 1) * threads < width; i += unroll * threads) {
    Word words[unroll];
#pragma unroll
    for (int u = 0; u < unroll; ++u) words[u] = from[i + u * threads];
#pragma unroll
    for (int u = 0; u < unroll; ++u) to[i + u * threads] = words[u];
  }
  for (; i < width; i += threads) to[i] = from[i];
}

/// log2 of the threads that a row of so many words gets: at most a warp, at least two words each.
inline int log_threads_of(std::int64_t width) {
  int log_threads = 0;
  while (log_threads < 5 && (std::int64_t{2} << log_threads) <= width) ++log_threads;
  return log_threads;
}

/// Strides and width in words; 2^log_threads threads a row.
template <class Word>
__global__ void __launch_bounds__(kThreads)
    copy_rows_kernel(RowPlace from, RowPlace to, std::int64_t rows, std::int64_t width,
                     const std::int32_t* count, int log_threads) {
  const int threads = 1 << log_threads, lane = static_cast<int>(threadIdx.x) & (threads - 1);
  const std::int64_t row =
      (static_cast<std::int64_t>(blockIdx.x) << (8 - log_threads)) + (threadIdx.x >> log_threads);
  if (row >= actual_rows(rows, count)) return;
  const Word* const source = row_address<const Word>(from, row);
  Word* const target = row_address<Word>(to, row);
  if (source == nullptr || target == nullptr) return;
  copy_row(source, target, width, lane, threads);
}

template <class Word>
void copy_rows_as(const KernelCall& call, RowCopy copy) {
  const auto elements = static_cast<std::int64_t>(sizeof(Word) / copy.element_bytes);
  copy.width /= elements;
  copy.from.stride /= elements;
  copy.to.stride /= elements;
  const int log_threads = log_threads_of(copy.width);
  static_assert(kThreads == 1 << 8);
  const std::int64_t rows_per_block = kThreads >> log_threads;
  launch(call, copy_rows_kernel<Word>, grid_size(ceil_div(copy.rows, rows_per_block)), kThreads, 0, copy.from,
         copy.to, copy.rows, copy.width, copy.count, log_threads);
}

/// With the widest words that addresses, widths and strides allow.
inline void copy_rows(const KernelCall& call, const RowCopy& copy) {
  if (copy.rows == 0 || copy.width == 0) return;
  FARSKIP_CHECK(copy.rows <= 0x7fffffff, "{} rows", copy.rows);
  const auto bytes = static_cast<std::int64_t>(copy.element_bytes);
  std::int64_t common =
      std::gcd(std::gcd(copy.width * bytes, copy.from.stride * bytes), copy.to.stride * bytes);
  common = std::gcd(common, static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(copy.from.base) % 16));
  common = std::gcd(common, static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(copy.to.base) % 16));
  if (common % 16 == 0) return copy_rows_as<uint4>(call, copy);
  if (common % 8 == 0) return copy_rows_as<uint2>(call, copy);
  if (common % 4 == 0) return copy_rows_as<unsigned>(call, copy);
  FARSKIP_CHECK(common % 2 == 0, "rows of elements of {} bytes", bytes);
  copy_rows_as<unsigned short>(call, copy);
}

/// Of a column in the first row.
inline std::byte* column_address(const TensorView& matrix, std::int64_t column) {
  return matrix.as<std::byte>() + column * static_cast<std::int64_t>(dtype_size(matrix.dtype));
}

}  // namespace farskip::cuda
