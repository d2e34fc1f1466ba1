// SPDX-License-Identifier: Apache-2.0
#pragma once
// Causal attention, forward and backward: what the two implementations share.

#include <cstddef>
#include <cstdint>
#include <span>

#include "backend/attention_sizes.h"
#include "backend/cuda/context.h"

namespace farskip::cuda {

/// out lies like q, with dv. document_start is on the device.
struct AttentionProblem : AttentionSizes {
  DType dtype = DType::f32;   // of all but lse
  bool deterministic = true;  // false: the backward may add in an order of its own in each run
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
/// Of one sequence, or of more where little over 1 GiB has room for them.
std::size_t cudnn_attention_backward_workspace(const AttentionProblem& problem);
/// False, and nothing was done, where this version of cuDNN has no plan for the problem.
bool run_cudnn_attention(const LaunchContext& gpu, const AttentionProblem& problem,
                         const AttentionForward& tensors, std::span<std::byte> workspace);
struct AttentionPlan;
/// nullptr where this version of cuDNN has no plan for the problem.
AttentionPlan* find_cudnn_attention_backward(const LaunchContext& gpu, const AttentionProblem& problem,
                                             std::size_t workspace_bytes);
/// `plan`: found for the same problem and size of the workspace.
void run_cudnn_attention_backward(const LaunchContext& gpu, AttentionPlan& plan,
                                  const AttentionProblem& problem, const AttentionBackward& tensors,
                                  std::span<std::byte> workspace);

}  // namespace farskip::cuda
