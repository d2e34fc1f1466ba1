// SPDX-License-Identifier: Apache-2.0
#pragma once
// Terms of the divergences between two distributions p and q, for kernels on any device.
//
// Where q is near p, Σ p log(p/q) is a difference of almost equal numbers: each term is of first order in
// d = log(q/p), the sum is of second order. In f32 only rounding errors are left of it, and a temperature τ
// multiplies them by τ². Since Σ p = Σ q, the same sum is Σ p (e^d - 1 - d), whose terms are of second order
// and never negative. Kernels take d from the difference of two logits and call these functions.

#include <bit>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <type_traits>

#include "ops/distill_ops.h"

namespace farskip {

/// `yes` or `no`, both of which are computed. By masks: GCC 12 turns conditional expressions into branches on
/// AVX2, and then does not vectorise the loop around them.
template <class T>
constexpr T select(bool condition, T yes, T no) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  const Bits mask = -static_cast<Bits>(condition);
  return std::bit_cast<T>((std::bit_cast<Bits>(yes) & mask) | (std::bit_cast<Bits>(no) & ~mask));
}

/// Whether d is so small that a difference of p and q cancels.
template <class T>
constexpr bool is_near(T d) {
  return d * d < T{1};
}

/// e^x - 1 - x for |x| < 1, to f32 precision, by its Taylor series.
template <class T>
constexpr T exp_excess(T x) {
  T tail{1};
  for (int n = 11; n > 2; --n) tail = T{1} + x * (T{1} / static_cast<T>(n)) * tail;
  return T{0.5} * x * x * tail;
}

/// q - p.
template <class T>
constexpr T probability_gain(T p, T q, T d) {
  return select(is_near(d), p * (d + exp_excess(d)), q - p);
}

/// A term of KL(p || q).
template <class T>
constexpr T kl_term(T p, T q, T d) {
  return select(is_near(d), p * exp_excess(d), (q - p) - p * d);
}

/// log(m/p) with m = (p + q) / 2.
template <class T>
constexpr T log_mean_ratio(T d) {
  const T size = d < T{0} ? -d : d;
  return (d + size) * T{0.5} + std::log1p(T{0.5} * std::expm1(-size));
}

/// A term of (KL(p || m) + KL(q || m)) / 2. With x = tanh(d/2), p = m (1 - x) and q = m (1 + x), it is
/// m (x d + log(1 - x²)) / 2.
template <class T>
constexpr T jsd_term(T p, T q, T d) {
  const T m = T{0.5} * (p + q), size = d < T{0} ? -d : d;
  if (is_near(d)) {
    const T x = std::tanh(T{0.5} * d);
    return T{0.5} * m * (x * d + std::log1p(-x * x));
  }
  const T e = std::exp(-size);
  return m * (std::numbers::ln2_v<T> - std::log1p(e) - size * e / (T{1} + e));
}

/// Sums over the elements of two distributions.
struct Divergences {
  double kl = 0.0, reverse_kl = 0.0, jsd = 0.0;
  double jsd_student = 0.0;  // Σ q/2 log(q/m), the mean of what the gradient of jsd is made of

  template <class T>
  constexpr void add(T p, T q, T d, const ops::DistillLoss& a) {
    kl += static_cast<double>(kl_term(p, q, d));
    if (a.reverse_kl > 0) reverse_kl += static_cast<double>(kl_term(q, p, -d));
    if (a.jsd > 0) {
      jsd += static_cast<double>(jsd_term(p, q, d));
      jsd_student += static_cast<double>(T{-0.5} * q * log_mean_ratio(-d));
    }
  }
};

/// Gradient of the weighted divergences with respect to an element's logit, over the temperature.
template <class T>
constexpr T divergence_slope(T p, T q, T d, const Divergences& sums, const ops::DistillLoss& a) {
  T slope = static_cast<T>(a.kl) * probability_gain(p, q, d);
  if (a.reverse_kl > 0) slope += static_cast<T>(a.reverse_kl) * q * (d - static_cast<T>(sums.reverse_kl));
  if (a.jsd > 0)
    slope += static_cast<T>(a.jsd) * q * (T{-0.5} * log_mean_ratio(-d) - static_cast<T>(sums.jsd_student));
  return slope;
}

/// d from two logits that are both divided by the temperature. The logits are subtracted first, which is
/// exact where they are close.
struct LogRatio {
  float offset, scale, rest;

  /// `log_sum_ratio`: log(Σ e^(s·scale) / Σ e^(t·scale)) over all s and t.
  constexpr LogRatio(float scale_of_logits, double log_sum_ratio)
      : offset(static_cast<float>(log_sum_ratio / static_cast<double>(scale_of_logits))),
        scale(scale_of_logits),
        rest(static_cast<float>(log_sum_ratio - static_cast<double>(offset) * static_cast<double>(scale))) {}
  constexpr float at(float s, float t) const { return ((s - t) - offset) * scale - rest; }
};

}  // namespace farskip
