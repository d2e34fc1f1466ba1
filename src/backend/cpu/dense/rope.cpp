// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding: the table of cosines and sines, and the rotation.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cpu/parallel.h"
#include "backend/cpu/reduce.h"
#include "backend/rope_angles.h"
#include "farskip/backend/kernel.h"
#include "farskip/ops/ops.h"

namespace farskip {
namespace {

void run_rope_table(const KernelCall& call) {
  const auto& a = call.get<ops::RopeTable>();
  float* out = call.out(0);
  const auto* positions = call.has(0) ? call.in<std::int32_t>(0) : nullptr;
  const std::vector<double> angles = rope_angles(a);
  const std::int64_t pairs = a.dim / 2;
  const auto fill_pair = [&](std::int64_t pair, std::int64_t begin, std::int64_t end) {
    const double angle = angles[static_cast<std::size_t>(pair)];
    for (std::int64_t r = begin; r < end; ++r) {
      const auto position = static_cast<double>(positions == nullptr ? r : positions[r]);
      float* row = out + r * a.dim;
      row[pair] = static_cast<float>(std::cos(position * angle) * a.attention_factor);
      row[pairs + pair] = static_cast<float>(std::sin(position * angle) * a.attention_factor);
    }
  };
  constexpr std::int64_t positions_per_tile = 64;
  cpu::parallel_ranges(a.positions, positions_per_tile, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t pair = 0; pair < pairs; ++pair) fill_pair(pair, begin, end);
  });
}

void run_attention_temperature(const KernelCall& call) {
  const auto& a = call.get<ops::AttentionTemperature>();
  if (call.has(0)) {
    const auto* positions = call.in<std::int32_t>(0);
    for (std::int64_t t = 0; t < a.tokens; ++t) call.out(0)[t] = attention_temperature_at(a, positions[t]);
    return;
  }
  const std::vector<float> values = attention_temperatures(a);
  for (std::int64_t first = 0; first < a.tokens; first += a.sequence_length)
    std::copy(values.begin(), values.end(), call.out(0) + first);
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
  table.add("attention_temperature", DType::f32, DeviceKind::cpu,
            {.run = run_attention_temperature, .workspace = nullptr});
  table.add("rope", DType::f32, DeviceKind::cpu, {.run = run_rope, .workspace = nullptr});
}

}  // namespace farskip
