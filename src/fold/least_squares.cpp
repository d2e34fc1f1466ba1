// SPDX-License-Identifier: Apache-2.0
#include "fold/least_squares.h"

#include <Eigen/Cholesky>
#include <optional>

#include "backend/cpu/parallel.h"
#include "fold/matrices.h"

namespace farskip {
namespace {

/// A Cholesky factorisation of a symmetric matrix in its own lower triangle.
class Factors {
 public:
  explicit Factors(Eigen::MatrixXd& gram) : gram_(gram), diagonal_(gram.diagonal()) {}

  /// False where the matrix is zero.
  bool factorise(double ridge) {
    const double mean = diagonal_.mean();
    if (!(mean > 0)) return false;
    // Products in f32 are rounded, so the sum may miss being positive definite by more than a small ridge
    // makes up for.
    for (double penalty = ridge * mean;; penalty *= 10.0) {
      restore();
      gram_.diagonal().array() += penalty;
      factors_.emplace(gram_);
      if (factors_->info() == Eigen::Success) return true;
      FARSKIP_CHECK(penalty < mean, "sums of squares that are not finite");
    }
  }
  Eigen::MatrixXd solve(const Eigen::Ref<const Eigen::MatrixXd>& right) const {
    return factors_->solve(right);
  }
  /// The upper triangle is as it was.
  void restore() {
    gram_.triangularView<Eigen::StrictlyLower>() = gram_.transpose();
    gram_.diagonal() = diagonal_;
  }

 private:
  Eigen::MatrixXd& gram_;
  Eigen::VectorXd diagonal_;
  std::optional<Eigen::LLT<Eigen::Ref<Eigen::MatrixXd>, Eigen::Lower>> factors_;
};

}  // namespace

void NormalEquations::add_gram(const TensorView& part) {
  gram += as_matrix(part).transpose().cast<double>();  // symmetric; read in the order of memory
}

void NormalEquations::add_cross(const TensorView& part) {
  cross += as_matrix(part).cast<double>();
}

std::vector<Eigen::MatrixXd> solve_ridges(std::span<NormalEquations> equations,
                                          std::span<const double> ridges) {
  std::vector<Factors> factors;
  factors.reserve(equations.size());
  for (NormalEquations& sums : equations) factors.emplace_back(sums.gram);
  std::vector<std::uint8_t> is_regular(equations.size());  // not bool: threads write them
  std::vector<Eigen::MatrixXd> solutions(equations.size());
  cpu::parallel_for(static_cast<std::int64_t>(equations.size()), [&](std::int64_t i) {
    const auto e = static_cast<std::size_t>(i);
    is_regular[e] = factors[e].factorise(ridges[e]) ? 1 : 0;
    solutions[e] = Eigen::MatrixXd::Zero(equations[e].cross.rows(), equations[e].cross.cols());
  });
  // The columns of a solution do not depend on each other.
  constexpr Eigen::Index columns = 128;
  std::vector<std::pair<std::size_t, Eigen::Index>> parts;
  for (std::size_t e = 0; e < equations.size(); ++e)
    for (Eigen::Index first = 0; is_regular[e] != 0 && first < solutions[e].cols(); first += columns)
      parts.emplace_back(e, first);
  cpu::parallel_for(static_cast<std::int64_t>(parts.size()), [&](std::int64_t i) {
    const auto& [e, first] = parts[static_cast<std::size_t>(i)];
    const Eigen::Index count = std::min(columns, solutions[e].cols() - first);
    solutions[e].middleCols(first, count) = factors[e].solve(equations[e].cross.middleCols(first, count));
  });
  cpu::parallel_for(static_cast<std::int64_t>(equations.size()),
                    [&](std::int64_t i) { factors[static_cast<std::size_t>(i)].restore(); });
  return solutions;
}

double squares_gained(const NormalEquations& equations, const Eigen::MatrixXd& solution) {
  return (equations.gram * solution - 2.0 * equations.cross).cwiseProduct(solution).sum();
}

}  // namespace farskip
