#pragma once
// Shorthand for the rule tables in src/ops.

#include <initializer_list>

#include "farskip/graph/gradient_call.h"
#include "farskip/graph/graph.h"

namespace farskip::ops {

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

// Element types. A graph computes in one type: f32, f64 (references) or bf16. Activations, and the matrices
// that products read, are of that type; where it is a low one, everything that sums or decides is wide:
// weights of norms, the router, statistics, losses, and the gradients of parameters.

inline bool is_low(DType dtype) {
  return dtype == DType::bf16;
}
/// The type of sums beside values of type `dtype`.
inline DType wide(DType dtype) {
  return is_low(dtype) ? DType::f32 : dtype;
}
inline bool is_float(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f64 || dtype == DType::bf16;
}
/// Whether those of the listed inputs that are there have this type.
inline bool inputs_are(const OpTypes& t, DType dtype, std::initializer_list<std::size_t> which) {
  for (const std::size_t i : which)
    if (t.has(i) && t.in(i).dtype != dtype) return false;
  return true;
}

/// Shape rule check: InternalError naming the op's inputs.
#define FARSKIP_SHAPE(condition, op, t)                                                   \
  FARSKIP_CHECK(condition, "{} {{{}}}: inputs do not fit: {}", op, (t).attributes.text(), \
                ::farskip::ops::shapes_text(t))

/// The same for element types.
#define FARSKIP_DTYPES(condition, op, t)                                                         \
  FARSKIP_CHECK(condition, "{} {{{}}}: element types do not fit: {}", op, (t).attributes.text(), \
                ::farskip::ops::shapes_text(t))

std::string shapes_text(const OpTypes& types);

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

}  // namespace farskip::ops
