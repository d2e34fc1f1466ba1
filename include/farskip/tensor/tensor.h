// SPDX-License-Identifier: Apache-2.0
#pragma once
// Shapes, views of memory someone else owns, and host tensors that own theirs. Everything is row-major
// and contiguous; a view of some rows of dim 0 is again contiguous.

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "farskip/base/error.h"
#include "farskip/tensor/dtype.h"

namespace farskip {

/// Sizes of the dims, outermost first. An empty shape is a scalar (one element).
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<std::int64_t> dims) : dims_(dims) {}
  explicit Shape(std::vector<std::int64_t> dims) : dims_(std::move(dims)) {}

  void set_dim(std::size_t i, std::int64_t size) { dims_[i] = size; }
  std::size_t rank() const { return dims_.size(); }
  std::int64_t operator[](std::size_t i) const { return dims_[i]; }
  std::int64_t back() const { return dims_.back(); }
  const std::vector<std::int64_t>& dims() const { return dims_; }
  std::int64_t num_elements() const;
  /// Product of all dims but the last: the number of rows when seen as a matrix.
  std::int64_t num_rows() const;
  /// "[4, 32]".
  std::string text() const;

  friend bool operator==(const Shape&, const Shape&) = default;

 private:
  std::vector<std::int64_t> dims_;
};

/// A tensor as ranks and files cut it, by rows: all dims but the last are taken together, and a vector has
/// rows of one element (unlike Shape::num_rows, to which a vector is one row).
inline std::int64_t row_size(const Shape& shape) {
  return shape.rank() == 1 ? 1 : shape.back();
}
inline std::int64_t row_count(const Shape& shape) {
  return shape.rank() == 1 ? shape[0] : shape.num_rows();
}
/// So many of its rows: [rows, row size], or [rows] of a vector.
inline Shape shape_of_rows(const Shape& shape, std::int64_t rows) {
  return shape.rank() == 1 ? Shape{rows} : Shape{rows, shape.back()};
}

/// Typed window onto memory owned elsewhere (an arena, a HostTensor). data == nullptr: absent.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::f32;
  Shape shape;

  explicit operator bool() const { return data != nullptr; }
  std::int64_t num_elements() const { return shape.num_elements(); }
  std::size_t num_bytes() const { return static_cast<std::size_t>(num_elements()) * dtype_size(dtype); }
  std::span<std::byte> bytes() const { return {static_cast<std::byte*>(data), num_bytes()}; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

/// `count` of its rows, as a matrix or a vector.
inline TensorView rows_view(const TensorView& tensor, std::int64_t first, std::int64_t count) {
  const auto offset = static_cast<std::size_t>(first * row_size(tensor.shape)) * dtype_size(tensor.dtype);
  return {tensor.as<std::byte>() + offset, tensor.dtype, shape_of_rows(tensor.shape, count)};
}

/// Owns its memory, 64-byte aligned, uninitialised unless filled.
class HostTensor {
 public:
  HostTensor() = default;
  HostTensor(DType dtype, Shape shape);

  const Shape& shape() const { return view_.shape; }
  DType dtype() const { return view_.dtype; }
  std::int64_t num_elements() const { return view_.num_elements(); }
  const TensorView& view() const { return view_; }
  std::span<std::byte> bytes() { return view_.bytes(); }
  std::span<const std::byte> bytes() const { return view_.bytes(); }

  /// Elements as T; throws InternalError when sizeof(T) is not the element size.
  template <class T>
  std::span<T> values() {
    FARSKIP_CHECK(sizeof(T) == dtype_size(view_.dtype), "element of {} bytes", dtype_size(view_.dtype));
    return {view_.as<T>(), static_cast<std::size_t>(num_elements())};
  }
  template <class T>
  std::span<const T> values() const {
    return const_cast<HostTensor*>(this)->values<T>();
  }

 private:
  std::shared_ptr<std::byte[]> memory_;
  TensorView view_;
};

/// Converts between floating-point (or between integer) element types, as many elements as `to` has, in host
/// memory; other pairs are InternalError.
void convert_values(const TensorView& from, const TensorView& to);
/// The same into a new tensor; of the same type, it shares its memory.
HostTensor convert_dtype(const HostTensor& tensor, DType dtype);

}  // namespace farskip
