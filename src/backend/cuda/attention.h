#pragma once
// Causal attention, forward and backward: what the two implementations share.

#include <cstddef>
#include <cstdint>
#include <span>

#include "farskip/backend/cuda/context.h"
#include "farskip/tensor/dtype.h"

namespace farskip::cuda {

/// Heads lie in rows: q [tokens, heads * d], k [tokens, kv_heads * d], v [tokens, kv_heads * dv], out like q
/// with dv.
struct AttentionProblem {
  std::int64_t sequences = 0, length = 0, heads = 0, kv_heads = 0, d = 0, dv = 0;
  std::int64_t chunk = 0;  // > 0: position i sees [i - i mod chunk, i] only
  float scale = 1.0F;
  DType dtype = DType::f32;  // of all but lse
  const std::int32_t* document_start = nullptr;

  std::int64_t tokens() const { return sequences * length; }
};

/// lse [tokens, heads], natural logarithm, f32.
struct AttentionForward {
  const void *q, *k, *v;
  void* out;
  float* lse;
};
struct AttentionBackward {
  const void *dout, *q, *k, *v, *out;
  const float* lse;
  void *dq, *dk, *dv;
};

// ---- attention_plain_forward.cu, attention_plain_backward.cu: every type, size and mask, on the ordinary
// cores; both directions deterministic. Head sizes up to 512.

std::size_t plain_attention_backward_workspace(const AttentionProblem& problem);
void run_plain_attention(const LaunchContext& gpu, const AttentionProblem& problem,
                         const AttentionForward& tensors);
void run_plain_attention_backward(const LaunchContext& gpu, const AttentionProblem& problem,
                                  const AttentionBackward& tensors, std::span<std::byte> workspace);

// ---- attention_cudnn.cpp: bf16, chunk 0, no documents. lse here is [sequences, heads, length], as cuDNN has
// it.

/// Whether cuDNN is worth asking; the planner asks too, without a GPU.
bool may_use_cudnn(const AttentionProblem& problem);
std::size_t cudnn_attention_workspace(const AttentionProblem& problem);
std::size_t cudnn_attention_backward_workspace(const AttentionProblem& problem);
/// False, and nothing was done, where this version of cuDNN has no plan for the problem.
bool run_cudnn_attention(const LaunchContext& gpu, const AttentionProblem& problem,
                         const AttentionForward& tensors, std::span<std::byte> workspace);
bool run_cudnn_attention_backward(const LaunchContext& gpu, const AttentionProblem& problem,
                                  const AttentionBackward& tensors, std::span<std::byte> workspace);

}  // namespace farskip::cuda
