// SPDX-License-Identifier: Apache-2.0
#include "farskip/fold/least_squares.h"

#include <Eigen/Cholesky>

#include "farskip/fold/matrices.h"

namespace farskip {

void NormalEquations::add(const TensorView& gram_part, const TensorView& cross_part, std::int64_t num_rows) {
  rows += static_cast<double>(num_rows);
  gram += as_matrix(gram_part).cast<double>();
  cross += as_matrix(cross_part).cast<double>();
}

Eigen::MatrixXd solve_ridge(const NormalEquations& equations, double ridge) {
  const double mean = equations.gram.diagonal().mean();
  if (!(mean > 0)) return Eigen::MatrixXd::Zero(equations.cross.rows(), equations.cross.cols());
  // Products in f32 are rounded, so the sum may miss being positive definite by more than a small ridge makes
  // up for.
  for (double penalty = ridge * mean;; penalty *= 10.0) {
    Eigen::MatrixXd damped = equations.gram;
    damped.diagonal().array() += penalty;
    const Eigen::LLT<Eigen::MatrixXd> factors(damped);
    if (factors.info() == Eigen::Success) return factors.solve(equations.cross);
    FARSKIP_CHECK(penalty < mean, "sums of squares that are not finite");
  }
}

double squares_gained(const NormalEquations& equations, const Eigen::MatrixXd& solution) {
  return (equations.gram * solution - 2.0 * equations.cross).cwiseProduct(solution).sum();
}

}  // namespace farskip
