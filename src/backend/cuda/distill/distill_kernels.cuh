// SPDX-License-Identifier: Apache-2.0
#pragma once
// Kernels of the losses of distillation: one block of threads a token, its rows of logits in shared memory
// where they fit. Included by distill_loss.cu alone.
#include "backend/cuda/distill/distill_blocks.cuh"
#include "backend/cuda/distill/distill_row.cuh"

namespace farskip::cuda {
namespace {

using ops::DistillLoss;

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

__device__ float* stage(float* row, const Rows& r, float* to) {
  return stage_row(row, r.leading, r.staged, to);
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
  const LogRatio log_ratio(q.scale, log_sum_ratio(student, q, teacher, p, n, scratch));
  Divergences d;
  for (std::int32_t i = threadIdx.x; i < n; i += kRowThreads)
    d.add(p.at(teacher[i]), q.at(student[i]), log_ratio.at(student[i], teacher[i]), a);
  d = sum_divergences(d, a, scratch);
  if (threadIdx.x == 0)
    r.results.store(
        token, a,
        {d.kl, d.reverse_kl, d.jsd, -plain.log_at(student_target), -plain_teacher.log_at(teacher_target),
         q.first == p.first ? 1.0 : 0.0, student_target >= q.max ? 1.0 : 0.0});
  if (gradient == nullptr) return;
  const float scale = static_cast<float>(a.temperature) * *r.dloss;
  const float sft = static_cast<float>(a.sft) * *r.dloss;
  for (std::int32_t i = threadIdx.x; i < n; i += kRowThreads) {
    const float s = student[i], t = teacher[i];
    float g = scale * divergence_slope(p.at(t), q.at(s), log_ratio.at(s, t), d, a);
    if (sft != 0.0F) g += sft * plain.at(s);
    store_one(gradient + i, i == target ? g - sft : g);
  }
}

// ---- events ------------------------------------------------------------------------------------------

/// What is kept of a teacher: rows of k, or one number a token.
struct KeptTeacher {
  std::int64_t k;
  const std::int32_t* indices;
  const float *log_probs, *log_tail, *target_log_prob;
};
/// Where it is written.
struct KeptRows {
  std::int64_t k;
  std::int32_t* indices;
  float *log_probs, *log_tail, *target_log_prob;
};
/// Scratch of a block of tokens: rows of k.
struct EventScratch {
  std::uint64_t* order;
  float *kept, *kept_of_teacher;
  std::int32_t* indices;
};

/// One block a token, rows of the teacher.
__global__ void __launch_bounds__(kRowThreads)
    keep_teacher_kernel(Rows r, double temperature, KeptRows to, EventScratch memory) {
  extern __shared__ float4 staged[];
  __shared__ RowScratch scratch;
  const std::int64_t token = r.first + blockIdx.x;
  float* teacher = stage(r.teacher + blockIdx.x * r.leading, r, reinterpret_cast<float*>(staged));
  const std::int32_t n = r.vocabulary, target = r.targets[token], k = static_cast<std::int32_t>(to.k);
  const bool counted = target >= 0 && target < n;
  const float target_logit = counted ? teacher[target] : 0.0F;
  const Softmax plain = softmax_of(teacher, n, 1.0, scratch);
  std::int32_t* indices = to.indices + token * to.k;
  float* kept = memory.kept + blockIdx.x * to.k;
  select_largest(teacher, n, k, indices, memory.order + blockIdx.x * to.k, scratch);
  const Events e = measure_events(teacher, n, indices, k, temperature, kept, scratch);
  for (std::int32_t b = threadIdx.x; b < k; b += kRowThreads)
    to.log_probs[token * to.k + b] = static_cast<float>(e.log_kept(kept[b]));
  if (threadIdx.x != 0) return;
  to.log_tail[token] = e.has_rest ? static_cast<float>(e.log_rest()) : -INFINITY;
  to.target_log_prob[token] = counted ? static_cast<float>(plain.log_at(target_logit)) : 0.0F;
}

/// An event's probability of the teacher and of the student, and x = log(q/p).
struct EventPair {
  double p, q, x;
};

// In place of infinity, where one of two models gives an event no mass at all.
constexpr double kLargestLogRatio = 1e4;

/// Events of a student and a teacher whose logits are both there.
struct LiveEvents {
  const Events &student, &teacher;
  const float *kept, *kept_of_teacher;
  std::int32_t k;
  double rest_ratio;  // log of the ratio of what the rests sum up to

  __device__ EventPair at(std::int32_t b) const {
    const bool rest = b == k;
    const double log_p = rest ? teacher.log_rest() : teacher.log_kept(kept_of_teacher[b]);
    const double log_q = rest ? student.log_rest() : student.log_kept(kept[b]);
    const double masses =
        rest ? rest_ratio
             : (static_cast<double>(kept[b]) - static_cast<double>(kept_of_teacher[b])) * student.scale;
    return {exp(log_p), exp(log_q), masses - (student.log_total - teacher.log_total)};
  }
};

/// Events of a student and of what was kept of a teacher. Rounded log-probabilities may add up to another
/// mass than 1: `log_mass` is its logarithm.
struct KeptEvents {
  const Events& student;
  const float *kept, *log_probs;
  double log_tail, log_mass;
  std::int32_t k;

  __device__ EventPair at(std::int32_t b) const {
    const double log_p = (b == k ? log_tail : static_cast<double>(log_probs[b])) - log_mass;
    const double log_q = b == k ? student.log_rest() : student.log_kept(kept[b]);
    return {exp(log_p), exp(log_q), fmin(fmax(log_q - log_p, -kLargestLogRatio), kLargestLogRatio)};
  }
};

/// log Σ exp over what was kept.
__device__ double log_mass_of(const float* log_probs, float log_tail, std::int32_t k, bool has_rest,
                              RowScratch& scratch) {
  double mass = 0.0;
  for (std::int32_t b = threadIdx.x; b < k; b += kRowThreads) mass += exp(static_cast<double>(log_probs[b]));
  mass = row_sum(mass, scratch);
  return log(has_rest ? mass + exp(static_cast<double>(log_tail)) : mass);
}

/// Of the student, before its row is taken apart: every thread reads the target's logit ahead of the barriers
/// in softmax_of.
struct PlainStudent {
  float target_logit;
  Softmax softmax;

  __device__ PlainStudent(const float* row, std::int32_t n, std::int32_t target, RowScratch& scratch)
      : target_logit(row[target]), softmax(softmax_of(row, n, 1.0, scratch)) {}
};

/// Results and gradient of a token from its events; `row`: what is left of the student's.
template <class Pairs, class T>
__device__ void finish_events(const Rows& r, std::int64_t token, const DistillLoss& a, const Pairs& pairs,
                              const float* row, const std::int32_t* indices, const PlainStudent& plain,
                              double teacher_loss, T* gradient, RowScratch& scratch) {
  const Events& e = pairs.student;
  const std::int32_t n = r.vocabulary, target = r.targets[token], k = pairs.k,
                     count = k + (e.has_rest ? 1 : 0);
  double gain = 0.0;  // one step of Newton's method towards Σ q = Σ p, as in log_sum_ratio
  for (std::int32_t b = threadIdx.x; b < count; b += kRowThreads) {
    const auto [p, q, x] = pairs.at(b);
    gain += probability_gain(p, q, x);
  }
  const double shift = log1p(row_sum(gain, scratch));
  Divergences d;
  for (std::int32_t b = threadIdx.x; b < count; b += kRowThreads) {
    const auto [p, q, x] = pairs.at(b);
    d.add(p, q, x - shift, a);
  }
  d = sum_divergences(d, a, scratch);
  if (threadIdx.x == 0)
    r.results.store(
        token, a,
        {d.kl, d.reverse_kl, d.jsd, -plain.softmax.log_at(plain.target_logit), teacher_loss,
         plain.softmax.first == indices[0] ? 1.0 : 0.0, plain.target_logit >= plain.softmax.max ? 1.0 : 0.0});
  if (gradient == nullptr) return;
  const float sft = static_cast<float>(a.sft) * *r.dloss;
  const double scale = a.temperature * static_cast<double>(*r.dloss);
  const auto slope = [&](std::int32_t b) {
    const auto [p, q, x] = pairs.at(b);
    return static_cast<float>(scale * divergence_slope(p, q, x - shift, d, a));
  };
  if (e.has_rest) {  // dealt out to the tokens of the rest in the ratio of their own probabilities
    const float rest = slope(k);
    for (std::int32_t i = threadIdx.x; i < n; i += kRowThreads) {
      float g = rest * e.rest.at(row[i]);
      if (sft != 0.0F) g += sft * plain.softmax.at(row[i]);
      store_one(gradient + i, i == target ? g - sft : g);
    }
    __syncthreads();  // those at the indices are not right, and written again below
  }
  for (std::int32_t b = threadIdx.x; b < k; b += kRowThreads) {
    float g = slope(b);
    if (sft != 0.0F) g += sft * plain.softmax.at(pairs.kept[b]);
    store_one(gradient + indices[b], indices[b] == target ? g - sft : g);
  }
}

/// One block a token, the a.top_k largest logits of the teacher and the rest; both rows become unusable.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    compare_events_kernel(Rows r, DistillLoss a, EventScratch memory, T* gradients) {
  extern __shared__ float4 staged[];
  __shared__ RowScratch scratch;
  const std::int64_t token = r.first + blockIdx.x;
  T* const gradient = gradients == nullptr ? nullptr : gradients + blockIdx.x * r.leading;
  if (skip_token(r, token, gradient)) return;
  auto* shared = reinterpret_cast<float*>(staged);
  float* student = stage(r.student + blockIdx.x * r.leading, r, shared);
  float* teacher = stage(r.teacher + blockIdx.x * r.leading, r, shared + r.leading);
  const std::int32_t n = r.vocabulary, target = r.targets[token], k = static_cast<std::int32_t>(a.top_k);
  const std::int64_t place = blockIdx.x * a.top_k;
  std::int32_t* indices = memory.indices + place;
  float *kept = memory.kept + place, *kept_of_teacher = memory.kept_of_teacher + place;
  const PlainStudent plain(student, n, target, scratch);
  const float teacher_target = teacher[target];
  const double teacher_loss = -softmax_of(teacher, n, 1.0, scratch).log_at(teacher_target);
  select_largest(teacher, n, k, indices, memory.order + place, scratch);
  const Events of_teacher = measure_events(teacher, n, indices, k, a.temperature, kept_of_teacher, scratch);
  const Events of_student = measure_events(student, n, indices, k, a.temperature, kept, scratch);
  const double rest_ratio =
      k < n ? log_sum_ratio(student, of_student.rest, teacher, of_teacher.rest, n, scratch) : 0.0;
  const LiveEvents pairs{of_student, of_teacher, kept, kept_of_teacher, k, rest_ratio};
  finish_events(r, token, a, pairs, student, indices, plain, teacher_loss, gradient, scratch);
}

/// The same with what was kept of the teacher.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    compare_kept_kernel(Rows r, DistillLoss a, KeptTeacher from, EventScratch memory, T* gradients) {
  extern __shared__ float4 staged[];
  __shared__ RowScratch scratch;
  const std::int64_t token = r.first + blockIdx.x;
  T* const gradient = gradients == nullptr ? nullptr : gradients + blockIdx.x * r.leading;
  if (skip_token(r, token, gradient)) return;
  float* student = stage(r.student + blockIdx.x * r.leading, r, reinterpret_cast<float*>(staged));
  const std::int32_t n = r.vocabulary, target = r.targets[token], k = static_cast<std::int32_t>(from.k);
  const std::int32_t* indices = from.indices + token * from.k;
  const float* log_probs = from.log_probs + token * from.k;
  const float log_tail = from.log_tail[token];
  float* kept = memory.kept + blockIdx.x * from.k;
  const PlainStudent plain(student, n, target, scratch);
  const Events of_student = measure_events(student, n, indices, k, a.temperature, kept, scratch);
  const KeptEvents pairs{of_student,
                         kept,
                         log_probs,
                         static_cast<double>(log_tail),
                         log_mass_of(log_probs, log_tail, k, k < n, scratch),
                         k};
  finish_events(r, token, a, pairs, student, indices, plain,
                -static_cast<double>(from.target_log_prob[token]), gradient, scratch);
}

}  // namespace
}  // namespace farskip::cuda
