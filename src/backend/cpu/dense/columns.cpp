// SPDX-License-Identifier: Apache-2.0
// Cuts the columns of a matrix apart, and joins them.
#include <algorithm>
#include <cstring>

#include "backend/cpu/parallel.h"
#include "backend/cpu/reduce.h"
#include "farskip/backend/kernel.h"
#include "farskip/ops/ops.h"

namespace farskip {
namespace {

/// Calls copy(row, part, first column of the part, its width) for every row and part of a matrix `total`
/// columns wide.
template <class Copy>
void for_each_piece(std::span<const TensorView> parts, std::int64_t rows, std::int64_t total,
                    const Copy& copy) {
  cpu::parallel_ranges(rows, cpu::rows_per_tile(total), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      std::int64_t first = 0;
      for (const TensorView& part : parts) {
        const std::int64_t width = part.shape.back();
        copy(part.as<float>() + t * width, t * total + first,
             static_cast<std::size_t>(width) * sizeof(float));
        first += width;
      }
    }
  });
}

void run_split_columns(const KernelCall& call) {
  const float* x = call.in(0);
  const auto copy = [&](float* part, std::int64_t at, std::size_t bytes) {
    std::memcpy(part, x + at, bytes);
  };
  for_each_piece(call.outputs, call.in_shape(0)[0], call.in_shape(0)[1], copy);
}

void run_concat_columns(const KernelCall& call) {
  float* out = call.out(0);
  const auto copy = [&](const float* part, std::int64_t at, std::size_t bytes) {
    std::memcpy(out + at, part, bytes);
  };
  for_each_piece(call.inputs, call.out_shape(0)[0], call.out_shape(0)[1], copy);
}

// x[T, of] → [T, count], or the other way, where all other columns are 0
void run_take_columns(const KernelCall& call) {
  const auto& a = call.get<ops::ColumnRange>();
  const float* x = call.in(0) + a.first;
  float* out = call.out(0);
  cpu::parallel_ranges(call.in_shape(0)[0], cpu::rows_per_tile(a.count),
                       [&](std::int64_t begin, std::int64_t end) {
                         for (std::int64_t t = begin; t < end; ++t)
                           std::copy_n(x + t * a.of, a.count, out + t * a.count);
                       });
}
void run_place_columns(const KernelCall& call) {
  const auto& a = call.get<ops::ColumnRange>();
  const float* x = call.in(0);
  float* out = call.out(0);
  cpu::parallel_ranges(call.in_shape(0)[0], cpu::rows_per_tile(a.of),
                       [&](std::int64_t begin, std::int64_t end) {
                         std::fill(out + begin * a.of, out + end * a.of, 0.0F);
                         for (std::int64_t t = begin; t < end; ++t)
                           std::copy_n(x + t * a.count, a.count, out + t * a.of + a.first);
                       });
}

void run_side_by_side(const KernelCall& call) {
  const std::int64_t rows = call.out_shape(0)[0], columns = call.out_shape(0)[1], width = call.in_shape(0)[1];
  const float* x = call.in(0);
  float* out = call.out(0);
  cpu::parallel_ranges(rows, cpu::rows_per_tile(columns), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t)
      for (std::int64_t first = 0; first < columns; first += width)
        std::copy_n(x + (first / width * rows + t) * width, std::min(width, columns - first),
                    out + t * columns + first);
  });
}

}  // namespace

void register_columns(KernelTable& table);
void register_columns(KernelTable& table) {
  table.add("split_columns", DType::f32, DeviceKind::cpu, {.run = run_split_columns, .workspace = nullptr});
  table.add("take_columns", DType::f32, DeviceKind::cpu, {.run = run_take_columns, .workspace = nullptr});
  table.add("place_columns", DType::f32, DeviceKind::cpu, {.run = run_place_columns, .workspace = nullptr});
  table.add("concat_columns", DType::f32, DeviceKind::cpu, {.run = run_concat_columns, .workspace = nullptr});
  table.add("side_by_side", DType::f32, DeviceKind::cpu, {.run = run_side_by_side, .workspace = nullptr});
}

}  // namespace farskip
