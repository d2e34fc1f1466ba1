// SPDX-License-Identifier: Apache-2.0
// The losses of distillation over vocabularies that are cut: what a part says of each token, and the loss of
// all parts together.
#include <algorithm>

#include "backend/cuda/distill/distill_blocks.cuh"
#include "backend/cuda/distill/distill_row.cuh"
#include "backend/joint_distill.h"

namespace farskip {
namespace cuda {
namespace {

constexpr std::int64_t kMaxLogitBytes = 256 << 20;  // of each model
constexpr int kSums = int(ops::kNumDistillSums), kFixed = int(ops::kNumDistillFixed);

/// Rows of logits of one block of tokens. `first`: the first of these, among all tokens.
struct PartRows {
  float *student, *teacher;
  std::int32_t rows, own, first_id, of;  // of the head; of these, ids; the first one; ids of all parts
  std::int64_t leading, first;
  bool staged;  // rows fit into shared memory
  const std::int32_t* targets;
};

/// A token's rows and their distributions at the temperature.
struct Pair {
  const float *student, *teacher;
  Softmax q, p;
  double sum_ratio;
  LogRatio log_ratio;

  __device__ Pair(const PartRows& r, const DistillLoss& a, float* memory, RowScratch& scratch)
      : student(stage_row(r.student + blockIdx.x * r.leading, r.leading, r.staged, memory)),
        teacher(stage_row(r.teacher + blockIdx.x * r.leading, r.leading, r.staged, memory + r.leading)),
        q(softmax_of(student, r.own, a.temperature, scratch)),
        p(softmax_of(teacher, r.own, a.temperature, scratch)),
        sum_ratio(log_sum_ratio(student, q, teacher, p, r.own, scratch)),
        log_ratio(q.scale, sum_ratio) {}

  __device__ Divergences diverge(const PartRows& r, const DistillLoss& a, RowScratch& scratch) const {
    Divergences d;
    for (std::int32_t i = threadIdx.x; i < r.own; i += kRowThreads)
      d.add(p.at(teacher[i]), q.at(student[i]), log_ratio.at(student[i], teacher[i]), a);
    return sum_divergences(d, a, scratch);
  }
};

/// One block a token. A target outside the vocabulary, which no data has, makes the loss NaN.
__global__ void __launch_bounds__(kRowThreads)
    compare_parts(PartRows r, DistillLoss a, float* sums, float* fixed) {
  extern __shared__ float4 staged[];
  __shared__ RowScratch scratch;
  const std::int64_t token = r.first + blockIdx.x;
  const std::int32_t target = r.targets[token], place = target - r.first_id;
  sums += token * kSums;
  fixed += token * kFixed;
  if (target < 0 || target >= r.of) {
    if (threadIdx.x < kSums) sums[threadIdx.x] = target < 0 ? 0.0F : NAN;
    if (threadIdx.x < kFixed) fixed[threadIdx.x] = 0.0F;
    return;
  }
  const Pair pair(r, a, reinterpret_cast<float*>(staged), scratch);
  const bool plain_is_q = a.temperature == 1.0, here = place >= 0 && place < r.own;
  const Softmax plain = plain_is_q ? pair.q : softmax_of(pair.student, r.own, 1.0, scratch);
  const Softmax plain_teacher = plain_is_q ? pair.p : softmax_of(pair.teacher, r.own, 1.0, scratch);
  const Divergences d = pair.diverge(r, a, scratch);
  if (threadIdx.x != 0) return;
  const auto say = [&](ops::DistillSum column, double value) { sums[int(column)] = float(value); };
  say(ops::DistillSum::log_ratio, pair.sum_ratio);
  say(ops::DistillSum::kl, d.kl);
  say(ops::DistillSum::reverse_kl, d.reverse_kl);
  say(ops::DistillSum::lse, plain.log_sum);
  say(ops::DistillSum::target, here ? pair.student[place] : 0.0F);
  const auto say_fixed = [&](ops::DistillFixed column, double value) { fixed[int(column)] = float(value); };
  say_fixed(ops::DistillFixed::teacher_lse, pair.p.log_sum);
  say_fixed(ops::DistillFixed::teacher_plain_lse, plain_teacher.log_sum);
  say_fixed(ops::DistillFixed::teacher_target, here ? pair.teacher[place] : 0.0F);
  say_fixed(ops::DistillFixed::max, pair.q.max);
  say_fixed(ops::DistillFixed::best, r.first_id + pair.q.first);
  say_fixed(ops::DistillFixed::teacher_max, pair.p.max);
  say_fixed(ops::DistillFixed::teacher_best, r.first_id + pair.p.first);
}

/// One block a token: gradients[…] becomes that of <dsums, sums> with respect to the student's logits. They
/// may be the student's rows.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    differentiate_parts(PartRows r, DistillLoss a, const float* dsums, T* gradients) {
  extern __shared__ float4 staged[];
  __shared__ RowScratch scratch;
  const std::int64_t token = r.first + blockIdx.x;
  const std::int32_t target = r.targets[token], place = target - r.first_id;
  T* const gradient = gradients + blockIdx.x * r.leading;
  const bool counted = target >= 0 && target < r.of;
  for (std::int32_t i = (counted ? r.own : 0) + threadIdx.x; i < r.rows; i += kRowThreads)
    store_one(gradient + i, 0.0F);
  if (!counted) return;
  const Pair pair(r, a, reinterpret_cast<float*>(staged), scratch);
  const Softmax plain = a.temperature == 1.0 ? pair.q : softmax_of(pair.student, r.own, 1.0, scratch);
  const auto of = [&](ops::DistillSum column) { return dsums[token * kSums + int(column)]; };
  const float scale = float(1.0 / a.temperature), of_ratio = of(ops::DistillSum::log_ratio) * scale,
              of_kl = of(ops::DistillSum::kl) * scale, of_lse = of(ops::DistillSum::lse);
  float of_reverse = 0.0F, reverse_kl = 0.0F;
  if (a.reverse_kl > 0) {
    of_reverse = of(ops::DistillSum::reverse_kl) * scale;
    reverse_kl = float(pair.diverge(r, a, scratch).reverse_kl);
  }
  for (std::int32_t i = threadIdx.x; i < r.own; i += kRowThreads) {
    const float s = pair.student[i], t = pair.teacher[i], q = pair.q.at(s), x = pair.log_ratio.at(s, t);
    float g = q * (of_ratio + of_reverse * (x - reverse_kl)) + of_kl * probability_gain(pair.p.at(t), q, x);
    if (of_lse != 0.0F) g += of_lse * plain.at(s);
    store_one(gradient + i, i == place ? g + of(ops::DistillSum::target) : g);
  }
}

// ---- blocks of tokens ------------------------------------------------------------------------------------

/// One call: inputs from input `first` on.
class PartRun {
 public:
  PartRun(const KernelCall& call, std::size_t first)
      : call_(call),
        a_(call.get<ops::DistillPart>()),
        first_input_(first),
        sizes_(input(0).shape[0], input(1).shape[0], first > 0 && low()),
        student_(reinterpret_cast<float*>(call.workspace.data())),
        teacher_(student_ + sizes_.block * sizes_.leading),
        gradient_(reinterpret_cast<std::byte*>(teacher_ + sizes_.block * sizes_.leading)) {
    FARSKIP_CHECK(call.workspace.size() >= sizes_.bytes(), "workspace of {} bytes", call.workspace.size());
  }

  static std::size_t workspace(const Shape& h, const Shape& w, bool low_gradient) {
    return Sizes(h[0], w[0], low_gradient).bytes();
  }

  void compare() const {
    for (std::int64_t first = 0; first < sizes_.tokens; first += sizes_.block) {
      const std::int64_t count = compute_logits(first);
      const std::size_t bytes = staged_bytes(compare_parts, 2, sizes_.leading);
      launch(call_, compare_parts, grid_size(count), kRowThreads, bytes, rows(first, bytes > 0), a_.loss,
             call_.out(0), call_.out(1));
    }
  }

  /// The logits' gradient is of the type T, that of h.
  template <class T>
  void differentiate() const {
    const void* dw_so_far = call_.has(6) ? call_.inputs[6].data : nullptr;
    T* const dlogits = low() ? reinterpret_cast<T*>(gradient_) : reinterpret_cast<T*>(student_);
    for (std::int64_t first = 0; first < std::max<std::int64_t>(sizes_.tokens, 1); first += sizes_.block) {
      const std::int64_t count = compute_logits(first);  // 0 without tokens: dw is still written
      const auto kernel = differentiate_parts<T>;
      const std::size_t bytes = staged_bytes(kernel, 2, sizes_.leading);
      if (count > 0)
        launch(call_, kernel, grid_size(count), kRowThreads, bytes, rows(first, bytes > 0), a_.loss,
               call_.in(0), dlogits);
      products(0).differentiate_hidden(first, count, dlogits, call_.outputs[0]);
      if (!a_.loss.trains_head) continue;
      products(0).differentiate_head(first, count, dlogits, dw_so_far, call_.outputs[1]);
      dw_so_far = call_.outputs[1].data;
    }
  }

 private:
  struct Sizes {
    std::int64_t tokens, leading, block;
    bool low_gradient;  // which has memory of its own

    Sizes(std::int64_t num_tokens, std::int64_t rows, bool low)
        : tokens(num_tokens), leading(ceil_div(std::max<std::int64_t>(rows, 1), 64) * 64), low_gradient(low) {
      constexpr std::int64_t unit = 128;
      const std::int64_t fit = kMaxLogitBytes / (leading * static_cast<std::int64_t>(sizeof(float)));
      block = std::min(ceil_div(std::max<std::int64_t>(tokens, 1), unit) * unit,
                       std::max(unit, fit / unit * unit));
    }
    std::size_t logits() const { return static_cast<std::size_t>(block * leading); }
    std::size_t product_workspace() const {
      return logits() * (2 * sizeof(float) + (low_gradient ? sizeof(bf16) : 0));
    }
    std::size_t bytes() const { return product_workspace() + kProductWorkspace; }
  };

  const TensorView& input(std::size_t i) const { return call_.inputs[first_input_ + i]; }
  bool low() const { return input(0).dtype == DType::bf16; }
  /// Takes the model whose hidden states are input `h`.
  HeadProducts products(std::size_t h) const {
    return {*call_.gpu, call_.workspace.subspan(sizes_.product_workspace(), kProductWorkspace), input(h),
            input(h + 1), sizes_.leading};
  }
  /// Takes both models; returns how many tokens there are.
  std::int64_t compute_logits(std::int64_t first) const {
    const std::int64_t count = std::min(sizes_.block, sizes_.tokens - first);
    if (count == 0) return 0;
    products(0).compute_logits(first, count, student_);
    products(2).compute_logits(first, count, teacher_);
    return count;
  }
  PartRows rows(std::int64_t first, bool staged) const {
    const std::int64_t rows = input(1).shape[0];
    const Range own = a_.part.own(rows);
    const auto i32 = [](std::int64_t x) { return static_cast<std::int32_t>(x); };
    return {student_,       teacher_,
            i32(rows),      i32(own.count),
            i32(own.first), i32(a_.part.size(rows)),
            sizes_.leading, first,
            staged,         input(4).as<const std::int32_t>()};
  }

  const KernelCall& call_;
  const ops::DistillPart& a_;
  const std::size_t first_input_;
  const Sizes sizes_;
  float *student_, *teacher_;
  std::byte* gradient_;
};

void run_distill_stats(const KernelCall& call) {
  PartRun(call, 0).compare();
}

// dsums[T, 5], h, w, ht, wt, targets, [accumulate dw] → (dh, [dw])
void run_distill_stats_grad(const KernelCall& call) {
  const PartRun run(call, 1);
  if (call.inputs[1].dtype == DType::bf16)
    run.differentiate<bf16>();
  else
    run.differentiate<float>();
}

// ---- all parts together ----------------------------------------------------------------------------------

/// One thread a token.
__global__ void __launch_bounds__(kThreads) join_tokens(JointDistillation joint, TokenResults results) {
  const std::int64_t token = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (token >= joint.tokens) return;
  const std::int64_t target = joint.targets[token];
  if (target < 0 || target >= joint.parts * joint.rows)
    return results.store_all(token, target < 0 ? 0.0 : double(NAN));
  double stats[kNumStats];
  joint.measure(token, stats);
  results.store(token, joint.a, stats);
}

/// One thread a token of a part.
__global__ void __launch_bounds__(kThreads)
    differentiate_tokens(JointDistillation joint, const float* dloss, float* dsums) {
  const std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < joint.parts * joint.tokens) joint.differentiate(i % joint.tokens, i / joint.tokens, *dloss, dsums);
}

void run_joint_distill_loss(const KernelCall& call) {
  const JointDistillation joint = joint_distillation(call, 0);
  const TokenResults results{reinterpret_cast<double*>(call.workspace.data()), joint.tokens};
  launch(call, join_tokens, grid_size(ceil_div(joint.tokens, kThreads)), kThreads, 0, joint, results);
  launch(call, sum_results_kernel, kNumStats + 1, kSumThreads, 0, results, call.out(0), call.out<double>(1));
}

void run_joint_distill_loss_grad(const KernelCall& call) {
  const JointDistillation joint = joint_distillation(call, 1);
  launch(call, differentiate_tokens, grid_size(ceil_div(joint.parts * joint.tokens, kThreads)), kThreads, 0,
         joint, call.in(0), call.out(0));
}

}  // namespace
}  // namespace cuda

void register_cuda_distill_parts(KernelTable& table);

void register_cuda_distill_parts(KernelTable& table) {
  const auto add = [&](std::string_view op, DType dtype, void (*run)(const KernelCall&),
                       std::size_t (*workspace)(const OpTypes&)) {
    table.add(op, dtype, DeviceKind::cuda, {.run = run, .workspace = workspace});
  };
  for (const DType dtype : {DType::f32, DType::bf16})
    add("distill_stats", dtype, cuda::run_distill_stats,
        [](const OpTypes& t) { return cuda::PartRun::workspace(t.shape(0), t.shape(1), false); });
  // The first floating-point input of these is f32 whatever h is.
  add("distill_stats_grad", DType::f32, cuda::run_distill_stats_grad, [](const OpTypes& t) {
    return cuda::PartRun::workspace(t.shape(1), t.shape(2), t.in(1).dtype == DType::bf16);
  });
  add("joint_distill_loss", DType::f32, cuda::run_joint_distill_loss, [](const OpTypes& t) {
    return static_cast<std::size_t>(t.shape(2)[0] * (cuda::kNumStats + 1)) * sizeof(double);
  });
  add("joint_distill_loss_grad", DType::f32, cuda::run_joint_distill_loss_grad, nullptr);
}

}  // namespace farskip
