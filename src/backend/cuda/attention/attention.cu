// SPDX-License-Identifier: Apache-2.0
// ops "attention" and "attention_grad": cuDNN for bf16 where it has a plan, kernels of our own for all else.
#include <algorithm>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/launch.cuh"
#include "farskip/ops/ops.h"

namespace farskip {
namespace cuda {
namespace {

AttentionProblem problem_of(const AttentionSizes& sizes, DType dtype, bool deterministic) {
  AttentionProblem p{sizes, dtype, deterministic};
  // Chunks that fill a sequence are sequences of their own.
  if (p.chunk > 0 && p.length % p.chunk == 0 && p.document_start == nullptr) {
    p.sequences *= p.length / p.chunk;
    p.length = p.chunk;
  }
  if (p.chunk >= p.length) p.chunk = 0;
  return p;
}

AttentionProblem problem_of(const OpTypes& types, std::size_t q) {
  const auto& a = types.get<ops::Attention>();
  return problem_of(attention_sizes(a, types.shape(q), types.shape(q + 2), nullptr), types.in(q).dtype,
                    a.deterministic);
}

AttentionProblem problem_of(const KernelCall& call, std::size_t q, std::size_t document_start) {
  const auto& a = call.get<ops::Attention>();
  return problem_of(
      attention_sizes(a, call.in_shape(q), call.in_shape(q + 2),
                      call.has(document_start) ? call.in<std::int32_t>(document_start) : nullptr),
      call.inputs[q].dtype, a.deterministic);
}

// ---- lse: [tokens, heads] in the graph, [sequences, heads, length] in cuDNN ----------------------

constexpr int kTransposeTile = 32;

/// to[s][c][r] = from[s][r][c] for matrices of rows x columns.
__global__ void transpose_matrices(const float* from, float* to, std::int64_t rows, std::int64_t columns) {
  __shared__ float tile[kTransposeTile][kTransposeTile + 1];
  const std::int64_t first = std::int64_t(blockIdx.x) * rows * columns;
  const std::int64_t row0 = std::int64_t(blockIdx.y) * kTransposeTile,
                     column0 = std::int64_t(blockIdx.z) * kTransposeTile;
  const int x = int(threadIdx.x);
  for (int y = int(threadIdx.y); y < kTransposeTile; y += int(blockDim.y))
    if (row0 + y < rows && column0 + x < columns)
      tile[y][x] = from[first + (row0 + y) * columns + column0 + x];
  __syncthreads();
  for (int y = int(threadIdx.y); y < kTransposeTile; y += int(blockDim.y))
    if (column0 + y < columns && row0 + x < rows) to[first + (column0 + y) * rows + row0 + x] = tile[x][y];
}

void transpose(const LaunchContext& gpu, const float* from, float* to, std::int64_t matrices,
               std::int64_t rows, std::int64_t columns) {
  const auto tiles = [](std::int64_t n) { return unsigned(ceil_div(n, kTransposeTile)); };
  transpose_matrices<<<dim3(unsigned(matrices), tiles(rows), tiles(columns)), dim3(kTransposeTile, 8), 0,
                       gpu.stream>>>(from, to, rows, columns);
  FARSKIP_CUDA_CHECK_LAUNCH();
}

std::size_t lse_bytes(const AttentionProblem& p) {
  return (static_cast<std::size_t>(p.tokens() * p.heads) * sizeof(float) + 255) / 256 * 256;
}

/// The workspace begins with lse as cuDNN has it.
struct Scratch {
  float* lse;
  std::span<std::byte> rest;

  Scratch(std::span<std::byte> workspace, const AttentionProblem& p) {
    FARSKIP_CHECK(workspace.size() >= lse_bytes(p), "workspace of {} bytes", workspace.size());
    lse = reinterpret_cast<float*>(workspace.data());
    rest = workspace.subspan(lse_bytes(p));
  }
};

// ---- ops -----------------------------------------------------------------------------------------

void run_attention(const KernelCall& call) {
  const AttentionProblem p = problem_of(call, 0, 3);
  if (p.tokens() == 0) return;
  AttentionForward tensors{call.inputs[0].data, call.inputs[1].data, call.inputs[2].data,
                           call.outputs[0].data, call.out(1)};
  if (may_use_cudnn(p)) {
    const Scratch scratch(call.workspace, p);
    AttentionForward library = tensors;
    library.lse = scratch.lse;
    if (run_cudnn_attention(*call.gpu, p, library, scratch.rest))
      return transpose(*call.gpu, scratch.lse, tensors.lse, p.sequences, p.heads, p.length);
  }
  run_plain_attention(*call.gpu, p, tensors);
}

void run_attention_grad(const KernelCall& call) {
  const AttentionProblem p = problem_of(call, 1, 6);
  if (p.tokens() == 0) return;
  AttentionBackward tensors{call.inputs[0].data,  call.inputs[1].data,  call.inputs[2].data,
                            call.inputs[3].data,  call.inputs[4].data,  call.in(5),
                            call.outputs[0].data, call.outputs[1].data, call.outputs[2].data};
  if (may_use_cudnn(p)) {
    const Scratch scratch(call.workspace, p);
    if (AttentionPlan* plan = find_cudnn_attention_backward(*call.gpu, p, scratch.rest.size())) {
      AttentionBackward library = tensors;
      library.lse = scratch.lse;
      transpose(*call.gpu, tensors.lse, scratch.lse, p.sequences, p.length, p.heads);
      return run_cudnn_attention_backward(*call.gpu, *plan, p, library, scratch.rest);
    }
  }
  run_plain_attention_backward(*call.gpu, p, tensors, call.workspace);
}

std::size_t attention_workspace(const OpTypes& types) {
  const AttentionProblem p = problem_of(types, 0);
  return may_use_cudnn(p) && !types.has(3) ? lse_bytes(p) + cudnn_attention_workspace(p) : 0;
}

std::size_t attention_grad_workspace(const OpTypes& types) {
  const AttentionProblem p = problem_of(types, 1);
  const std::size_t plain = plain_attention_backward_workspace(p);
  if (!may_use_cudnn(p) || types.has(6)) return plain;
  return std::max(plain, lse_bytes(p) + cudnn_attention_backward_workspace(p));
}

}  // namespace
}  // namespace cuda

void register_cuda_attention(KernelTable& table);

void register_cuda_attention(KernelTable& table) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    table.add("attention", dtype, DeviceKind::cuda,
              {.run = cuda::run_attention, .workspace = cuda::attention_workspace});
    table.add("attention_grad", dtype, DeviceKind::cuda,
              {.run = cuda::run_attention_grad, .workspace = cuda::attention_grad_workspace});
  }
}

}  // namespace farskip
