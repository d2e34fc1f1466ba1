// SPDX-License-Identifier: Apache-2.0
#pragma once
// Ops of the update (part of the catalogue of ops.h).

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "farskip/ops/ops.h"

namespace farskip::ops {

/// f32 tensors (1 to 4096 of them) → [1] f64: Σ of all squares, in order of the inputs.
ValueId sum_of_squares(Builder& b, std::vector<ValueId> tensors);

/// A number f32[1] and flags i32[1] (4095 at most) → f32[1]: infinity where the number is not finite or a
/// flag is not 0, else 0. What no step may learn from: among the gradients whose squares clip_factor gets, it
/// stops the update. In place in the number.
ValueId find_fault(Builder& b, ValueId number, std::vector<ValueId> flags);

struct ClipFactor {
  double max_norm = 1.0;  // 0: no clipping
  static void fields(auto& self, auto&& f) { f("max_norm", self.max_norm); }
};
/// sums of squares f64[1] (one or more, added) → (norm f32[1] = sqrt of the sum, factor f32[1] = min(1,
/// max_norm / (norm + 1e-6))), as torch.nn.utils.clip_grad_norm_. A norm that is not finite gives factor 0:
/// the update is then skipped.
std::pair<ValueId, ValueId> clip_factor(Builder& b, std::vector<ValueId> sums, double max_norm);

/// Which random bits states in bf16 are rounded by (backend/random_rounding.h). Not read where they are f32.
struct StateRounding {
  std::int64_t seed = 0;    // of the run
  std::int64_t stream = 0;  // of the parameter, below 2^32
  std::int64_t first = 0;   // element of the whole parameter where the part here begins; others follow it
};

/// f32[4]: what the update of a step reads.
enum HyperElement { kLearningRate, kOverC1, kOverC2, kStep, kNumHyper };

struct AdamW {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.0;
  bool low_copy = false;
  StateRounding rounding{};
  static void fields(auto& self, auto&& f) {
    f("beta1", self.beta1);
    f("beta2", self.beta2);
    f("eps", self.eps);
    f("weight_decay", self.weight_decay);
    f("low_copy", self.low_copy);
    f("seed", self.rounding.seed);
    f("stream", self.rounding.stream);
    f("first", self.rounding.first);
  }
};
struct AdamWState {
  ValueId parameter, m, v;
  ValueId low_copy{};  // with AdamW::low_copy: the new parameter, rounded to bf16; a result only
};
/// Decoupled weight decay (Loshchilov & Hutter 2019): g' = factor·g; m = β1 m + (1-β1) g'; v = β2 v +
/// (1-β2) g'²; p = p (1 - lr·wd) - lr · (m/c1) / (sqrt(v/c2) + eps), c_i = 1 - β_i^step. hyper f32[4] =
/// {lr, 1/c1, 1/c2, step}; factor f32[1]. m and v are f32 or bf16; in bf16 p moves by the new ones as they
/// are in f32, and AdamW::rounding says how they are rounded then. Where factor is 0 nothing changes
/// (low_copy is then the rounded p). In place in p, m, v.
AdamWState adamw(Builder& b, const AdamWState& state, ValueId grad, ValueId factor, ValueId hyper,
                 const AdamW& attributes);

struct Muon {
  double momentum = 0.95, weight_decay = 0.0;
  std::int64_t matrix_rows = 0;  // of one matrix; 0: all rows are one
  bool low_copy = false;
  StateRounding rounding{};
  static void fields(auto& self, auto&& f) {
    f("momentum", self.momentum);
    f("weight_decay", self.weight_decay);
    f("matrix_rows", self.matrix_rows);
    f("low_copy", self.low_copy);
    f("seed", self.rounding.seed);
    f("stream", self.rounding.stream);
    f("first", self.rounding.first);
  }
  /// Newton-Schulz: X ← a X + (b A + c A²) X with A = X Xᵀ, so often.
  static constexpr int kSteps = 5;
  static constexpr float kA = 3.4445F, kB = -4.7750F, kC = 2.0315F;
  static constexpr float kEps = 1e-7F;
};
/// One of the matrices that lie below each other in a tensor.
struct MuonMatrix {
  MuonMatrix(const Muon& muon, const Shape& shape)
      : rows(muon.matrix_rows > 0 ? muon.matrix_rows : shape.num_rows()),
        columns(shape.back()),
        elements(rows * columns),
        side(std::min(rows, columns)) {}
  /// It multiplies updates, so that their root mean square is that of AdamW's (Liu et al. 2025, Moonlight).
  double scale() const { return 0.2 * std::sqrt(static_cast<double>(std::max(rows, columns))); }
  /// Products are taken from the left, with X Xᵀ; else from the right, with Xᵀ X, which is smaller then.
  bool is_wide() const { return rows <= columns; }
  std::int64_t rows, columns, elements;
  std::int64_t side;  // of that square matrix
};
struct MuonState {
  ValueId parameter, momentum;
  ValueId low_copy{};  // as AdamWState's
};
/// Muon (Jordan et al. 2024) with Nesterov momentum, of each matrix [matrix_rows, columns] that lie below
/// each other in [rows, columns]: g' = factor·g; m = μ m + (1-μ) g'; u = μ m + (1-μ) g'; X = u / max(‖u‖,
/// 1e-7), then kSteps of Newton-Schulz; p = p (1 - lr·wd) - lr · MuonMatrix::scale · X. On a GPU X and A
/// are bf16. hyper as of adamw; factor f32[1]. m is f32 or bf16, and is then rounded as adamw's is, after X.
/// Where factor is 0 nothing changes. In place in p, m.
MuonState muon(Builder& b, const MuonState& state, ValueId grad, ValueId factor, ValueId hyper,
               const Muon& attributes);

struct MovingAverage {
  double decay = 0.999;
  static void fields(auto& self, auto&& f) { f("decay", self.decay); }
  /// By which a step counts, `factor` and `step` as the op reads them.
  constexpr float share(float factor, float step) const {
    const auto least = static_cast<float>(1.0 - decay), first = 1.0F / step;
    return factor == 0.0F ? 0.0F : least > first ? least : first;
  }
};
/// f32 average a of a parameter p: a = a + max(1 - decay, 1/step) (p - a). So the first 1 / (1 - decay) steps
/// count alike, and later what is old decays exponentially. hyper as of adamw; where factor f32[1] is 0
/// nothing changes. In place in a.
ValueId moving_average(Builder& b, ValueId average, ValueId parameter, ValueId factor, ValueId hyper,
                       const MovingAverage& attributes);

}  // namespace farskip::ops
