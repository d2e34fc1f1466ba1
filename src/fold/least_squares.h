// SPDX-License-Identifier: Apache-2.0
#pragma once
// Ridge regression from sums that any number of batches add to.

#include <Eigen/Core>
#include <span>
#include <vector>

#include "farskip/tensor/tensor.h"

namespace farskip {

/// Of rows x [n, from] and r [n, to]: XᵀX and XᵀR, in double.
struct NormalEquations {
  NormalEquations(std::int64_t from, std::int64_t to)
      : gram(Eigen::MatrixXd::Zero(from, from)), cross(Eigen::MatrixXd::Zero(from, to)) {}
  /// Add those of some rows: f32 [from, from] and [from, to].
  void add_gram(const TensorView& part);
  void add_cross(const TensorView& part);

  Eigen::MatrixXd gram, cross;
};

/// D [from, to] that minimises ‖R − X D‖² + penalty ‖D‖², with penalty = ridge · mean diagonal of XᵀX: what r
/// changes towards, so that directions in which x says little stay as they are. Zero where all x are zero.
/// Several are solved at once, on all threads. Gram matrices are the memory of their own factors, and the
/// same afterwards but for rounding.
std::vector<Eigen::MatrixXd> solve_ridges(std::span<NormalEquations> equations,
                                          std::span<const double> ridges);
/// ‖R − X D‖² − ‖R‖².
double squares_gained(const NormalEquations& equations, const Eigen::MatrixXd& solution);

}  // namespace farskip
