// SPDX-License-Identifier: Apache-2.0
#include "backend/cpu/vector_math.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.h"

using namespace farskip::cpu;

namespace {

/// Every float of [lowest, highest] whose bits are a multiple of `step` apart.
template <class F>
void for_floats(float lowest, float highest, std::uint32_t step, const F& f) {
  for (const float sign : {-1.0F, 1.0F})
    for (std::uint64_t bits = 0; bits < 0x7f800000U; bits += step) {
      const float x = sign * std::bit_cast<float>(static_cast<std::uint32_t>(bits));
      if (x >= lowest && x <= highest) f(x);
    }
}

}  // namespace

TEST_CASE("fast_exp has a relative error below 2^-23 wherever the result is a normal number") {
  double worst = 0;
  for_floats(-87.3365F, 88.7228F, 61, [&](float x) {
    const double exact = std::exp(static_cast<double>(x));
    worst = std::max(worst, std::abs(static_cast<double>(fast_exp(x)) - exact) / exact);
  });
  CAPTURE(worst);
  CHECK(worst < std::ldexp(1.0, -23));
}

TEST_CASE("fast_exp at the ends: zero, infinity and NaN") {
  const float inf = std::numeric_limits<float>::infinity();
  CHECK(fast_exp(0.0F) == 1.0F);
  CHECK(fast_exp(-inf) == 0.0F);
  CHECK(fast_exp(-88.0F) == 0.0F);
  CHECK(fast_exp(-3.0e38F) == 0.0F);
  CHECK(fast_exp(inf) == inf);
  CHECK(fast_exp(89.0F) == inf);
  CHECK(fast_exp(3.0e38F) == inf);
  CHECK(std::isnan(fast_exp(std::numeric_limits<float>::quiet_NaN())));
  CHECK(std::isfinite(fast_exp(88.7228F)));
}

TEST_CASE("a vectorised loop of fast_exp gives the bits of single calls") {
  std::vector<float> x(1003), y(1003);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = 0.37F * static_cast<float>(i) - 200.0F;
#pragma omp simd
  for (std::size_t i = 0; i < x.size(); ++i) y[i] = fast_exp(x[i]);
  for (std::size_t i = 0; i < x.size(); ++i) {
    float (*volatile single)(float) = fast_exp;
    CHECK(std::bit_cast<std::uint32_t>(y[i]) == std::bit_cast<std::uint32_t>(single(x[i])));
  }
}

TEST_CASE("sigmoid and silu agree with double precision, far out too") {
  for_floats(-80.0F, 200.0F, 9973, [&](float x) {
    const double s = 1 / (1 + std::exp(-static_cast<double>(x)));
    REQUIRE(std::abs(fast_sigmoid(x) - s) <= 3e-7 * s);
    REQUIRE(std::abs(silu(x) - x * s) <= 4e-7 * std::abs(x * s) + 1e-44);
    REQUIRE(std::abs(silu_grad(x) - s * (1 + x * (1 - s))) <= 1e-6);
  });
  CHECK(fast_sigmoid(-200.0F) == 0.0F);
  CHECK(silu(-200.0F) == 0.0F);
}
