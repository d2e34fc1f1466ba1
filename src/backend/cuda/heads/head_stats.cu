// SPDX-License-Identifier: Apache-2.0
// Cross-entropy over a vocabulary that is cut over ranks: what a part says of each token ("head_stats"), and
// the losses of all parts together.
#include "backend/cuda/heads/loss_rows.cuh"

namespace farskip {
namespace cuda {
namespace {

constexpr int kSums = int(ops::kNumHeadSums), kFixed = int(ops::kNumHeadFixed);

/// One block has one token: its HeadStats, or (kGradient) its row of logits becomes the gradient of its sums.
/// A target outside the vocabulary, which no data has, makes the loss NaN.
template <class Logit, bool kGradient>
__global__ void __launch_bounds__(kMaxThreads)
    finish_part(Logit* logits, RowProblem p, const float* dsums, float* sums, float* fixed) {
  extern __shared__ uint4 cache_memory[];
  using V = Vector<Logit>;
  const std::int64_t token = blockIdx.x;
  V* row = reinterpret_cast<V*>(logits + token * p.leading);
  V* cache = kGradient && p.cached ? reinterpret_cast<V*>(cache_memory) : nullptr;
  const std::int64_t target = p.targets[token], place = target - p.first;
  if (target < 0 || target >= p.of) {
    if (kGradient) clear_row(row, p);
    if (!kGradient && threadIdx.x < kSums) sums[token * kSums + threadIdx.x] = target < 0 ? 0.0F : NAN;
    if (!kGradient && threadIdx.x < kFixed) fixed[token * kFixed + threadIdx.x] = 0.0F;
    return;
  }
  const bool here = place >= 0 && place < p.vocabulary;
  const float target_logit = here ? to_float(logits[token * p.leading + place]) : 0.0F;
  const Partial total = read_row(row, cache, p);
  if (!kGradient && threadIdx.x == 0) {
    const double lse = double(total.max) + log(double(total.sum));
    sums[token * kSums] = float(lse);
    sums[token * kSums + 1] = target_logit;
    fixed[token * kFixed] = total.max;
    fixed[token * kFixed + 1] = float(lse - double(float(lse)));
  }
  if (kGradient)
    scale_softmax(row, cache, p, total, dsums[token * kSums], here ? place : -1, dsums[token * kSums + 1]);
}

RowProblem part_problem(const ops::VocabularyPart& part, const Blocks& blocks, const std::int32_t* targets) {
  return {part.own(blocks.vocabulary).count, blocks.leading, targets, false, part.first,
          part.size(blocks.vocabulary)};
}

// h[T, H], w[V', H], targets → (sums[T, 2], fixed[T, 2])
void run_head_stats(const KernelCall& call) {
  run_forward(call, [&](const Blocks& blocks, const Buffers& buffers, std::int64_t t, std::int64_t rows) {
    const float* const no_gradient = nullptr;
    launch_rows<float>(*call.gpu, finish_part<float, false>, blocks, rows, false, buffers.logits,
                       part_problem(call.get<ops::VocabularyPart>(), blocks, call.in<std::int32_t>(2) + t),
                       no_gradient, call.out(0) + t * kSums, call.out(1) + t * kFixed);
  });
}

// dsums[T, 2], h, w, targets, [accumulate dw] → (dh, dw)
template <class Logit>
void run_gradient_of(const KernelCall& call) {
  const TensorView &h = call.inputs[1], &w = call.inputs[2];
  const Blocks blocks(h.shape[0], w.shape[0], h.dtype);
  const Buffers buffers(call.workspace, blocks);
  run_gradient(*call.gpu, blocks, buffers, h, w, call.has(4) ? call.inputs[4].data : nullptr, call.outputs[0],
               call.outputs[1], [&](std::int64_t t, std::int64_t rows) {
                 float* const no_stats = nullptr;
                 launch_rows<Logit>(
                     *call.gpu, finish_part<Logit, true>, blocks, rows, true, buffers.logits,
                     part_problem(call.get<ops::VocabularyPart>(), blocks, call.in<std::int32_t>(3) + t),
                     call.in(0) + t * kSums, no_stats, no_stats);
               });
}

void run_head_stats_grad(const KernelCall& call) {
  if (call.inputs[1].dtype == DType::bf16)
    run_gradient_of<bf16>(call);
  else
    run_gradient_of<float>(call);
}

// ---- all parts together ----------------------------------------------------------------------------------

/// sums[P·T, 2], fixed[P·T, 2] and targets[T], from input `first` of a call on.
struct Joint {
  const float *sums, *fixed;
  const std::int32_t* targets;
  std::int64_t tokens, parts, rows;

  Joint(const KernelCall& call, std::size_t first)
      : sums(call.in(first)),
        fixed(call.in(first + 1)),
        targets(call.in<std::int32_t>(first + 2)),
        tokens(call.in_shape(first + 2)[0]),
        parts(tokens == 0 ? 0 : call.in_shape(first)[0] / tokens),
        rows(call.get<ops::JointParts>().rows) {}

  __device__ double lse_of(std::int64_t part, std::int64_t token) const {
    const std::int64_t at = part * tokens + token;
    return double(sums[at * kSums]) + double(fixed[at * kFixed + 1]);
  }
  __device__ float max(std::int64_t part, std::int64_t token) const {
    return fixed[(part * tokens + token) * kFixed];
  }
  __device__ float target_logit(std::int64_t token) const {
    return sums[(targets[token] / rows * tokens + token) * kSums + 1];
  }
  /// log Σ exp over all parts.
  __device__ double lse(std::int64_t token) const {
    double top = -INFINITY, sum = 0.0;
    for (std::int64_t p = 0; p < parts; ++p) top = fmax(top, lse_of(p, token));
    for (std::int64_t p = 0; p < parts; ++p) sum += exp(lse_of(p, token) - top);
    return top + log(sum);
  }
};

/// One thread a token.
__global__ void __launch_bounds__(kThreads) join_tokens(Joint joint, TokenResults results) {
  const std::int64_t token = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (token >= joint.tokens) return;
  const std::int64_t target = joint.targets[token];
  double loss = 0.0;
  bool correct = false;
  if (target >= joint.parts * joint.rows) {
    loss = NAN;
  } else if (target >= 0) {
    const float chosen = joint.target_logit(token);
    loss = joint.lse(token) - double(chosen);
    correct = true;
    for (std::int64_t p = 0; correct && p < joint.parts; ++p) correct = chosen >= joint.max(p, token);
  }
  results.loss[token] = loss;
  results.correct[token] = correct ? 1 : 0;
}

/// One thread a token of a part.
__global__ void __launch_bounds__(kThreads)
    differentiate_parts(Joint joint, const float* dloss, float* dsums) {
  const std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= joint.parts * joint.tokens) return;
  const std::int64_t part = i / joint.tokens, token = i % joint.tokens, target = joint.targets[token];
  const bool counted = target >= 0;
  dsums[i * kSums] = counted ? *dloss * float(exp(joint.lse_of(part, token) - joint.lse(token))) : 0.0F;
  dsums[i * kSums + 1] = counted && target / joint.rows == part ? -*dloss : 0.0F;
}

std::size_t joint_workspace(const OpTypes& types) {
  return static_cast<std::size_t>(types.shape(2)[0]) * (sizeof(double) + sizeof(std::int32_t));
}

TokenResults join(const KernelCall& call) {
  const Joint joint(call, 0);
  auto* const loss = reinterpret_cast<double*>(call.workspace.data());
  const TokenResults results{loss, reinterpret_cast<std::int32_t*>(loss + joint.tokens)};
  launch(call, join_tokens, grid_size(ceil_div(joint.tokens, kThreads)), kThreads, 0, joint, results);
  return results;
}

void run_joint_cross_entropy(const KernelCall& call) {
  launch_sum(*call.gpu, join(call), call.in_shape(2)[0], call.out(0), call.out<std::int32_t>(1));
}

void run_joint_token_losses(const KernelCall& call) {
  const TokenResults results = join(call);
  const std::int64_t tokens = call.in_shape(2)[0];
  launch(call, store_losses, grid_size(ceil_div(tokens, kThreads)), kThreads, 0,
         static_cast<const double*>(results.loss), tokens, call.out(0));
}

void run_joint_cross_entropy_grad(const KernelCall& call) {
  const Joint joint(call, 1);
  launch(call, differentiate_parts, grid_size(ceil_div(joint.parts * joint.tokens, kThreads)), kThreads, 0,
         joint, call.in(0), call.out(0));
}

}  // namespace
}  // namespace cuda

void register_cuda_head_stats(KernelTable& table);

void register_cuda_head_stats(KernelTable& table) {
  for (const DType dtype : {DType::f32, DType::bf16})
    table.add("head_stats", dtype, DeviceKind::cuda,
              {.run = cuda::run_head_stats, .workspace = [](const OpTypes& types) {
                 return cuda::Blocks(types.shape(0)[0], types.shape(1)[0], DType::f32).bytes();
               }});
  const auto add = [&](std::string_view op, void (*run)(const KernelCall&),
                       std::size_t (*workspace)(const OpTypes&)) {
    table.add(op, DType::f32, DeviceKind::cuda, {.run = run, .workspace = workspace});
  };
  add("head_stats_grad", cuda::run_head_stats_grad, [](const OpTypes& types) {
    return cuda::Blocks(types.shape(1)[0], types.shape(2)[0], types.in(1).dtype).bytes();
  });
  add("joint_cross_entropy", cuda::run_joint_cross_entropy, cuda::joint_workspace);
  add("joint_token_losses", cuda::run_joint_token_losses, cuda::joint_workspace);
  add("joint_cross_entropy_grad", cuda::run_joint_cross_entropy_grad, nullptr);
}

}  // namespace farskip
