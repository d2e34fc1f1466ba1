// SPDX-License-Identifier: Apache-2.0
// op "matmul".
#include "backend/cuda/few_rows.h"
#include "backend/cuda/product.h"
#include "farskip/backend/kernel.h"
#include "farskip/ops/ops.h"

namespace farskip {
namespace {

void run_matmul(const KernelCall& call) {
  const auto& attributes = call.get<ops::Matmul>();
  // Rows past the count hold anything, and a transposed a would sum over them.
  FARSKIP_CHECK(!attributes.transpose_a || call.input_rows.empty() || call.input_rows[0] == nullptr,
                "a product over a bounded number of rows");
  cuda::Product product;
  product.transpose_a = attributes.transpose_a;
  product.transpose_b = attributes.transpose_b;
  product.lda = call.in_shape(0).back();
  product.ldb = call.in_shape(1).back();
  product.m = call.out_shape(0).num_rows();
  product.n = product.ldc = call.out_shape(0).back();
  product.k = attributes.transpose_a ? call.in_shape(0).num_rows() : product.lda;
  product.in = call.inputs[0].dtype;
  product.out = call.outputs[0].dtype;
  product.a = call.inputs[0].data;
  product.b = call.inputs[1].data;
  product.c = call.outputs[0].data;
  if (call.has(2)) product.accumulate = call.inputs[2].data;
  const cuda::FewRowsProduct few{nullptr,   product.m, 1,
                                 product.n, product.k, product.a,
                                 product.b, product.c, product.out == DType::f32};
  if (product.in == DType::bf16 && !product.transpose_a && product.transpose_b &&
      product.accumulate == nullptr && fits_few_rows(few))
    run_few_rows(call, few);
  else
    cuda::multiply(*call.gpu, product, call.workspace);
}

}  // namespace

void register_cuda_matmul(KernelTable& table);

void register_cuda_matmul(KernelTable& table) {
  const Kernel kernel{.run = run_matmul, .workspace = [](const OpTypes&) { return cuda::kProductWorkspace; }};
  table.add("matmul", DType::f32, DeviceKind::cuda, kernel);
  table.add("matmul", DType::bf16, DeviceKind::cuda, kernel);
}

}  // namespace farskip
