// SPDX-License-Identifier: Apache-2.0
#include "fold/least_squares.h"

#include <Eigen/Cholesky>
#include <optional>

#include "backend/cpu/parallel.h"
#include "fold/matrices.h"

namespace farskip {
namespace {

using Factors = Eigen::LLT<Eigen::MatrixXd>;

/// None where the Gram matrix is zero.
std::optional<Factors> factorise(const Eigen::MatrixXd& gram, double ridge) {
  const double mean = gram.diagonal().mean();
  if (!(mean > 0)) return std::nullopt;
  // Products in f32 are rounded, so the sum may miss being positive definite by more than a small ridge makes
  // up for.
  for (double penalty = ridge * mean;; penalty *= 10.0) {
    Eigen::MatrixXd damped = gram;
    damped.diagonal().array() += penalty;
    std::optional<Factors> factors(std::in_place, std::move(damped));
    if (factors->info() == Eigen::Success) return factors;
    FARSKIP_CHECK(penalty < mean, "sums of squares that are not finite");
  }
}

}  // namespace

void NormalEquations::add(const TensorView& gram_part, const TensorView& cross_part) {
  gram += as_matrix(gram_part).transpose().cast<double>();  // symmetric; read in the order of memory
  cross += as_matrix(cross_part).cast<double>();
}

std::vector<Eigen::MatrixXd> solve_ridges(const std::vector<NormalEquations>& equations,
                                          const std::vector<double>& ridges) {
  std::vector<std::optional<Factors>> factors(equations.size());
  std::vector<Eigen::MatrixXd> solutions(equations.size());
  cpu::parallel_for(static_cast<std::int64_t>(equations.size()), [&](std::int64_t i) {
    const auto e = static_cast<std::size_t>(i);
    factors[e] = factorise(equations[e].gram, ridges[e]);
    solutions[e] = Eigen::MatrixXd::Zero(equations[e].cross.rows(), equations[e].cross.cols());
  });
  // The columns of a solution do not depend on each other.
  constexpr Eigen::Index columns = 128;
  std::vector<std::pair<std::size_t, Eigen::Index>> parts;
  for (std::size_t e = 0; e < equations.size(); ++e)
    for (Eigen::Index first = 0; factors[e] && first < solutions[e].cols(); first += columns)
      parts.emplace_back(e, first);
  cpu::parallel_for(static_cast<std::int64_t>(parts.size()), [&](std::int64_t i) {
    const auto& [e, first] = parts[static_cast<std::size_t>(i)];
    const Eigen::Index count = std::min(columns, solutions[e].cols() - first);
    solutions[e].middleCols(first, count) = factors[e]->solve(equations[e].cross.middleCols(first, count));
  });
  return solutions;
}

double squares_gained(const NormalEquations& equations, const Eigen::MatrixXd& solution) {
  return (equations.gram * solution - 2.0 * equations.cross).cwiseProduct(solution).sum();
}

}  // namespace farskip
