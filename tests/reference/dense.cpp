// SPDX-License-Identifier: Apache-2.0
// Reference kernels of the ops that move rows or multiply matrices.
#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <vector>

#include "farskip/ops/ops.h"
#include "reference/reference.h"

namespace farskip::reference {
namespace {

void run_embedding(const KernelCall& call) {
  const std::int64_t hidden = call.out_shape(0).back();
  const Range own = call.get<ops::VocabularyPart>().own(call.in_shape(0)[0]);
  const auto value_of = [&](std::int64_t row, std::int64_t h) {
    return row >= 0 && row < own.count ? call.in<double>(0)[row * hidden + h] : 0.0;
  };
  for (std::int64_t t = 0; t < call.in_shape(1).num_elements(); ++t)
    for (std::int64_t h = 0; h < hidden; ++h)
      call.out<double>(0)[t * hidden + h] = value_of(call.in<std::int32_t>(1)[t] - own.first, h);
}

void run_add(const KernelCall& call) {
  for (std::int64_t i = 0; i < call.out_shape(0).num_elements(); ++i)
    call.out<double>(0)[i] = call.in<double>(0)[i] + call.in<double>(1)[i];
}

void run_clamp(const KernelCall& call) {
  const double limit = call.get<ops::Clamp>().limit;
  for (std::int64_t i = 0; i < call.out_shape(0).num_elements(); ++i)
    call.out<double>(0)[i] = std::clamp(call.in<double>(0)[i], -limit, limit);
}

void run_ones(const KernelCall& call) {
  for (std::int64_t i = 0; i < call.out_shape(0).num_elements(); ++i) call.out<double>(0)[i] = 1.0;
}

void run_scale_rows(const KernelCall& call) {
  const std::int64_t width = call.out_shape(0).back();
  for (std::int64_t i = 0; i < call.out_shape(0).num_elements(); ++i)
    call.out<double>(0)[i] = call.in<double>(0)[i] * table_value(call.inputs[1], i / width);
}

void run_add_bias(const KernelCall& call) {
  const std::int64_t width = call.out_shape(0).back();
  for (std::int64_t i = 0; i < call.out_shape(0).num_elements(); ++i)
    call.out<double>(0)[i] = call.in<double>(0)[i] + table_value(call.inputs[1], i % width);
}

void run_sigmoid_gate(const KernelCall& call) {
  for (std::int64_t i = 0; i < call.out_shape(0).num_elements(); ++i)
    call.out<double>(0)[i] = call.in<double>(0)[i] / (1.0 + std::exp(-call.in<double>(1)[i]));
}

// Products are Eigen's: nobody here wrote them.
using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Eigen::Map<Matrix> matrix(const double* data, std::int64_t rows, std::int64_t columns) {
  return {const_cast<double*>(data), rows, columns};  // Map has one type for what is read and written
}
Matrix transposed_if(bool transposed, const Matrix& m) {
  return transposed ? Matrix(m.transpose()) : m;
}

void run_matmul(const KernelCall& call) {
  const auto& attributes = call.get<ops::Matmul>();
  const Shape &a = call.in_shape(0), &b = call.in_shape(1), &out = call.out_shape(0);
  auto product = matrix(call.out<double>(0), out[0], out[1]);
  product = transposed_if(attributes.transpose_a, matrix(call.in<double>(0), a[0], a[1])) *
            transposed_if(attributes.transpose_b, matrix(call.in<double>(1), b[0], b[1]));
  if (call.has(2)) product += matrix(call.in<double>(2), out[0], out[1]);
}

void run_grouped_matmul(const KernelCall& call) {
  const bool transpose = call.get<ops::GroupedMatmul>().transpose_w;
  const Shape& w = call.in_shape(1);
  const auto* offsets = call.in<std::int32_t>(2);
  const std::int64_t in = call.in_shape(0).back(), out = call.out_shape(0).back();
  for (std::int64_t e = 0; e < w[0]; ++e) {
    const std::int64_t first = offsets[e], rows = offsets[e + 1] - first;
    matrix(call.out<double>(0) + first * out, rows, out) =
        matrix(call.in<double>(0) + first * in, rows, in) *
        transposed_if(transpose, matrix(call.in<double>(1) + e * w[1] * w[2], w[1], w[2]));
  }
}

void run_split_columns(const KernelCall& call) {
  const std::int64_t total = call.in_shape(0).back();
  std::int64_t first = 0;
  for (std::size_t part = 0; part < call.outputs.size(); ++part) {
    const std::int64_t width = call.out_shape(part).back();
    for (std::int64_t t = 0; t < call.out_shape(part).num_rows(); ++t)
      for (std::int64_t j = 0; j < width; ++j)
        call.out<double>(part)[t * width + j] = call.in<double>(0)[t * total + first + j];
    first += width;
  }
}

void run_take_columns(const KernelCall& call) {
  const auto& a = call.get<ops::ColumnRange>();
  for (std::int64_t t = 0; t < call.out_shape(0)[0]; ++t)
    for (std::int64_t j = 0; j < a.count; ++j)
      call.out<double>(0)[t * a.count + j] = call.in<double>(0)[t * a.of + a.first + j];
}
void run_place_columns(const KernelCall& call) {
  const auto& a = call.get<ops::ColumnRange>();
  for (std::int64_t t = 0; t < call.out_shape(0)[0]; ++t)
    for (std::int64_t j = 0; j < a.of; ++j)
      call.out<double>(0)[t * a.of + j] =
          j < a.first || j >= a.first + a.count ? 0.0 : call.in<double>(0)[t * a.count + j - a.first];
}

void run_concat_columns(const KernelCall& call) {
  const std::int64_t total = call.out_shape(0).back();
  std::int64_t first = 0;
  for (std::size_t part = 0; part < call.inputs.size(); ++part) {
    const std::int64_t width = call.in_shape(part).back();
    for (std::int64_t t = 0; t < call.in_shape(part).num_rows(); ++t)
      for (std::int64_t j = 0; j < width; ++j)
        call.out<double>(0)[t * total + first + j] = call.in<double>(part)[t * width + j];
    first += width;
  }
}

/// An element of any type that a reference graph holds.
void copy_element(const TensorView& to, std::int64_t at, const TensorView& from, std::int64_t index) {
  if (from.dtype == DType::i32)
    to.as<std::int32_t>()[at] = from.as<std::int32_t>()[index];
  else
    to.as<double>()[at] = from.as<double>()[index];
}

void run_split_rows(const KernelCall& call) {
  std::int64_t first = 0;
  for (const TensorView& part : call.outputs) {
    for (std::int64_t i = 0; i < part.num_elements(); ++i) copy_element(part, i, call.inputs[0], first + i);
    first += part.num_elements();
  }
}

void run_concat_rows(const KernelCall& call) {
  std::int64_t first = 0;
  for (const TensorView& part : call.inputs) {
    for (std::int64_t i = 0; i < part.num_elements(); ++i) copy_element(call.outputs[0], first + i, part, i);
    first += part.num_elements();
  }
}

/// Calls use(token, loss, whether the target is on top) for each token that is counted.
template <class Use>
void for_each_loss(const KernelCall& call, const Use& use) {
  const std::int64_t hidden = call.in_shape(1)[1], vocab = call.in_shape(1)[0];
  for (std::int64_t t = 0; t < call.in_shape(2).num_elements(); ++t) {
    const std::int32_t target = call.in<std::int32_t>(2)[t];
    if (target < 0) continue;
    std::vector<double> logits(static_cast<std::size_t>(vocab), 0.0);
    double largest = -INFINITY;
    for (std::int64_t v = 0; v < vocab; ++v) {
      double& logit = logits[static_cast<std::size_t>(v)];
      for (std::int64_t h = 0; h < hidden; ++h)
        logit += call.in<double>(0)[t * hidden + h] * call.in<double>(1)[v * hidden + h];
      largest = std::fmax(largest, logit);
    }
    double sum = 0.0;
    for (const double logit : logits) sum += std::exp(logit - largest);
    const double chosen = logits[static_cast<std::size_t>(target)];
    use(t, largest + std::log(sum) - chosen, chosen == largest);
  }
}

void run_head_stats(const KernelCall& call) {
  const std::int64_t hidden = call.in_shape(1)[1];
  const Range own = call.get<ops::VocabularyPart>().own(call.in_shape(1)[0]);
  for (std::int64_t t = 0; t < call.in_shape(2).num_elements(); ++t) {
    double* const sums = call.out<double>(0) + 2 * t;
    const std::int32_t target = call.in<std::int32_t>(2)[t];
    double* const fixed = call.out<double>(1) + 2 * t;
    sums[0] = sums[1] = fixed[0] = fixed[1] = 0.0;
    if (target < 0) continue;
    double sum = 0.0, largest = -INFINITY;
    std::vector<double> logits;
    for (std::int64_t v = 0; v < own.count; ++v) {
      double logit = 0.0;
      for (std::int64_t h = 0; h < hidden; ++h)
        logit += call.in<double>(0)[t * hidden + h] * call.in<double>(1)[v * hidden + h];
      if (own.first + v == target) sums[1] = logit;
      largest = std::fmax(largest, logit);
      logits.push_back(logit);
    }
    for (const double logit : logits) sum += std::exp(logit - largest);
    sums[0] = largest + std::log(sum);
    fixed[0] = largest;
  }
}

/// Of token t, whose target is `target`: log Σ exp over all parts of inputs 0, and the target's logit.
std::pair<double, double> joint_logits(const KernelCall& call, std::int64_t t, std::int64_t tokens,
                                       std::int32_t target) {
  double sum = 0.0;
  for (std::int64_t row = t; row < call.in_shape(0)[0]; row += tokens)
    sum += std::exp(call.in<double>(0)[2 * row] + call.in<double>(1)[2 * row + 1]);
  const std::int64_t part = target / call.get<ops::JointParts>().rows;
  return {std::log(sum), call.in<double>(0)[2 * (part * tokens + t) + 1]};
}

void run_joint_cross_entropy(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(2).num_elements();
  double loss = 0.0;
  std::int32_t correct = 0;
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int32_t target = call.in<std::int32_t>(2)[t];
    if (target < 0) continue;
    const auto [lse, chosen] = joint_logits(call, t, tokens, target);
    loss += lse - chosen;
    double largest = -INFINITY;
    for (std::int64_t row = t; row < call.in_shape(1)[0]; row += tokens)
      largest = std::fmax(largest, call.in<double>(1)[2 * row]);
    correct += chosen >= largest ? 1 : 0;
  }
  call.out<double>(0)[0] = loss;
  call.out<std::int32_t>(1)[0] = correct;
}

void run_joint_token_losses(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(2).num_elements();
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int32_t target = call.in<std::int32_t>(2)[t];
    call.out<double>(0)[t] = 0.0;
    if (target < 0) continue;
    const auto [lse, chosen] = joint_logits(call, t, tokens, target);
    call.out<double>(0)[t] = lse - chosen;
  }
}

void run_side_by_side(const KernelCall& call) {
  const std::int64_t rows = call.out_shape(0)[0], columns = call.out_shape(0)[1], width = call.in_shape(0)[1];
  for (std::int64_t t = 0; t < rows; ++t)
    for (std::int64_t c = 0; c < columns; ++c)
      call.out<double>(0)[t * columns + c] = call.in<double>(0)[(c / width * rows + t) * width + c % width];
}

void run_linear_cross_entropy(const KernelCall& call) {
  double loss = 0.0;
  std::int32_t correct = 0;
  for_each_loss(call, [&](std::int64_t, double of_token, bool is_correct) {
    loss += of_token;
    correct += is_correct ? 1 : 0;
  });
  call.out<double>(0)[0] = loss;
  call.out<std::int32_t>(1)[0] = correct;
}

void run_token_losses(const KernelCall& call) {
  std::fill_n(call.out<double>(0), call.in_shape(2).num_elements(), 0.0);
  for_each_loss(call, [&](std::int64_t t, double loss, bool) { call.out<double>(0)[t] = loss; });
}

}  // namespace

void register_dense(KernelTable& table) {
  add_reference(table, "embedding", run_embedding);
  add_reference(table, "add", run_add);
  add_reference(table, "add_bias", run_add_bias);
  add_reference(table, "clamp", run_clamp);
  add_reference(table, "ones", run_ones);
  add_reference(table, "scale_rows", run_scale_rows);
  add_reference(table, "sigmoid_gate", run_sigmoid_gate);
  add_reference(table, "matmul", run_matmul);
  add_reference(table, "grouped_matmul", run_grouped_matmul);
  add_reference(table, "split_columns", run_split_columns);
  add_reference(table, "take_columns", run_take_columns);
  add_reference(table, "place_columns", run_place_columns);
  add_reference(table, "concat_columns", run_concat_columns);
  add_reference(table, "split_rows", run_split_rows);
  add_reference(table, "concat_rows", run_concat_rows);
  add_reference(table, "linear_cross_entropy", run_linear_cross_entropy);
  add_reference(table, "token_losses", run_token_losses);
  add_reference(table, "head_stats", run_head_stats);
  add_reference(table, "joint_cross_entropy", run_joint_cross_entropy);
  add_reference(table, "joint_token_losses", run_joint_token_losses);
  add_reference(table, "side_by_side", run_side_by_side);
}

}  // namespace farskip::reference
