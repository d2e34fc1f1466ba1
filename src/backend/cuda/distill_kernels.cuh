#pragma once
// Kernels of the losses of distillation: one block of threads a token, its rows of logits in shared memory
// where they fit. Included by distill_loss.cu alone.
#include "backend/cuda/distill_row.cuh"

namespace farskip::cuda {
namespace {

using ops::DistillLoss;

constexpr int kNumStats = static_cast<int>(ops::kDistillStats.size());

/// What each token adds to the loss and to each of kDistillStats: column by column, num_tokens in each.
struct TokenResults {
  double* columns;
  std::int64_t num_tokens;

  __device__ void store(std::int64_t token, const DistillLoss& a, const double (&stats)[kNumStats]) const {
    const double divergence = a.kl * stats[0] + a.reverse_kl * stats[1] + a.jsd * stats[2];
    columns[token] = a.temperature * a.temperature * divergence + a.sft * stats[3];
#pragma unroll
    for (int i = 0; i < kNumStats; ++i) columns[(i + 1) * num_tokens + token] = stats[i];
  }
  __device__ void store_all(std::int64_t token, double value) const {
    for (int i = 0; i <= kNumStats; ++i) columns[i * num_tokens + token] = value;
  }
};

/// Rows of one block of tokens. `first`: the first of these, among all tokens.
struct Rows {
  float *student, *teacher;
  std::int32_t vocabulary;
  std::int64_t leading, first;
  bool staged;  // rows fit into shared memory
  const std::int32_t* targets;
  const float* dloss;  // of a gradient
  TokenResults results;
};

/// What is known of a teacher in place of its logits: rows of k, or one number a token, from token `first`
/// on.
struct KeptTeacher {
  std::int64_t first, k;
  const std::int32_t* indices;
  const float *log_probs, *log_tail, *target_log_prob;
};

/// The row itself, or its copy in shared memory.
__device__ float* stage(float* row, const Rows& r, float* to) {
  if (!r.staged) return row;
  for (std::int64_t i = 4 * threadIdx.x; i < r.leading; i += 4 * kRowThreads)
    *reinterpret_cast<float4*>(to + i) = *reinterpret_cast<const float4*>(row + i);
  __syncthreads();
  return to;
}

/// True where the token is not counted; then its results and its gradient (nullptr: none is wanted) are zero.
/// A target outside the vocabulary, which no data has, makes the loss NaN.
template <class T>
__device__ bool skip_token(const Rows& r, std::int64_t token, T* gradient) {
  const std::int32_t target = r.targets[token];
  if (target >= 0 && target < r.vocabulary) return false;
  if (gradient != nullptr)
    for (std::int32_t i = threadIdx.x; i < r.vocabulary; i += kRowThreads) store_one(gradient + i, 0.0F);
  if (threadIdx.x == 0) r.results.store_all(token, target < 0 ? 0.0 : NAN);
  return true;
}

/// Gradient with respect to one logit, over the full vocabulary; what SFT subtracts at the target is not in
/// it.
struct LogitGradient {
  float kl, reverse_kl, jsd, sft, mean, mean_jsd;

  __device__ LogitGradient(const DistillLoss& a, const Divergences& d, float dloss)
      : kl(static_cast<float>(a.kl * a.temperature) * dloss),
        reverse_kl(static_cast<float>(a.reverse_kl * a.temperature) * dloss),
        jsd(static_cast<float>(a.jsd * a.temperature) * dloss),
        sft(static_cast<float>(a.sft) * dloss),
        mean(static_cast<float>(d.reverse_kl)),
        mean_jsd(static_cast<float>(d.jsd_student)) {}

  __device__ float at(float s, float t, const Softmax& q, const Softmax& p, const Softmax& plain) const {
    const float qi = q.at(s);
    float g = kl * __fsub_rn(qi, p.at(t));
    if (sft != 0.0F) g += sft * plain.at(s);
    if (reverse_kl == 0.0F && jsd == 0.0F) return g;
    const float log_ratio = __fsub_rn(p.log_at(t), q.log_at(s));
    if (reverse_kl != 0.0F) g += reverse_kl * qi * (-log_ratio - mean);
    if (jsd != 0.0F) g += jsd * qi * (-0.5F * log_mean_ratio(log_ratio) - mean_jsd);
    return g;
  }
};

__device__ Divergences diverge(const float* student, const Softmax& q, const float* teacher, const Softmax& p,
                               std::int32_t n, const DistillLoss& a, RowScratch& scratch) {
  Divergences d;
  for (std::int32_t i = threadIdx.x; i < n; i += kRowThreads) {
    const float s = student[i], t = teacher[i];
    const float log_ratio = __fsub_rn(p.log_at(t), q.log_at(s));  // log(p/q)
    d.kl += static_cast<double>(p.at(t) * log_ratio);
    if (a.reverse_kl > 0) d.reverse_kl += static_cast<double>(q.at(s) * -log_ratio);
    if (a.jsd > 0) {
      d.jsd_student += static_cast<double>(q.at(s) * -0.5F * log_mean_ratio(log_ratio));
      d.jsd += static_cast<double>(p.at(t) * -0.5F * log_mean_ratio(-log_ratio));
    }
  }
  return sum_divergences(d, a, scratch);
}

/// One block a token, the full vocabulary of both. `gradients`: rows of `leading`, which may be those of the
/// student; nullptr without a gradient.
template <class T>
__global__ void __launch_bounds__(kRowThreads) compare_logits_kernel(Rows r, DistillLoss a, T* gradients) {
  extern __shared__ float4 staged[];
  __shared__ RowScratch scratch;
  const std::int64_t token = r.first + blockIdx.x;
  T* const gradient = gradients == nullptr ? nullptr : gradients + blockIdx.x * r.leading;
  if (skip_token(r, token, gradient)) return;
  auto* memory = reinterpret_cast<float*>(staged);
  const float* student = stage(r.student + blockIdx.x * r.leading, r, memory);
  const float* teacher = stage(r.teacher + blockIdx.x * r.leading, r, memory + r.leading);
  const std::int32_t n = r.vocabulary, target = r.targets[token];
  const float student_target = student[target], teacher_target = teacher[target];
  const Softmax q = softmax_of(student, n, a.temperature, scratch);
  const Softmax p = softmax_of(teacher, n, a.temperature, scratch);
  const bool plain_is_q = a.temperature == 1.0;
  const Softmax plain = plain_is_q ? q : softmax_of(student, n, 1.0, scratch);
  const Softmax plain_teacher = plain_is_q ? p : softmax_of(teacher, n, 1.0, scratch);
  const Divergences d = diverge(student, q, teacher, p, n, a, scratch);
  if (threadIdx.x == 0)
    r.results.store(token, a,
                    {d.kl, d.reverse_kl, d.jsd, -static_cast<double>(plain.log_at(student_target)),
                     -static_cast<double>(plain_teacher.log_at(teacher_target)),
                     q.first == p.first ? 1.0 : 0.0, student_target >= q.max ? 1.0 : 0.0});
  if (gradient == nullptr) return;
  const LogitGradient slope(a, d, *r.dloss);
  for (std::int32_t i = threadIdx.x; i < n; i += kRowThreads) {
    const float g = slope.at(student[i], teacher[i], q, p, plain);
    store_one(gradient + i, i == target ? g - slope.sft : g);
  }
}

// ---- events ------------------------------------------------------------------------------------------

/// Where a block writes what it keeps of a teacher.
struct KeptRows {
  std::int64_t first, k;
  std::int32_t* indices;
  float *log_probs, *log_tail, *target_log_prob;
};
/// Scratch of a block of tokens: rows of k.
struct EventScratch {
  std::uint64_t* order;
  float* kept;
};

/// One block a token, rows of the teacher.
__global__ void __launch_bounds__(kRowThreads)
    keep_teacher_kernel(Rows r, double temperature, KeptRows to, EventScratch memory) {
  extern __shared__ float4 staged[];
  __shared__ RowScratch scratch;
  const std::int64_t token = r.first + blockIdx.x, row = token - to.first;
  float* teacher = stage(r.teacher + blockIdx.x * r.leading, r, reinterpret_cast<float*>(staged));
  const std::int32_t n = r.vocabulary, target = r.targets[token], k = static_cast<std::int32_t>(to.k);
  const bool counted = target >= 0 && target < n;
  const float target_logit = counted ? teacher[target] : 0.0F;
  const Softmax plain = softmax_of(teacher, n, 1.0, scratch);
  std::int32_t* indices = to.indices + row * to.k;
  float* kept = memory.kept + blockIdx.x * to.k;
  select_largest(teacher, n, k, indices, memory.order + blockIdx.x * to.k, scratch);
  const Events e = measure_events(teacher, n, indices, k, temperature, kept, scratch);
  for (std::int32_t b = threadIdx.x; b < k; b += kRowThreads)
    to.log_probs[row * to.k + b] = e.log_at(kept[b]);
  if (threadIdx.x != 0) return;
  to.log_tail[row] = e.log_rest;
  to.target_log_prob[row] = counted ? plain.log_at(target_logit) : 0.0F;
}

/// Of event b; b = k: the rest.
struct EventLogs {
  const float* log_probs;  // of the teacher
  float log_tail;
  const float* kept;  // of the student
  const Events& student;
  std::int32_t k;

  __device__ double p(std::int32_t b) const { return b < k ? log_probs[b] : log_tail; }
  __device__ double q(std::int32_t b) const { return b < k ? student.log_at(kept[b]) : student.log_rest; }
};

__device__ Divergences diverge_events(const EventLogs& logs, const DistillLoss& a, RowScratch& scratch) {
  Divergences d;
  for (std::int32_t b = threadIdx.x; b <= logs.k; b += kRowThreads) {
    const double log_p = logs.p(b), log_q = logs.q(b);
    if (isinf(log_q)) continue;  // nothing is left as the rest
    const double p = exp(log_p), q = exp(log_q), log_ratio = log_p - log_q;
    if (p > 0) d.kl += p * log_ratio;
    if (a.reverse_kl > 0 && q > 0) d.reverse_kl -= q * log_ratio;
    if (a.jsd > 0 && q > 0) d.jsd_student -= 0.5 * q * log_mean_ratio(log_ratio);
    if (a.jsd > 0 && p > 0) d.jsd -= 0.5 * p * log_mean_ratio(-log_ratio);
  }
  return sum_divergences(d, a, scratch);
}

/// Gradient with respect to a logit of an event, over that logit's own probability; without the part of the
/// forward divergence.
__device__ double other_slopes(double log_ratio, const Divergences& d, const DistillLoss& a) {
  double slope = 0.0;
  if (a.reverse_kl > 0) slope += a.reverse_kl * (-log_ratio - d.reverse_kl);
  if (a.jsd > 0) slope += a.jsd * (-0.5 * log_mean_ratio(log_ratio) - d.jsd_student);
  return slope;
}

/// One block a token; the student's row becomes unusable.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    compare_events_kernel(Rows r, DistillLoss a, KeptTeacher from, EventScratch memory, T* gradients) {
  extern __shared__ float4 staged[];
  __shared__ RowScratch scratch;
  const std::int64_t token = r.first + blockIdx.x, row = token - from.first;
  T* const gradient = gradients == nullptr ? nullptr : gradients + blockIdx.x * r.leading;
  if (skip_token(r, token, gradient)) return;
  float* student = stage(r.student + blockIdx.x * r.leading, r, reinterpret_cast<float*>(staged));
  const std::int32_t n = r.vocabulary, target = r.targets[token], k = static_cast<std::int32_t>(from.k);
  const std::int32_t* indices = from.indices + row * from.k;
  float* kept = memory.kept + blockIdx.x * from.k;
  const float target_logit = student[target];
  const Softmax plain = softmax_of(student, n, 1.0, scratch);
  const Events e = measure_events(student, n, indices, k, a.temperature, kept, scratch);
  const EventLogs logs{from.log_probs + row * from.k, from.log_tail[row], kept, e, k};
  const Divergences d = diverge_events(logs, a, scratch);
  if (threadIdx.x == 0)
    r.results.store(token, a,
                    {d.kl, d.reverse_kl, d.jsd, -static_cast<double>(plain.log_at(target_logit)),
                     -static_cast<double>(from.target_log_prob[row]), plain.first == indices[0] ? 1.0 : 0.0,
                     target_logit >= plain.max ? 1.0 : 0.0});
  if (gradient == nullptr) return;
  const float dloss = *r.dloss, sft = static_cast<float>(a.sft) * dloss;
  const double scale = a.temperature * static_cast<double>(dloss);
  if (k < n) {
    const double log_p = logs.p(k), log_q = logs.q(k), log_ratio = log_p - log_q, q = exp(log_q);
    const double slope = a.kl * (q - exp(log_p)) + q * other_slopes(log_ratio, d, a);
    const float rest = static_cast<float>(scale * slope / e.rest_sum);
    const float inverse = static_cast<float>(e.scale);
    for (std::int32_t i = threadIdx.x; i < n; i += kRowThreads) {
      const float s = student[i];
      float g = rest * expf((s - e.rest_max) * inverse);
      if (sft != 0.0F) g += sft * plain.at(s);
      store_one(gradient + i, i == target ? g - sft : g);
    }
    __syncthreads();  // those at the indices are not right, and written again below
  }
  for (std::int32_t b = threadIdx.x; b < k; b += kRowThreads) {
    const double log_p = logs.p(b), log_q = logs.q(b), q = exp(log_q);
    const double slope = a.kl * (q - exp(log_p)) + q * other_slopes(log_p - log_q, d, a);
    float g = static_cast<float>(scale * slope);
    if (sft != 0.0F) g += sft * plain.at(kept[b]);
    store_one(gradient + indices[b], indices[b] == target ? g - sft : g);
  }
}

/// One block a column, in one order, whatever the blocks of tokens were.
__global__ void __launch_bounds__(kRowThreads)
    sum_results_kernel(TokenResults results, float* loss_sum, double* stats) {
  __shared__ double shared[kRowThreads / 32];
  const double* column = results.columns + blockIdx.x * results.num_tokens;
  double sum = 0.0;
  for (std::int64_t t = threadIdx.x; t < results.num_tokens; t += kRowThreads) sum += column[t];
  sum = block_sum<kRowThreads>(sum, shared);
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0)
    *loss_sum = static_cast<float>(sum);
  else
    stats[blockIdx.x - 1] = sum;
}

}  // namespace
}  // namespace farskip::cuda
