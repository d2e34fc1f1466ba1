// Reference kernels of the ops that move rows or multiply matrices.
#include <cmath>
#include <vector>

#include "farskip/ops/ops.h"
#include "reference/reference.h"

namespace farskip::reference {
namespace {

void run_embedding(const KernelCall& call) {
  const std::int64_t hidden = call.out_shape(0).back();
  for (std::int64_t t = 0; t < call.in_shape(1).num_elements(); ++t)
    for (std::int64_t h = 0; h < hidden; ++h)
      call.out<double>(0)[t * hidden + h] = call.in<double>(0)[call.in<std::int32_t>(1)[t] * hidden + h];
}

void run_add(const KernelCall& call) {
  for (std::int64_t i = 0; i < call.out_shape(0).num_elements(); ++i)
    call.out<double>(0)[i] = call.in<double>(0)[i] + call.in<double>(1)[i];
}

/// Element (row, column) of op(a), where a is stored with `columns` columns.
double at(const double* a, std::int64_t columns, bool transposed, std::int64_t row, std::int64_t column) {
  return transposed ? a[column * columns + row] : a[row * columns + column];
}

void run_matmul(const KernelCall& call) {
  const auto& attributes = call.get<ops::Matmul>();
  const Shape& a = call.in_shape(0);
  const Shape& b = call.in_shape(1);
  const std::int64_t m = call.out_shape(0).num_rows(), n = call.out_shape(0).back();
  const std::int64_t k = attributes.transpose_a ? a.num_rows() : a.back();
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t j = 0; j < n; ++j) {
      double sum = call.has(2) ? call.in<double>(2)[i * n + j] : 0.0;
      for (std::int64_t l = 0; l < k; ++l)
        sum += at(call.in<double>(0), a.back(), attributes.transpose_a, i, l) *
               at(call.in<double>(1), b.back(), attributes.transpose_b, l, j);
      call.out<double>(0)[i * n + j] = sum;
    }
}

void run_grouped_matmul(const KernelCall& call) {
  const auto& attributes = call.get<ops::GroupedMatmul>();
  const Shape& w = call.in_shape(1);
  const auto* offsets = call.in<std::int32_t>(2);
  const std::int64_t in = call.in_shape(0).back(), out = call.out_shape(0).back();
  for (std::int64_t e = 0; e < w[0]; ++e)
    for (std::int64_t r = offsets[e]; r < offsets[e + 1]; ++r)
      for (std::int64_t j = 0; j < out; ++j) {
        double sum = 0.0;
        for (std::int64_t l = 0; l < in; ++l)
          sum += call.in<double>(0)[r * in + l] *
                 at(call.in<double>(1) + e * w[1] * w[2], w[2], attributes.transpose_w, l, j);
        call.out<double>(0)[r * out + j] = sum;
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

void run_linear_cross_entropy(const KernelCall& call) {
  const std::int64_t hidden = call.in_shape(1)[1], vocab = call.in_shape(1)[0];
  double loss = 0.0;
  std::int32_t correct = 0;
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
    loss += largest + std::log(sum) - chosen;
    correct += chosen == largest ? 1 : 0;
  }
  call.out<double>(0)[0] = loss;
  call.out<std::int32_t>(1)[0] = correct;
}

}  // namespace

void register_dense(KernelTable& table) {
  add_reference(table, "embedding", run_embedding);
  add_reference(table, "add", run_add);
  add_reference(table, "matmul", run_matmul);
  add_reference(table, "grouped_matmul", run_grouped_matmul);
  add_reference(table, "split_columns", run_split_columns);
  add_reference(table, "concat_columns", run_concat_columns);
  add_reference(table, "split_rows", run_split_rows);
  add_reference(table, "concat_rows", run_concat_rows);
  add_reference(table, "linear_cross_entropy", run_linear_cross_entropy);
}

}  // namespace farskip::reference
