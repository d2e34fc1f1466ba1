// SPDX-License-Identifier: Apache-2.0
#include "fold/least_squares.h"

#include "farskip/base/random.h"
#include "fold/matrices.h"
#include "support/catch.h"

namespace farskip {
namespace {

Eigen::MatrixXd random_matrix(std::int64_t rows, std::int64_t columns, std::uint64_t stream) {
  Eigen::MatrixXd m(rows, columns);
  for (Eigen::Index i = 0; i < m.size(); ++i)
    m.data()[i] = uniform_double(7, stream, static_cast<std::uint64_t>(i)) - 0.5;
  return m;
}

NormalEquations equations_of(const Eigen::MatrixXd& x, const Eigen::MatrixXd& r) {
  NormalEquations sums(x.cols(), r.cols());
  sums.gram = x.transpose() * x;
  sums.cross = x.transpose() * r;
  return sums;
}

Eigen::MatrixXd solve_ridge(NormalEquations sums, double ridge) {
  return solve_ridges({&sums, 1}, {&ridge, 1})[0];
}

TEST_CASE("ridge regression finds the map that made the data, and minimises what it says") {
  const Eigen::MatrixXd x = random_matrix(40, 7, 1), map = random_matrix(7, 3, 2),
                        noise = random_matrix(40, 3, 3);
  CHECK((solve_ridge(equations_of(x, x * map), 1e-12) - map).norm() < 1e-9);
  const NormalEquations sums = equations_of(x, x * map + noise);
  const Eigen::MatrixXd found = solve_ridge(sums, 0.1);
  const double penalty = 0.1 * sums.gram.diagonal().mean();
  const auto cost = [&](const Eigen::MatrixXd& d) {
    return (x * map + noise - x * d).squaredNorm() + penalty * d.squaredNorm();
  };
  for (std::uint64_t i = 0; i < 20; ++i)
    CHECK(cost(found + 0.01 * random_matrix(7, 3, 10 + i)) > cost(found));
  CHECK(squares_gained(sums, found) ==
        Catch::Approx((x * map + noise - x * found).squaredNorm() - (x * map + noise).squaredNorm()));
}

TEST_CASE("sums that were solved are what they were, several at once and with rows fewer than columns") {
  std::vector<NormalEquations> sums;
  for (const int rows : {40, 3, 11})
    sums.push_back(equations_of(random_matrix(rows, 9, 6), random_matrix(rows, 200, 7)));
  const std::vector<NormalEquations> before = sums;
  const std::vector<double> ridges{1e-2, 1e-8, 0.5};
  const std::vector<Eigen::MatrixXd> found = solve_ridges(sums, ridges);
  for (std::size_t e = 0; e < sums.size(); ++e) {
    CHECK((sums[e].gram - before[e].gram).norm() < 1e-14 * before[e].gram.norm());
    CHECK(sums[e].cross == before[e].cross);
    CHECK(found[e] == solve_ridge(before[e], ridges[e]));
  }
}

TEST_CASE("rows without content change nothing, fewer rows than columns are no obstacle") {
  CHECK(solve_ridge(NormalEquations(5, 2), 1e-2) == Eigen::MatrixXd::Zero(5, 2));
  const Eigen::MatrixXd x = random_matrix(3, 9, 4), r = random_matrix(3, 2, 5);
  const Eigen::MatrixXd found = solve_ridge(equations_of(x, r), 1e-8);
  CHECK(found.allFinite());
  CHECK((x * found - r).norm() < 1e-4 * r.norm());
}

}  // namespace
}  // namespace farskip
