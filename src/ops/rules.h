// SPDX-License-Identifier: Apache-2.0
#pragma once
// Shorthand for the rule tables in src/ops.

#include "farskip/graph/graph.h"
#include "graph/gradient_call.h"

namespace farskip::ops {

using In = InputType;  // In::compute

inline TensorType like(const TensorType& type) {
  return {type.dtype, type.shape, type.count};
}
/// Same rows (and row count) as `type`, other width and dtype.
inline TensorType rows_like(const TensorType& type, std::int64_t width, DType dtype) {
  return {dtype, Shape{type.shape[0], width}, type.count};
}
inline TensorType rows_like(const TensorType& type, std::int64_t width) {
  return rows_like(type, width, type.dtype);
}

/// Rule check: InternalError naming the op's inputs. Element types are checked before (OpDef::inputs).
#define FARSKIP_SHAPE(condition, op, t)                                                   \
  FARSKIP_CHECK(condition, "{} {{{}}}: inputs do not fit: {}", op, (t).attributes.text(), \
                ::farskip::inputs_text(t))

/// A matrix, or a vector, with other rows; how many of them are there is not known.
inline TensorType with_rows(const TensorType& type, std::int64_t rows) {
  return {type.dtype, shape_of_rows(type.shape, rows), {}};
}

/// Bytes of all inputs and outputs: the default, for rules that also count flops.
inline OpCost flops_cost(double flops) {
  return {.flops = flops, .bytes = 0, .wire_bytes = 0};
}
inline double elements(const Shape& shape) {
  return static_cast<double>(shape.num_elements());
}
/// The logits of hidden states h[T, H] by a head w[V, H].
inline double head_flops(const Shape& h, const Shape& w) {
  return 2.0 * elements(h) * static_cast<double>(w[0]);
}

}  // namespace farskip::ops
