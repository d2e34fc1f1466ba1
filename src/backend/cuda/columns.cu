// SPDX-License-Identifier: Apache-2.0
// Cuts the columns of a matrix apart, and joins them.
#include "backend/cuda/copy_rows.cuh"

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

}  // namespace
}  // namespace cuda

void register_cuda_columns(KernelTable& table);
void register_cuda_columns(KernelTable& table) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    table.add("split_columns", dtype, DeviceKind::cuda, {.run = cuda::run_split_columns});
    table.add("concat_columns", dtype, DeviceKind::cuda, {.run = cuda::run_concat_columns});
  }
}

}  // namespace farskip
