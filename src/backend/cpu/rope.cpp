// Rotary position embedding: the table of angles and the rotation.
#include <cmath>
#include <cstring>
#include <numbers>

#include "farskip/backend/cpu/parallel.h"
#include "farskip/backend/cpu/reduce.h"
#include "farskip/backend/kernel.h"
#include "farskip/ops/ops.h"

namespace farskip {
namespace {

/// Angle per position of each pair. YaRN (arXiv 2309.00071, section 3.2): pairs that turn more than
/// beta_fast times over the original context keep their frequency, pairs that turn less than beta_slow
/// times are slowed by `factor`, pairs between are blended linearly. The bounds are whole pairs.
struct Frequencies {
  explicit Frequencies(const ops::RopeTable& a) : attributes(a) {
    if (a.scaling == ops::RopeScaling::none) return;
    first_blended = std::max(std::floor(pair_turning(a.beta_fast)), 0.0);
    first_slowed = std::min(std::ceil(pair_turning(a.beta_slow)), static_cast<double>(a.dim - 1));
    if (first_blended == first_slowed) first_slowed += 0.001;  // a step instead of a division by zero
  }

  double operator()(std::int64_t pair) const {
    const ops::RopeTable& a = attributes;
    const double plain = std::pow(a.theta, -static_cast<double>(2 * pair) / static_cast<double>(a.dim));
    if (a.scaling == ops::RopeScaling::none) return plain;
    const double ramp = (static_cast<double>(pair) - first_blended) / (first_slowed - first_blended);
    const double slowed = std::min(std::max(ramp, 0.0), 1.0);
    return plain * (1.0 - slowed) + plain / a.factor * slowed;
  }

  /// The (fractional) pair that turns `rotations` times over the original context.
  double pair_turning(double rotations) const {
    const ops::RopeTable& a = attributes;
    const double wavelength = static_cast<double>(a.original_positions) / rotations;
    return static_cast<double>(a.dim) * std::log(wavelength / (2.0 * std::numbers::pi)) /
           (2.0 * std::log(a.theta));
  }

  const ops::RopeTable& attributes;
  double first_blended = 0, first_slowed = 0;
};

void run_rope_table(const KernelCall& call) {
  const auto& a = call.get<ops::RopeTable>();
  float* out = call.out(0);
  const Frequencies frequency(a);
  const std::int64_t pairs = a.dim / 2;
  const auto fill_pair = [&](std::int64_t pair, std::int64_t begin, std::int64_t end) {
    const double angle = frequency(pair);
    for (std::int64_t position = begin; position < end; ++position) {
      float* row = out + position * a.dim;
      row[pair] = static_cast<float>(std::cos(static_cast<double>(position) * angle) * a.attention_factor);
      row[pairs + pair] =
          static_cast<float>(std::sin(static_cast<double>(position) * angle) * a.attention_factor);
    }
  };
  constexpr std::int64_t positions_per_tile = 64;
  cpu::parallel_ranges(a.positions, positions_per_tile, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t pair = 0; pair < pairs; ++pair) fill_pair(pair, begin, end);
  });
}

/// Rotates `pairs` pairs of `in` into `out`, which may be the same.
void rotate_interleaved(const float* in, float* out, const float* cosines, const float* sines, float sign,
                        std::int64_t pairs) {
#pragma omp simd
  for (std::int64_t i = 0; i < pairs; ++i) {
    const float x = in[2 * i], y = in[2 * i + 1], sine = sign * sines[i];
    out[2 * i] = x * cosines[i] - y * sine;
    out[2 * i + 1] = x * sine + y * cosines[i];
  }
}

void rotate_halves(const float* in, float* out, const float* cosines, const float* sines, float sign,
                   std::int64_t pairs) {
#pragma omp simd
  for (std::int64_t i = 0; i < pairs; ++i) {
    const float x = in[i], y = in[i + pairs], sine = sign * sines[i];
    out[i] = x * cosines[i] - y * sine;
    out[i + pairs] = x * sine + y * cosines[i];
  }
}

void run_rope(const KernelCall& call) {
  const auto& a = call.get<ops::Rope>();
  const float *x = call.in(0), *table = call.in(1);
  float* out = call.out(0);
  const std::int64_t tokens = call.in_shape(0)[0], width = call.in_shape(0)[1];
  const std::int64_t positions = call.in_shape(1)[0], pairs = a.dim / 2;
  const float sign = a.inverse ? -1.0F : 1.0F;
  cpu::parallel_ranges(tokens, cpu::rows_per_tile(width), [&](std::int64_t begin, std::int64_t end) {
    if (x != out)
      std::memcpy(out + begin * width, x + begin * width,
                  static_cast<std::size_t>((end - begin) * width) * sizeof(float));
    for (std::int64_t t = begin; t < end; ++t) {
      const float* cosines = table + t % positions * a.dim;
      for (std::int64_t head = 0; head < width; head += a.head_dim) {
        float* rotated = out + t * width + head + a.offset;
        (a.interleaved ? rotate_interleaved : rotate_halves)(rotated, rotated, cosines, cosines + pairs, sign,
                                                             pairs);
      }
    }
  });
}

}  // namespace

void register_rope(KernelTable& table);
void register_rope(KernelTable& table) {
  table.add("rope_table", DType::f32, DeviceKind::cpu, {.run = run_rope_table, .workspace = nullptr});
  table.add("rope", DType::f32, DeviceKind::cpu, {.run = run_rope, .workspace = nullptr});
}

}  // namespace farskip
