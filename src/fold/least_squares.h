// SPDX-License-Identifier: Apache-2.0
#pragma once
// Ridge regression from sums that any number of batches add to.

#include <Eigen/Core>
#include <vector>

#include "farskip/tensor/tensor.h"

namespace farskip {

/// Of rows x [n, from] and r [n, to]: XᵀX and XᵀR, in double.
struct NormalEquations {
  NormalEquations(std::int64_t from, std::int64_t to)
      : gram(Eigen::MatrixXd::Zero(from, from)), cross(Eigen::MatrixXd::Zero(from, to)) {}
  /// Adds those of some rows: f32 [from, from] and [from, to].
  void add(const TensorView& gram_part, const TensorView& cross_part);

  Eigen::MatrixXd gram, cross;
};

/// D [from, to] that minimises ‖R − X D‖² + penalty ‖D‖², with penalty = ridge · mean diagonal of XᵀX: what r
/// changes towards, so that directions in which x says little stay as they are. Zero where all x are zero.
/// Several are solved at once, on all threads.
std::vector<Eigen::MatrixXd> solve_ridges(const std::vector<NormalEquations>& equations,
                                          const std::vector<double>& ridges);
inline Eigen::MatrixXd solve_ridge(const NormalEquations& equations, double ridge) {
  return solve_ridges({equations}, {ridge})[0];
}
/// ‖R − X D‖² − ‖R‖².
double squares_gained(const NormalEquations& equations, const Eigen::MatrixXd& solution);

}  // namespace farskip
