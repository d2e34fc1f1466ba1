// SPDX-License-Identifier: Apache-2.0
// Muon's update: momentum, made orthogonal by Newton-Schulz.
#include <cmath>
#include <cstring>

#include "backend/cpu/dense/matmul.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/reduce.h"
#include "backend/random_rounding.h"
#include "farskip/backend/kernel.h"
#include "farskip/ops/optimizer_ops.h"

namespace farskip {
namespace {

// Two of the matrix's size, two of its smaller side, and a sum per tile.
std::size_t muon_workspace(const OpTypes& types) {
  const ops::MuonMatrix size(types.get<ops::Muon>(), types.shape(0));
  const std::int64_t tiles = size.elements / cpu::kElementsPerTile + 1;
  return static_cast<std::size_t>(2 * size.elements + 2 * size.side * size.side) * sizeof(float) +
         static_cast<std::size_t>(tiles + 1) * sizeof(double);
}

class MuonUpdate {
 public:
  explicit MuonUpdate(const KernelCall& call)
      : call_(call),
        a_(call.get<ops::Muon>()),
        size_(a_, call.in_shape(0)),
        factor_(call.in(3)[0]),
        learning_rate_(call.in(4)[ops::kLearningRate]),
        bits_(a_.rounding, call.in(4)[ops::kStep]),
        sums_(reinterpret_cast<double*>(call.workspace.data())),
        x_(reinterpret_cast<float*>(sums_ + size_.elements / cpu::kElementsPerTile + 2)),
        next_(x_ + size_.elements),
        gram_(next_ + size_.elements),
        polynomial_(gram_ + size_.side * size_.side) {}

  void run() {
    const std::int64_t all = call_.in_shape(0).num_elements();
    for (std::int64_t first = 0; first < all; first += size_.elements) {
      if (factor_ == 0.0F) {
        keep(first);
        continue;
      }
      take_momentum(first);
      for (int step = 0; step < ops::Muon::kSteps; ++step) iterate();
      apply(first);
    }
    if (call_.outputs.size() > 2)
      cpu::parallel_ranges(all, cpu::kElementsPerTile, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i)
          call_.out<std::uint16_t>(2)[i] = f32_to_bf16(call_.out(0)[i]);
      });
  }

 private:
  /// Nothing changes; the gradient may be NaN.
  void keep(std::int64_t first) const {
    for (std::size_t i = 0; i < 2; ++i) {
      const TensorView &from = call_.inputs[i], &to = call_.outputs[i];
      const std::size_t size = dtype_size(from.dtype), offset = static_cast<std::size_t>(first) * size;
      if (from.data != to.data)
        std::memcpy(to.as<std::byte>() + offset, from.as<std::byte>() + offset,
                    static_cast<std::size_t>(size_.elements) * size);
    }
  }

  static float read(float value) { return value; }
  static float read(std::uint16_t low) { return bf16_to_f32(low); }
  void write(float value, std::int64_t /*position*/, float& to) const { to = value; }
  void write(float value, std::int64_t position, std::uint16_t& to) const {
    to = round_at_random(value,
                         bits_.word(static_cast<std::uint64_t>(a_.rounding.first + position)) & 0xffffU);
  }

  /// The new momentum, and Nesterov's look ahead of it in x_.
  template <class T>
  void move_momentum(std::int64_t first, const T* m, T* m_out) const {
    const float* gradient = call_.in(2) + first;
    const auto old = static_cast<float>(a_.momentum), rest = static_cast<float>(1.0 - a_.momentum);
    cpu::parallel_ranges(size_.elements, cpu::kElementsPerTile, [&](std::int64_t begin, std::int64_t end) {
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) {
        const float g = factor_ * gradient[i];
        const float now = old * read(m[i]) + rest * g;
        write(now, first + i, m_out[i]);
        x_[i] = old * now + rest * g;
      }
    });
  }

  /// The same of norm 1.
  void take_momentum(std::int64_t first) const {
    if (is_low(call_.inputs[1].dtype))
      move_momentum(first, call_.in<std::uint16_t>(1) + first, call_.out<std::uint16_t>(1) + first);
    else
      move_momentum(first, call_.in(1) + first, call_.out(1) + first);
    const std::int64_t tiles = (size_.elements + cpu::kElementsPerTile - 1) / cpu::kElementsPerTile;
    cpu::parallel_for(tiles, [&](std::int64_t tile) {
      const float* values = x_ + tile * cpu::kElementsPerTile;
      sums_[tile] = cpu::lane_sum<double>(
          std::min(cpu::kElementsPerTile, size_.elements - tile * cpu::kElementsPerTile),
          [&](std::int64_t i) { return static_cast<double>(values[i]) * static_cast<double>(values[i]); });
    });
    double sum = 0;
    for (std::int64_t tile = 0; tile < tiles; ++tile) sum += sums_[tile];
    const float norm = std::max(static_cast<float>(std::sqrt(sum)), ops::Muon::kEps);
    combine(x_, 1.0F / norm, x_, 0.0F, size_.elements);
  }

  /// to = a · to + b · from
  static void combine(float* to, float a, const float* from, float b, std::int64_t elements) {
    cpu::parallel_ranges(elements, cpu::kElementsPerTile, [&](std::int64_t begin, std::int64_t end) {
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) to[i] = a * to[i] + b * from[i];
    });
  }

  void iterate() {
    const std::int64_t k = size_.side, columns = size_.columns;
    const bool wide = size_.is_wide();
    cpu::multiply({.transpose_a = !wide,
                   .transpose_b = wide,
                   .m = k,
                   .n = k,
                   .k = wide ? columns : size_.rows,
                   .a = x_,
                   .lda = columns,
                   .b = x_,
                   .ldb = columns,
                   .c = gram_,
                   .ldc = k});
    cpu::multiply(
        {.m = k, .n = k, .k = k, .a = gram_, .lda = k, .b = gram_, .ldb = k, .c = polynomial_, .ldc = k});
    combine(polynomial_, ops::Muon::kC, gram_, ops::Muon::kB, k * k);
    cpu::multiply({.m = size_.rows,
                   .n = columns,
                   .k = k,
                   .a = wide ? polynomial_ : x_,
                   .lda = wide ? k : columns,
                   .b = wide ? x_ : polynomial_,
                   .ldb = wide ? columns : k,
                   .c = next_,
                   .ldc = columns});
    combine(next_, 1.0F, x_, ops::Muon::kA, size_.elements);
    std::swap(x_, next_);
  }

  void apply(std::int64_t first) const {
    const float* p = call_.in(0) + first;
    float* p_out = call_.out(0) + first;
    const auto keep = static_cast<float>(1.0 - static_cast<double>(learning_rate_) * a_.weight_decay);
    const auto step = static_cast<float>(static_cast<double>(learning_rate_) * size_.scale());
    cpu::parallel_ranges(size_.elements, cpu::kElementsPerTile, [&](std::int64_t begin, std::int64_t end) {
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) p_out[i] = keep * p[i] - step * x_[i];
    });
  }

  const KernelCall& call_;
  const ops::Muon& a_;
  const ops::MuonMatrix size_;
  const float factor_, learning_rate_;
  const RoundingBits bits_;
  double* const sums_;
  float *x_, *next_, *const gram_, *const polynomial_;
};

// parameter, momentum, gradient, factor[1], hyper → parameter, momentum, [parameter in bf16]
void run_muon(const KernelCall& call) {
  if (call.in_shape(0).num_elements() > 0) MuonUpdate(call).run();
}

}  // namespace

void register_muon(KernelTable& table);
void register_muon(KernelTable& table) {
  table.add("muon", DType::f32, DeviceKind::cpu, {.run = run_muon, .workspace = muon_workspace});
}

}  // namespace farskip
