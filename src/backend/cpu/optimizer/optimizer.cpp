// SPDX-License-Identifier: Apache-2.0
// Gradient norm, clip factor, the AdamW update and the average of weights.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <experimental/simd>
#include <limits>

#include "backend/cpu/parallel.h"
#include "backend/cpu/reduce.h"
#include "backend/random_rounding.h"
#include "farskip/backend/kernel.h"
#include "farskip/ops/optimizer_ops.h"

namespace farskip {
namespace {

std::int64_t num_tiles(const Shape& shape) {
  return (shape.num_elements() + cpu::kElementsPerTile - 1) / cpu::kElementsPerTile;
}

// One sum per tile, and the number of the first tile of each input (one more for their end).
std::size_t sum_of_squares_workspace(const OpTypes& types) {
  std::size_t words = types.inputs.size() + 1;
  for (std::size_t i = 0; i < types.inputs.size(); ++i)
    words += static_cast<std::size_t>(num_tiles(types.shape(i)));
  return words * sizeof(double);
}

// Tensors → [1] f64. Tiles are summed in f64 each, then in order of inputs and tiles.
void run_sum_of_squares(const KernelCall& call) {
  static_assert(sizeof(std::int64_t) == sizeof(double));
  const std::size_t num_inputs = call.inputs.size();
  auto* first_tile = reinterpret_cast<std::int64_t*>(call.workspace.data());
  auto* sums = reinterpret_cast<double*>(call.workspace.data()) + num_inputs + 1;
  first_tile[0] = 0;
  for (std::size_t i = 0; i < num_inputs; ++i)
    first_tile[i + 1] = first_tile[i] + num_tiles(call.in_shape(i));
  const std::int64_t tiles = first_tile[num_inputs];
  cpu::parallel_for(tiles, [&](std::int64_t tile) {
    const auto* after = std::upper_bound(first_tile, first_tile + num_inputs + 1, tile);
    const auto input = static_cast<std::size_t>(after - first_tile - 1);
    const std::int64_t begin = (tile - first_tile[input]) * cpu::kElementsPerTile;
    const std::int64_t size = std::min(cpu::kElementsPerTile, call.inputs[input].num_elements() - begin);
    const float* values = call.in(input) + begin;
    sums[tile] = cpu::lane_sum<double>(size, [&](std::int64_t i) {
      const auto value = static_cast<double>(values[i]);
      return value * value;
    });
  });
  double sum = 0.0;
  for (std::int64_t tile = 0; tile < tiles; ++tile) sum += sums[tile];
  call.out<double>(0)[0] = sum;
}

void run_find_fault(const KernelCall& call) {
  const bool fault = !std::isfinite(call.in(0)[0]) ||
                     std::any_of(call.inputs.begin() + 1, call.inputs.end(),
                                 [](const TensorView& flag) { return *flag.as<std::int32_t>() != 0; });
  call.out(0)[0] = fault ? std::numeric_limits<float>::infinity() : 0.0F;
}

void run_clip_factor(const KernelCall& call) {
  const double max_norm = call.get<ops::ClipFactor>().max_norm;
  double sum = 0;
  for (std::size_t i = 0; i < call.inputs.size(); ++i) sum += call.in<double>(i)[0];
  const double norm = std::sqrt(sum);
  call.out(0)[0] = static_cast<float>(norm);
  if (!std::isfinite(call.out(0)[0])) {  // what is told and what is done agree beyond the range of f32 too
    call.out(1)[0] = 0.0F;
  } else {
    call.out(1)[0] = max_norm > 0.0 ? static_cast<float>(std::min(1.0, max_norm / (norm + 1e-6))) : 1.0F;
  }
}

/// The numbers that every element of an update shares.
struct AdamWStep {
  AdamWStep(const ops::AdamW& a, float clip, const float* hyper)
      : beta1(static_cast<float>(a.beta1)),
        beta2(static_cast<float>(a.beta2)),
        rest1(static_cast<float>(1.0 - a.beta1)),
        rest2(static_cast<float>(1.0 - a.beta2)),
        eps(static_cast<float>(a.eps)),
        keep(static_cast<float>(1.0 - static_cast<double>(hyper[ops::kLearningRate]) * a.weight_decay)),
        factor(clip),
        step(hyper[ops::kLearningRate] * hyper[ops::kOverC1]),
        over_c2(hyper[ops::kOverC2]),
        bits(a.rounding, hyper[ops::kStep]),
        position(static_cast<std::uint64_t>(a.rounding.first)) {}
  float beta1, beta2, rest1, rest2, eps;
  float keep;    // 1 - lr · weight decay
  float factor;  // of the gradient
  float step;    // lr / c1
  float over_c2;
  RoundingBits bits;       // of moments in bf16,
  std::uint64_t position;  // of which the first here is this one of the parameter's
};

void copy_state(const KernelCall& call, std::int64_t begin, std::int64_t end) {
  for (std::size_t i = 0; i < 3; ++i) {
    const TensorView &from = call.inputs[i], &to = call.outputs[i];
    const std::size_t size = dtype_size(from.dtype);
    if (from.data != to.data)
      std::memcpy(to.as<std::byte>() + static_cast<std::size_t>(begin) * size,
                  from.as<std::byte>() + static_cast<std::size_t>(begin) * size,
                  static_cast<std::size_t>(end - begin) * size);
  }
}

/// Square roots in place. std::sqrt may set errno, which keeps a loop of it from being vectorised.
void take_roots(float* values, std::int64_t n) {
  using Lanes = std::experimental::native_simd<float>;
  constexpr auto size = static_cast<std::int64_t>(Lanes::size());
  std::int64_t i = 0;
  for (; i + size <= n; i += size) {
    const Lanes lanes(values + i, std::experimental::element_aligned);
    sqrt(lanes).copy_to(values + i, std::experimental::element_aligned);
  }
  for (; i < n; ++i) values[i] = std::sqrt(values[i]);
}

constexpr std::int64_t kChunk = 512;  // elements that stay in the first-level cache between loops

/// A chunk of f32 moments where they lie, or of those in bf16 a copy.
class MomentChunk {
 public:
  MomentChunk(const KernelCall& call, std::size_t input)
      : in_(call.inputs[input]), out_(call.outputs[input]) {}

  const float* read(std::int64_t first, std::int64_t count) {
    if (!is_low(in_.dtype)) return in_.as<float>() + first;
    const auto* low = in_.as<std::uint16_t>() + first;
    for (std::int64_t i = 0; i < count; ++i) copy_[i] = bf16_to_f32(low[i]);
    return copy_;
  }
  float* written(std::int64_t first) { return is_low(out_.dtype) ? copy_ : out_.as<float>() + first; }
  /// `words`: of the elements of the chunk, of which the bits from `shift` on are this moment's.
  void round(const std::uint32_t* words, int shift, std::int64_t first, std::int64_t count) {
    auto* low = out_.as<std::uint16_t>() + first;
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) low[i] = round_at_random(copy_[i], words[i] >> shift & 0xffffU);
  }

 private:
  const TensorView &in_, &out_;
  alignas(64) float copy_[kChunk];
};

/// The words of elements of the parameter from `position` on.
void draw_words(const RoundingBits& bits, std::uint64_t position, std::int64_t count, std::uint32_t* words) {
  std::int64_t i = 0;
  for (; i < count && (position + static_cast<std::uint64_t>(i)) % 4 != 0; ++i)
    words[i] = bits.word(position + static_cast<std::uint64_t>(i));
  const std::uint64_t block = (position + static_cast<std::uint64_t>(i)) / 4;
  const std::int64_t whole = (count - i) / 4;
#pragma omp simd
  for (std::int64_t b = 0; b < whole; ++b) {
    const RoundingBits::Block four = bits.block(block + static_cast<std::uint64_t>(b));
    for (std::size_t j = 0; j < 4; ++j) words[i + 4 * b + static_cast<std::int64_t>(j)] = four[j];
  }
  for (i += 4 * whole; i < count; ++i) words[i] = bits.word(position + static_cast<std::uint64_t>(i));
}

void update_state(const KernelCall& call, const AdamWStep& s, std::int64_t begin, std::int64_t end) {
  MomentChunk first_moment(call, 1), second_moment(call, 2);
  alignas(64) float roots[kChunk];
  alignas(64) std::uint32_t words[kChunk];
  for (std::int64_t first = begin; first < end; first += kChunk) {
    const std::int64_t count = std::min(kChunk, end - first);
    const float *p = call.in(0) + first, *gradient = call.in(3) + first;
    const float *m = first_moment.read(first, count), *v = second_moment.read(first, count);
    float *p_out = call.out(0) + first, *m_out = first_moment.written(first),
          *v_out = second_moment.written(first);
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) {
      const float g = s.factor * gradient[i];
      const float new_v = s.beta2 * v[i] + s.rest2 * g * g;
      m_out[i] = s.beta1 * m[i] + s.rest1 * g;
      v_out[i] = new_v;
      roots[i] = new_v * s.over_c2;
    }
    take_roots(roots, count);
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i)
      p_out[i] = s.keep * p[i] - s.step * m_out[i] / (roots[i] + s.eps);
    if (!is_low(call.outputs[1].dtype)) continue;
    draw_words(s.bits, s.position + static_cast<std::uint64_t>(first), count, words);
    first_moment.round(words, 0, first, count);
    second_moment.round(words, 16, first, count);
  }
}

void round_parameter(const KernelCall& call, std::int64_t begin, std::int64_t end) {
  const float* p = call.out(0);
  auto* low = call.out<std::uint16_t>(3);
  for (std::int64_t i = begin; i < end; ++i) low[i] = f32_to_bf16(p[i]);
}

// parameter, m, v, gradient, factor[1], hyper → parameter, m, v, [parameter in bf16]
void run_adamw(const KernelCall& call) {
  const AdamWStep step(call.get<ops::AdamW>(), call.in(4)[0], call.in(5));
  const auto run_range = [&](std::int64_t begin, std::int64_t end) {
    if (step.factor == 0.0F) {
      copy_state(call, begin, end);
    } else {
      update_state(call, step, begin, end);
    }
    if (call.outputs.size() > 3) round_parameter(call, begin, end);
  };
  cpu::parallel_ranges(call.in_shape(0).num_elements(), cpu::kElementsPerTile, run_range);
}

// average, parameter, factor[1], hyper → average
void run_moving_average(const KernelCall& call) {
  const float share = call.get<ops::MovingAverage>().share(call.in(2)[0], call.in(3)[ops::kStep]);
  cpu::parallel_ranges(call.in_shape(0).num_elements(), cpu::kElementsPerTile,
                       [&](std::int64_t begin, std::int64_t end) {
                         const float *average = call.in(0), *p = call.in(1);
                         float* out = call.out(0);
#pragma omp simd
                         for (std::int64_t i = begin; i < end; ++i)
                           out[i] = average[i] + share * (p[i] - average[i]);
                       });
}

}  // namespace

void register_optimizer(KernelTable& table);
void register_optimizer(KernelTable& table) {
  table.add("sum_of_squares", DType::f32, DeviceKind::cpu,
            {.run = run_sum_of_squares, .workspace = sum_of_squares_workspace});
  table.add("find_fault", DType::f32, DeviceKind::cpu, {.run = run_find_fault, .workspace = nullptr});
  table.add("clip_factor", DType::f64, DeviceKind::cpu, {.run = run_clip_factor, .workspace = nullptr});
  table.add("adamw", DType::f32, DeviceKind::cpu, {.run = run_adamw, .workspace = nullptr});
  table.add("moving_average", DType::f32, DeviceKind::cpu, {.run = run_moving_average, .workspace = nullptr});
}

}  // namespace farskip
