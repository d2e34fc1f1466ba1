// SPDX-License-Identifier: Apache-2.0
// ops "linear_cross_entropy" and its gradient: the logits of one block of tokens at a time.
//
// The gradient keeps bf16 logits where the products are bf16: one kernel turns them into their gradient in
// place, as bf16, which is what the two products after it read anyway. Logits in f32 would cost twice the
// bytes of the one step here that is bound by bytes. The forward alone, which evaluation runs, has f32 logits
// in both cases.
#include "backend/cuda/heads/loss_rows.cuh"

namespace farskip {
namespace cuda {
namespace {

/// Loss of one token, and (kGradient) its row of logits becomes dloss * (softmax - one-hot of the target),
/// zeros where the token is not counted. A target outside the vocabulary, which no data has, makes the loss
/// NaN.
template <class Logit, bool kGradient>
__global__ void __launch_bounds__(kMaxThreads)
    finish_tokens(Logit* logits, RowProblem p, const float* dloss, TokenResults results) {
  extern __shared__ uint4 cache_memory[];
  using V = Vector<Logit>;
  const std::int64_t token = blockIdx.x;
  V* row = reinterpret_cast<V*>(logits + token * p.leading);
  V* cache = kGradient && p.cached ? reinterpret_cast<V*>(cache_memory) : nullptr;
  const std::int64_t target = p.targets[token];
  if (target < 0 || target >= p.vocabulary) {
    if (kGradient) clear_row(row, p);
    if (threadIdx.x == 0) {
      results.loss[token] = target < 0 ? 0.0 : double(NAN);
      results.correct[token] = 0;
    }
    return;
  }
  const float target_logit = to_float(logits[token * p.leading + target]);  // read before it is overwritten
  const Partial total = read_row(row, cache, p);
  if (threadIdx.x == 0) {
    results.loss[token] = double(total.max) + log(double(total.sum)) - double(target_logit);
    results.correct[token] = target_logit >= total.max ? 1 : 0;
  }
  if (kGradient) scale_softmax(row, cache, p, total, *dloss, target, -*dloss);
}

template <class Logit, bool kGradient>
void launch_finish(const LaunchContext& gpu, const Blocks& blocks, const Buffers& buffers, std::int64_t first,
                   std::int64_t rows, const std::int32_t* targets, const float* dloss) {
  launch_rows<Logit>(gpu, finish_tokens<Logit, kGradient>, blocks, rows, kGradient, buffers.logits,
                     RowProblem{blocks.vocabulary, blocks.leading, targets + first, false}, dloss,
                     TokenResults{buffers.results.loss + first, buffers.results.correct + first});
}

// ---- ops -----------------------------------------------------------------------------------------

/// The results of each token, in the workspace.
Buffers compute_losses(const KernelCall& call) {
  return run_forward(
      call, [&](const Blocks& blocks, const Buffers& buffers, std::int64_t t, std::int64_t rows) {
        launch_finish<float, false>(*call.gpu, blocks, buffers, t, rows, call.in<std::int32_t>(2), nullptr);
      });
}

void run_linear_cross_entropy(const KernelCall& call) {
  const Buffers buffers = compute_losses(call);
  launch_sum(*call.gpu, buffers.results, call.in_shape(0)[0], call.out(0), call.out<std::int32_t>(1));
}

void run_token_losses(const KernelCall& call) {
  const Buffers buffers = compute_losses(call);
  const std::int64_t tokens = call.in_shape(0)[0];
  launch(call, store_losses, dim3(grid_size(ceil_div(tokens, kMaxThreads))), dim3(kMaxThreads), 0,
         buffers.results.loss, tokens, call.out(0));
}

void run_linear_cross_entropy_grad(const KernelCall& call) {
  const TensorView &h = call.inputs[1], &w = call.inputs[2];
  const Blocks blocks(h.shape[0], w.shape[0], h.dtype);
  const Buffers buffers(call.workspace, blocks);
  const auto finish = h.dtype == DType::bf16 ? launch_finish<bf16, true> : launch_finish<float, true>;
  run_gradient(*call.gpu, blocks, buffers, h, w, call.has(4) ? call.inputs[4].data : nullptr, call.outputs[2],
               call.outputs[3], [&](std::int64_t t, std::int64_t rows) {
                 finish(*call.gpu, blocks, buffers, t, rows, call.in<std::int32_t>(3), call.in(0));
               });
  launch_sum(*call.gpu, buffers.results, blocks.tokens, call.out(0), call.out<std::int32_t>(1));
}

}  // namespace
}  // namespace cuda

void register_cuda_loss(KernelTable& table);

void register_cuda_loss(KernelTable& table) {
  const auto forward_workspace = [](const OpTypes& types) {
    return cuda::Blocks(types.shape(0)[0], types.shape(1)[0], DType::f32).bytes();
  };
  for (const DType dtype : {DType::f32, DType::bf16}) {
    table.add("linear_cross_entropy", dtype, DeviceKind::cuda,
              {.run = cuda::run_linear_cross_entropy, .workspace = forward_workspace});
    table.add("token_losses", dtype, DeviceKind::cuda,
              {.run = cuda::run_token_losses, .workspace = forward_workspace});
  }
  // Its first floating-point input is dloss, f32 whatever h is.
  table.add("linear_cross_entropy_grad", DType::f32, DeviceKind::cuda,
            {.run = cuda::run_linear_cross_entropy_grad, .workspace = [](const OpTypes& types) {
               return cuda::Blocks(types.shape(1)[0], types.shape(2)[0], types.in(1).dtype).bytes();
             }});
}

}  // namespace farskip
