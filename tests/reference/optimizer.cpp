// SPDX-License-Identifier: Apache-2.0
// Reference kernels of the optimizer.
#include <algorithm>
#include <cmath>

#include "farskip/ops/ops.h"
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

}  // namespace

void register_optimizer(KernelTable& table) {
  add_reference(table, "sum_of_squares", run_sum_of_squares);
  add_reference(table, "clip_factor", run_clip_factor);
  add_reference(table, "adamw", run_adamw);
}

}  // namespace farskip::reference
