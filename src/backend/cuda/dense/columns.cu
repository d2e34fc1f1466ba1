// SPDX-License-Identifier: Apache-2.0
// Cuts the columns of a matrix apart, and joins them.
#include "backend/cuda/copy_rows.cuh"
#include "farskip/ops/ops.h"

namespace farskip {
namespace cuda {
namespace {

void run_split_columns(const KernelCall& call) {
  const TensorView& x = call.inputs[0];
  std::int64_t first = 0;
  for (const TensorView& part : call.outputs) {
    const std::int64_t width = part.shape[1];
    copy_rows(call, {.from = {.base = column_address(x, first), .stride = x.shape[1]},
                     .to = {.base = part.data, .stride = width},
                     .rows = x.shape[0],
                     .width = width,
                     .element_bytes = dtype_size(x.dtype),
                     .count = input_count(call, 0)});
    first += width;
  }
}

void run_concat_columns(const KernelCall& call) {
  const TensorView& out = call.outputs[0];
  std::int64_t first = 0;
  for (const TensorView& part : call.inputs) {
    const std::int64_t width = part.shape[1];
    copy_rows(call, {.from = {.base = part.data, .stride = width},
                     .to = {.base = column_address(out, first), .stride = out.shape[1]},
                     .rows = out.shape[0],
                     .width = width,
                     .element_bytes = dtype_size(out.dtype),
                     .count = input_count(call, 0)});
    first += width;
  }
}

void run_take_columns(const KernelCall& call) {
  const auto& a = call.get<ops::ColumnRange>();
  const TensorView &x = call.inputs[0], &out = call.outputs[0];
  copy_rows(call, {.from = {.base = column_address(x, a.first), .stride = a.of},
                   .to = {.base = out.data, .stride = a.count},
                   .rows = x.shape[0],
                   .width = a.count,
                   .element_bytes = dtype_size(x.dtype),
                   .count = input_count(call, 0)});
}

void run_place_columns(const KernelCall& call) {
  const auto& a = call.get<ops::ColumnRange>();
  const TensorView &x = call.inputs[0], &out = call.outputs[0];
  FARSKIP_CUDA_CHECK(cudaMemsetAsync(out.data, 0, out.num_bytes(), call.gpu->stream));
  copy_rows(call, {.from = {.base = x.data, .stride = a.count},
                   .to = {.base = column_address(out, a.first), .stride = a.of},
                   .rows = x.shape[0],
                   .width = a.count,
                   .element_bytes = dtype_size(x.dtype),
                   .count = input_count(call, 0)});
}

void run_side_by_side(const KernelCall& call) {
  const TensorView &x = call.inputs[0], &out = call.outputs[0];
  const std::int64_t rows = out.shape[0], columns = out.shape[1], width = x.shape[1];
  for (std::int64_t first = 0; first < columns; first += width)
    copy_rows(call, {.from = {.base = column_address(x, first / width * rows * width), .stride = width},
                     .to = {.base = column_address(out, first), .stride = columns},
                     .rows = rows,
                     .width = std::min(width, columns - first),
                     .element_bytes = dtype_size(x.dtype)});
}

}  // namespace
}  // namespace cuda

void register_cuda_columns(KernelTable& table);
void register_cuda_columns(KernelTable& table) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    table.add("split_columns", dtype, DeviceKind::cuda, {.run = cuda::run_split_columns});
    table.add("take_columns", dtype, DeviceKind::cuda, {.run = cuda::run_take_columns});
    table.add("place_columns", dtype, DeviceKind::cuda, {.run = cuda::run_place_columns});
    table.add("concat_columns", dtype, DeviceKind::cuda, {.run = cuda::run_concat_columns});
  }
  table.add("side_by_side", DType::f32, DeviceKind::cuda, {.run = cuda::run_side_by_side});
}

}  // namespace farskip
