// SPDX-License-Identifier: Apache-2.0
// What optimizers keep in bf16: rounded at random, by a counter.
#include "backend/random_rounding.h"

#include <array>
#include <cmath>
#include <limits>

#include "farskip/ops/optimizer_ops.h"
#include "farskip/tensor/safetensors.h"
#include "interpreter.h"
#include "op_case.h"
#include "support/catch.h"
#include "support/support.h"

namespace farskip::test {
namespace {

std::uint16_t low_bits(const TensorView& view, std::int64_t i) {
  return view.as<std::uint16_t>()[i];
}

/// NumPy rounds f64 sums, which differ from f32 ones in the last bits: one in some ten thousand then falls on
/// the other side, and stays a unit off for some steps.
TEST_CASE("steps of AdamW with moments in bf16 are those of NumPy") {
  const SafetensorsFile reference(fixtures() / "low_moments" / "reference.safetensors");
  const HostTensor gradients = reference.read("gradients"), p_after = reference.read("p"),
                   m_after = reference.read("m"), v_after = reference.read("v");
  const std::int64_t steps = gradients.shape()[0], n = gradients.shape()[1];
  const ops::AdamW adamw{.weight_decay = 0.1, .rounding = {0x123456789abc, 0xdeadbeef, 13}};
  HostTensor p = reference.read("start"), m(DType::bf16, {n}), v(DType::bf16, {n});
  for (const HostTensor* moment : {&m, &v}) std::fill_n(moment->view().as<std::uint16_t>(), n, 0);
  std::int64_t others = 0;
  for (std::int64_t step = 0; step < steps; ++step) {
    CAPTURE(step);
    const auto t = static_cast<double>(step + 1);
    const HostTensor hyper =
        float_tensor({4}, {1e-2F, static_cast<float>(1 / (1 - std::pow(0.9, t))),
                           static_cast<float>(1 / (1 - std::pow(0.95, t))), static_cast<float>(t)});
    const HostTensor factor = float_tensor({1}, {1.0F});
    const TensorView gradient(gradients.view().as<float>() + step * n, DType::f32, Shape{n});
    const auto after =
        run_op("adamw", adamw, {p.view(), m.view(), v.view(), gradient, factor.view(), hyper.view()});
    for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
      const std::size_t at = static_cast<std::size_t>(step * n) + i;
      p.values<float>()[i] = after[0].view().as<float>()[i];
      REQUIRE(p.values<float>()[i] == Catch::Approx(p_after.values<float>()[at]).epsilon(1e-4).margin(1e-5));
      for (const auto& [mine, theirs, output] :
           {std::tuple{&m, &m_after, std::size_t{1}}, {&v, &v_after, std::size_t{2}}}) {
        const std::uint16_t bits = low_bits(after[output].view(), static_cast<std::int64_t>(i));
        mine->values<std::uint16_t>()[i] = bits;
        const std::int32_t difference = bits - theirs->values<std::int32_t>()[at];
        REQUIRE(std::abs(difference) <= 1);
        others += difference != 0 ? 1 : 0;
      }
    }
  }
  CHECK(others < 2 * steps * n / 1000);
}

TEST_CASE("rounding at random is right on average, and leaves alone what it need not round") {
  const RoundingBits bits({7, 9, 0}, 3.0F);
  constexpr std::uint64_t draws = 1 << 16;
  for (const float value : {1.0F + 0.3F / 128, -1.0F - 0.9F / 128, 3.14159F, 1.7e-38F, 1e-41F, 0x1.fffep0F}) {
    CAPTURE(value);
    const std::uint16_t toward_zero = round_at_random(value, 0);
    const double unit =
        std::abs(static_cast<double>(bf16_to_f32(toward_zero + 1)) - bf16_to_f32(toward_zero));
    double sum = 0;
    for (std::uint64_t i = 0; i < draws; ++i) {
      const std::uint16_t rounded = round_at_random(value, bits.word(i) >> 16);
      REQUIRE((rounded == toward_zero || rounded == toward_zero + 1));
      sum += bf16_to_f32(rounded);
    }
    // Five standard deviations of a mean of draws that are apart by one unit.
    CHECK(std::abs(sum / draws - value) < 5 * 0.5 * unit / std::sqrt(static_cast<double>(draws)));
  }
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (const float exact : {0.0F, -0.0F, 1.0F, -2.5F, infinity, -infinity, 3.3895314e38F})
    for (const std::uint32_t random : {0U, 1U, 0xffffU})
      CHECK(bf16_to_f32(round_at_random(exact, random)) == exact);
  CHECK(bf16_to_f32(round_at_random(std::numeric_limits<float>::max(), 0xffffU)) == 3.3895314e38F);
  CHECK(std::isnan(bf16_to_f32(round_at_random(std::nanf(""), 0xffffU))));
  CHECK(std::isnan(bf16_to_f32(round_at_random(-std::nanf(""), 0xffffU))));
}

/// p, m (and v), in bf16, after one step from what rows `first` to `first` + `rows` - 1 of a parameter hold.
std::vector<Buffer> step_of(const std::string& op, std::int64_t first, std::int64_t rows, float step,
                            std::int64_t seed = 5) {
  const Shape shape{50, 7};
  const ops::StateRounding rounding{seed, 11, first * shape[1]};
  const HostTensor p = random_tensor(shape, 1), gradient = random_tensor(shape, 2),
                   m = convert_dtype(random_tensor(shape, 3), DType::bf16),
                   v = convert_dtype(random_tensor(shape, 4, 0.1, 1.0), DType::bf16),
                   factor = float_tensor({1}, {1.0F}), hyper = float_tensor({4}, {1e-2F, 1.0F, 1.0F, step});
  const auto part = [&](const HostTensor& whole) { return rows_view(whole.view(), first, rows); };
  if (op == "adamw")
    return run_op("adamw", ops::AdamW{.rounding = rounding},
                  {part(p), part(m), part(v), part(gradient), factor.view(), hyper.view()});
  return run_op("muon", ops::Muon{.matrix_rows = 5, .rounding = rounding},
                {part(p), part(m), part(gradient), factor.view(), hyper.view()});
}

TEST_CASE("parts of a parameter are rounded like the whole, and another step or seed otherwise") {
  for (const std::string op : {"adamw", "muon"}) {
    CAPTURE(op);
    const auto whole = step_of(op, 0, 50, 3.0F);
    for (const auto& [first, rows] : {std::pair{std::int64_t{0}, std::int64_t{15}}, {15, 5}, {20, 30}}) {
      CAPTURE(first, rows);
      const auto part = step_of(op, first, rows, 3.0F);
      REQUIRE(part.size() == whole.size());
      for (std::size_t o = 1; o < whole.size(); ++o) {
        REQUIRE(whole[o].view().dtype == DType::bf16);
        CHECK(part[o].same_bits(Buffer::copy_of(rows_view(whole[o].view(), first, rows))));
      }
    }
    for (const auto& other : {step_of(op, 0, 50, 4.0F), step_of(op, 0, 50, 3.0F, 6)}) {
      CHECK(other[0].same_bits(whole[0]));  // weights move by moments as they are before
      CHECK_FALSE(other[1].same_bits(whole[1]));
    }
  }
}

}  // namespace
}  // namespace farskip::test
