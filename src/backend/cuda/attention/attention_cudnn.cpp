// SPDX-License-Identifier: Apache-2.0
// Attention by cuDNN's graph API. A graph is built once per problem, outside of any capture of the stream.
#include <cudnn_frontend.h>

#include <algorithm>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/library_check.h"
#include "backend/cuda/library_plans.h"
#include "farskip/base/log.h"

namespace farskip::cuda {

namespace fe = cudnn_frontend;

struct AttentionPlan {
  fe::graph::Graph graph;
  std::int64_t sequences = 0;  // of one launch
  std::size_t workspace = 0;
  bool usable = false;
};

namespace {

using Tensor = std::shared_ptr<fe::graph::Tensor_attributes>;

enum Uid : std::int64_t { kQ = 1, kK, kV, kOut, kLse, kDout, kDq, kDk, kDv };

/// What cuDNN needs beside what its documentation lets one compute.
constexpr std::size_t kSlack = 32 << 20;
/// What a backward may take. Its deterministic form holds the gradients of the scores of a launch's
/// sequences; the other adds to f32 sums of dq, in whatever order its blocks come to it. Four sequences of
/// 4096 in 16 heads fit; fewer leave multiprocessors idle at the end of each launch: one alone takes 1.32 of
/// their time each, two 1.05.
constexpr std::size_t kBackwardScratch = std::size_t{2304} << 20;

std::int64_t round_up(std::int64_t n, std::int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

/// Scratch of one launch of the backward for so many sequences: gradients of the scores [sequences, heads,
/// length, length] in bf16, or dq in f32; sums of rows, and per query head what kv heads sum up.
std::size_t backward_bytes(const AttentionProblem& p, std::int64_t sequences) {
  const std::int64_t rows = round_up(p.length, 128) * p.heads;
  const std::int64_t for_dq =
      p.deterministic ? p.heads * round_up(p.length, 64) * round_up(p.length, 128) * 2 : rows * p.d * 4;
  const std::int64_t sums = rows * 4 + (p.heads != p.kv_heads ? rows * (p.d + p.dv) * 4 : 0);
  return kSlack + static_cast<std::size_t>(sequences * (for_dq + sums));
}

/// Sequences of one launch of the backward: as many as `bytes` have room for, and a divisor of their number;
/// at least one. Where a plan runs some of the op's sequences, they have the scratch of all of them.
std::int64_t backward_sequences(const AttentionProblem& p, std::size_t bytes) {
  std::int64_t at_once = std::max<std::int64_t>(p.sequences, 1);
  while (at_once > 1 && (p.sequences % at_once != 0 || backward_bytes(p, at_once) > bytes)) --at_once;
  return at_once;
}

/// A tensor [sequences, heads, length, size] whose heads lie in rows.
fe::graph::Tensor_attributes in_rows(Uid uid, std::int64_t sequences, std::int64_t length, std::int64_t heads,
                                     std::int64_t size) {
  fe::graph::Tensor_attributes tensor;
  tensor.set_uid(uid)
      .set_name(fmt::format("tensor {}", static_cast<int>(uid)))
      .set_dim({sequences, heads, length, size})
      .set_stride({length * heads * size, size, heads * size, 1})
      .set_data_type(fe::DataType_t::BFLOAT16);
  return tensor;
}

fe::graph::Tensor_attributes lse_tensor(std::int64_t sequences, const AttentionProblem& p) {
  fe::graph::Tensor_attributes tensor;
  tensor.set_uid(kLse)
      .set_name("lse")
      .set_dim({sequences, p.heads, p.length, 1})
      .set_stride({p.heads * p.length, p.length, 1, 1})
      .set_data_type(fe::DataType_t::FLOAT);
  return tensor;
}

void set_output(const Tensor& tensor, const fe::graph::Tensor_attributes& like) {
  tensor->set_output(true)
      .set_uid(like.get_uid())
      .set_dim(like.get_dim())
      .set_stride(like.get_stride())
      .set_data_type(like.get_data_type());
}

template <class Attributes>
Attributes causal(const AttentionProblem& p) {
  Attributes attributes;
  attributes.set_name("attention")
      .set_attn_scale(p.scale)
      .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
      .set_diagonal_band_right_bound(0);
  return attributes;
}

void describe_forward(const AttentionProblem& p, std::int64_t sequences, fe::graph::Graph& graph) {
  const auto q = graph.tensor(in_rows(kQ, sequences, p.length, p.heads, p.d));
  const auto k = graph.tensor(in_rows(kK, sequences, p.length, p.kv_heads, p.d));
  const auto v = graph.tensor(in_rows(kV, sequences, p.length, p.kv_heads, p.dv));
  const auto [out, lse] = graph.sdpa(q, k, v, causal<fe::graph::SDPA_attributes>(p).set_generate_stats(true));
  set_output(out, in_rows(kOut, sequences, p.length, p.heads, p.dv));
  set_output(lse, lse_tensor(sequences, p));
}

void describe_backward(const AttentionProblem& p, std::int64_t sequences, fe::graph::Graph& graph) {
  const auto q = graph.tensor(in_rows(kQ, sequences, p.length, p.heads, p.d));
  const auto k = graph.tensor(in_rows(kK, sequences, p.length, p.kv_heads, p.d));
  const auto v = graph.tensor(in_rows(kV, sequences, p.length, p.kv_heads, p.dv));
  const auto out = graph.tensor(in_rows(kOut, sequences, p.length, p.heads, p.dv));
  const auto dout = graph.tensor(in_rows(kDout, sequences, p.length, p.heads, p.dv));
  const auto lse = graph.tensor(lse_tensor(sequences, p));
  const auto [dq, dk, dv] = graph.sdpa_backward(
      q, k, v, out, dout, lse,
      causal<fe::graph::SDPA_backward_attributes>(p).set_deterministic_algorithm(p.deterministic));
  set_output(dq, in_rows(kDq, sequences, p.length, p.heads, p.d));
  set_output(dk, in_rows(kDk, sequences, p.length, p.kv_heads, p.d));
  set_output(dv, in_rows(kDv, sequences, p.length, p.kv_heads, p.dv));
}

/// `limit`: bytes of workspace that the planner set aside.
std::shared_ptr<AttentionPlan> make_plan(const LaunchContext& gpu, const AttentionProblem& p, bool backward,
                                         std::int64_t sequences, std::size_t limit) {
  auto plan = std::make_shared<AttentionPlan>();
  plan->sequences = sequences;
  plan->graph.set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  backward ? describe_backward(p, sequences, plan->graph) : describe_forward(p, sequences, plan->graph);
  auto status = plan->graph.build(gpu.dnn, {fe::HeurMode_t::A});
  std::string problem;
  if (status.is_good()) {
    plan->workspace = static_cast<std::size_t>(std::max<std::int64_t>(plan->graph.get_workspace_size(), 0));
    if (plan->workspace > limit)
      problem = fmt::format("it wants {} bytes of workspace, {} are planned", plan->workspace, limit);
  } else {
    problem = status.get_message();
  }
  plan->usable = problem.empty();
  if (!plan->usable)
    Logger().warning(
        "cuDNN is not used for the {} of attention with head sizes {} and {}, {} tokens: {}. Slower kernels "
        "of our own are.",
        backward ? "backward" : "forward", p.d, p.dv, p.length, problem);
  return plan;
}

AttentionPlan& find_plan(const LaunchContext& gpu, const AttentionProblem& p, bool backward,
                         std::int64_t sequences, std::size_t limit) {
  const std::string problem =
      fmt::format("attention {} {} sequences of {}, heads {} {} sizes {} {} scale {:a} workspace {}",
                  !backward         ? "forward"
                  : p.deterministic ? "deterministic backward"
                                    : "backward",
                  sequences, p.length, p.heads, p.kv_heads, p.d, p.dv, p.scale, limit);
  return gpu.plans->get<AttentionPlan>(problem,
                                       [&] { return make_plan(gpu, p, backward, sequences, limit); });
}

using Pointers = std::unordered_map<std::int64_t, void*>;

void execute(const LaunchContext& gpu, AttentionPlan& plan, Pointers pointers,
             std::span<std::byte> workspace) {
  auto status = plan.graph.execute(gpu.dnn, pointers, workspace.data());
  FARSKIP_CHECK(status.is_good(), "cuDNN: {}", status.get_message());
}

/// Element i of a bf16 tensor (cuDNN takes what it only reads as void* too).
void* bf16_at(const void* p, std::int64_t i) {
  return static_cast<std::byte*>(const_cast<void*>(p)) + i * 2;
}

}  // namespace

bool may_use_cudnn(const AttentionProblem& p) {
  return p.dtype == DType::bf16 && p.chunk == 0 && p.document_start == nullptr && p.d % 8 == 0 &&
         p.dv % 8 == 0 && p.d <= 256 && p.dv <= 256 && p.length > 1;
}

std::size_t cudnn_attention_workspace(const AttentionProblem&) {
  return kSlack;
}

std::size_t cudnn_attention_backward_workspace(const AttentionProblem& p) {
  return backward_bytes(p, backward_sequences(p, kBackwardScratch));
}

bool run_cudnn_attention(const LaunchContext& gpu, const AttentionProblem& p, const AttentionForward& x,
                         std::span<std::byte> workspace) {
  AttentionPlan& plan = find_plan(gpu, p, false, p.sequences, workspace.size());
  if (!plan.usable) return false;
  execute(gpu, plan,
          {{kQ, bf16_at(x.q, 0)}, {kK, bf16_at(x.k, 0)}, {kV, bf16_at(x.v, 0)}, {kOut, x.out}, {kLse, x.lse}},
          workspace);
  return true;
}

AttentionPlan* find_cudnn_attention_backward(const LaunchContext& gpu, const AttentionProblem& p,
                                             std::size_t workspace_bytes) {
  AttentionPlan& plan = find_plan(gpu, p, true, backward_sequences(p, workspace_bytes), workspace_bytes);
  return plan.usable ? &plan : nullptr;
}

void run_cudnn_attention_backward(const LaunchContext& gpu, AttentionPlan& plan, const AttentionProblem& p,
                                  const AttentionBackward& x, std::span<std::byte> workspace) {
  for (std::int64_t s = 0; s < p.sequences; s += plan.sequences) {
    const std::int64_t row = s * p.length;
    const std::int64_t q = row * p.heads * p.d, out = row * p.heads * p.dv;
    const std::int64_t k = row * p.kv_heads * p.d, v = row * p.kv_heads * p.dv;
    execute(gpu, plan,
            {{kQ, bf16_at(x.q, q)},
             {kK, bf16_at(x.k, k)},
             {kV, bf16_at(x.v, v)},
             {kOut, bf16_at(x.out, out)},
             {kDout, bf16_at(x.dout, out)},
             {kLse, const_cast<float*>(x.lse) + row * p.heads},
             {kDq, bf16_at(x.dq, q)},
             {kDk, bf16_at(x.dk, k)},
             {kDv, bf16_at(x.dv, v)}},
            workspace);
  }
}

}  // namespace farskip::cuda
