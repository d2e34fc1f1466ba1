// SPDX-License-Identifier: Apache-2.0
// Cuts the rows of a tensor apart, and joins them.
#include "backend/cuda/copy_rows.cuh"

namespace farskip {
namespace cuda {
namespace {

void copy_part(const KernelCall& call, std::byte* to, std::byte* from, const TensorView& part) {
  const std::int64_t width = row_size(part.shape);
  copy_rows(call, {.from = {.base = from, .stride = width},
                   .to = {.base = to, .stride = width},
                   .rows = row_count(part.shape),
                   .width = width,
                   .element_bytes = dtype_size(part.dtype)});
}

void run_split_rows(const KernelCall& call) {
  auto* from = call.inputs[0].as<std::byte>();
  for (const TensorView& part : call.outputs) {
    copy_part(call, part.as<std::byte>(), from, part);
    from += part.num_bytes();
  }
}

void run_concat_rows(const KernelCall& call) {
  auto* to = call.outputs[0].as<std::byte>();
  for (const TensorView& part : call.inputs) {
    copy_part(call, to, part.as<std::byte>(), part);
    to += part.num_bytes();
  }
}

}  // namespace
}  // namespace cuda

void register_cuda_rows(KernelTable& table);
void register_cuda_rows(KernelTable& table) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::i32}) {
    table.add("split_rows", dtype, DeviceKind::cuda, {.run = cuda::run_split_rows});
    table.add("concat_rows", dtype, DeviceKind::cuda, {.run = cuda::run_concat_rows});
  }
}

}  // namespace farskip
