// SPDX-License-Identifier: Apache-2.0
// Reference kernels of the optimizer.
#include <Eigen/Dense>
#include <algorithm>
#include <cmath>

#include "farskip/ops/optimizer_ops.h"
#include "reference/reference.h"

namespace farskip::reference {
namespace {

void run_sum_of_squares(const KernelCall& call) {
  double sum = 0.0;
  for (const TensorView& tensor : call.inputs)
    for (std::int64_t i = 0; i < tensor.num_elements(); ++i)
      sum += tensor.as<double>()[i] * tensor.as<double>()[i];
  call.out<double>(0)[0] = sum;
}

void run_find_fault(const KernelCall& call) {
  double fault = std::isfinite(call.in<double>(0)[0]) ? 0.0 : HUGE_VAL;
  for (std::size_t i = 1; i < call.inputs.size(); ++i)
    if (call.in<std::int32_t>(i)[0] != 0) fault = HUGE_VAL;
  call.out<double>(0)[0] = fault;
}

void store(const TensorView& scalar, double value) {
  if (scalar.dtype == DType::f64) {
    scalar.as<double>()[0] = value;
  } else {
    scalar.as<float>()[0] = static_cast<float>(value);
  }
}

void run_clip_factor(const KernelCall& call) {
  const double max_norm = call.get<ops::ClipFactor>().max_norm;
  double sum = 0.0;
  for (std::size_t i = 0; i < call.inputs.size(); ++i) sum += call.in<double>(i)[0];
  const double norm = std::sqrt(sum);
  double factor = max_norm == 0.0 ? 1.0 : std::min(1.0, max_norm / (norm + 1e-6));
  if (!std::isfinite(norm)) factor = 0.0;
  store(call.outputs[0], norm);
  store(call.outputs[1], factor);
}

// Inputs: parameter, m, v, gradient, factor, {lr, 1/c1, 1/c2}.
void run_adamw(const KernelCall& call) {
  const auto& a = call.get<ops::AdamW>();
  const double factor = call.in<double>(4)[0];
  const double lr = call.in<double>(5)[0], over_c1 = call.in<double>(5)[1], over_c2 = call.in<double>(5)[2];
  for (std::int64_t i = 0; i < call.in_shape(0).num_elements(); ++i) {
    const double p = call.in<double>(0)[i], m = call.in<double>(1)[i], v = call.in<double>(2)[i];
    double new_p = p, new_m = m, new_v = v;
    if (factor != 0.0) {
      const double g = factor * call.in<double>(3)[i];
      new_m = a.beta1 * m + (1.0 - a.beta1) * g;
      new_v = a.beta2 * v + (1.0 - a.beta2) * g * g;
      new_p = p * (1.0 - lr * a.weight_decay) - lr * new_m * over_c1 / (std::sqrt(new_v * over_c2) + a.eps);
    }
    call.out<double>(0)[i] = new_p;
    call.out<double>(1)[i] = new_m;
    call.out<double>(2)[i] = new_v;
  }
}

// Inputs: parameter, momentum, gradient, factor, {lr, …}. Newton-Schulz of one matrix as Muon's authors state
// it.
using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Matrix orthogonalise(const Matrix& update) {
  constexpr double a = 3.4445, b = -4.7750, c = 2.0315;
  Matrix x = update.rows() > update.cols() ? Matrix(update.transpose()) : update;
  x /= std::max(x.norm(), 1e-7);
  for (int step = 0; step < 5; ++step) {
    const Matrix gram = x * x.transpose();
    x = a * x + (b * gram + c * gram * gram) * x;
  }
  return update.rows() > update.cols() ? Matrix(x.transpose()) : x;
}

void run_muon(const KernelCall& call) {
  const auto& attributes = call.get<ops::Muon>();
  const std::int64_t columns = call.in_shape(0).back(), all = call.in_shape(0).num_rows();
  const std::int64_t rows = attributes.matrix_rows > 0 ? attributes.matrix_rows : all;
  const double factor = call.in<double>(3)[0], lr = call.in<double>(4)[0], mu = attributes.momentum;
  for (std::int64_t first = 0; first < all; first += rows) {
    const auto matrix = [&](const double* data) {
      return Eigen::Map<const Matrix>(data + first * columns, rows, columns);
    };
    Matrix p = matrix(call.in<double>(0)), m = matrix(call.in<double>(1));
    if (factor != 0.0) {
      const Matrix g = factor * matrix(call.in<double>(2));
      m = mu * m + (1.0 - mu) * g;
      const double scale = 0.2 * std::sqrt(static_cast<double>(std::max(rows, columns)));
      p = p * (1.0 - lr * attributes.weight_decay) - lr * scale * orthogonalise(mu * m + (1.0 - mu) * g);
    }
    Eigen::Map<Matrix>(call.out<double>(0) + first * columns, rows, columns) = p;
    Eigen::Map<Matrix>(call.out<double>(1) + first * columns, rows, columns) = m;
  }
}

// Inputs: average, parameter, factor, {…, step}.
void run_moving_average(const KernelCall& call) {
  const double decay = call.get<ops::MovingAverage>().decay, step = call.in<double>(3)[3];
  const double kept = call.in<double>(2)[0] == 0.0 ? 1.0 : std::min(decay, (step - 1.0) / step);
  for (std::int64_t i = 0; i < call.in_shape(0).num_elements(); ++i)
    call.out<double>(0)[i] = kept * call.in<double>(0)[i] + (1.0 - kept) * call.in<double>(1)[i];
}

}  // namespace

void register_optimizer(KernelTable& table) {
  add_reference(table, "sum_of_squares", run_sum_of_squares);
  add_reference(table, "find_fault", run_find_fault);
  add_reference(table, "clip_factor", run_clip_factor);
  add_reference(table, "adamw", run_adamw);
  add_reference(table, "muon", run_muon);
  add_reference(table, "moving_average", run_moving_average);
}

}  // namespace farskip::reference
