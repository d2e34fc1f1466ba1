// SPDX-License-Identifier: Apache-2.0
#include "farskip/tensor/tensor.h"

#include <algorithm>

#include "base/memory.h"

namespace farskip {
namespace {

float f16_to_f32(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fU;
  const std::uint32_t mantissa = bits & 0x3ffU;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000U | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
  return sign != 0 ? -magnitude : magnitude;
}

/// Sign, four bits of exponent with bias 7, three of mantissa; no infinity.
float f8_e4m3_to_f32(std::uint8_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x80U) << 24;
  const std::uint32_t exponent = (bits >> 3) & 0xfU, mantissa = bits & 0x7U;
  if ((bits & 0x7fU) == 0x7fU) return std::bit_cast<float>(sign | 0x7fc00000U);
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 120) << 23) | (mantissa << 20));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-9F;
  return sign != 0 ? -magnitude : magnitude;
}

double load_float(const TensorView& view, std::int64_t i) {
  switch (view.dtype) {
    case DType::f64:
      return view.as<double>()[i];
    case DType::f32:
      return view.as<float>()[i];
    case DType::bf16:
      return bf16_to_f32(view.as<std::uint16_t>()[i]);
    case DType::f16:
      return f16_to_f32(view.as<std::uint16_t>()[i]);
    case DType::f8_e4m3:
      return f8_e4m3_to_f32(view.as<std::uint8_t>()[i]);
    default:
      throw InternalError(fmt::format("{} is not a floating-point type", dtype_name(view.dtype)));
  }
}

void store_float(const TensorView& view, std::int64_t i, double value) {
  switch (view.dtype) {
    case DType::f64:
      view.as<double>()[i] = value;
      return;
    case DType::f32:
      view.as<float>()[i] = static_cast<float>(value);
      return;
    case DType::bf16:
      view.as<std::uint16_t>()[i] = f32_to_bf16(static_cast<float>(value));
      return;
    default:
      throw InternalError(fmt::format("cannot convert to {}", dtype_name(view.dtype)));
  }
}

std::int64_t load_int(const TensorView& view, std::int64_t i) {
  switch (view.dtype) {
    case DType::i64:
      return view.as<std::int64_t>()[i];
    case DType::i32:
      return view.as<std::int32_t>()[i];
    case DType::i16:
      return view.as<std::int16_t>()[i];
    case DType::i8:
      return view.as<std::int8_t>()[i];
    case DType::u16:
      return view.as<std::uint16_t>()[i];
    default:
      return view.as<std::uint8_t>()[i];
  }
}

}  // namespace

std::int64_t Shape::num_elements() const {
  std::int64_t n = 1;
  for (const std::int64_t d : dims_) n *= d;
  return n;
}

std::int64_t Shape::num_rows() const {
  std::int64_t n = 1;
  for (std::size_t i = 0; i + 1 < dims_.size(); ++i) n *= dims_[i];
  return n;
}

std::string Shape::text() const {
  return fmt::format("[{}]", fmt::join(dims_, ", "));
}

HostTensor::HostTensor(DType dtype, Shape shape) : view_{nullptr, dtype, std::move(shape)} {
  memory_ = allocate_memory(view_.num_bytes());
  view_.data = memory_.get();
}

void convert_values(const TensorView& from, const TensorView& to) {
  const std::int64_t n = to.num_elements();
  FARSKIP_CHECK(from.num_elements() == n, "{} elements for {}", from.num_elements(), n);
  if (from.dtype == to.dtype) {
    std::copy_n(from.as<std::byte>(), to.num_bytes(), to.as<std::byte>());
  } else if (from.dtype == DType::bf16 && to.dtype == DType::f32) {  // most weights: as fast as memory
    const std::uint16_t* low = from.as<std::uint16_t>();
    float* wide = to.as<float>();
    for (std::int64_t i = 0; i < n; ++i) wide[i] = bf16_to_f32(low[i]);
  } else if (from.dtype == DType::f32 && to.dtype == DType::bf16) {
    const float* wide = from.as<float>();
    std::uint16_t* low = to.as<std::uint16_t>();
    for (std::int64_t i = 0; i < n; ++i) low[i] = f32_to_bf16(wide[i]);
  } else if (is_float(from.dtype)) {
    for (std::int64_t i = 0; i < n; ++i) store_float(to, i, load_float(from, i));
  } else if (to.dtype == DType::i64) {
    for (std::int64_t i = 0; i < n; ++i) to.as<std::int64_t>()[i] = load_int(from, i);
  } else {
    FARSKIP_CHECK(to.dtype == DType::i32, "cannot convert {} to {}", dtype_name(from.dtype),
                  dtype_name(to.dtype));
    for (std::int64_t i = 0; i < n; ++i)
      to.as<std::int32_t>()[i] = static_cast<std::int32_t>(load_int(from, i));
  }
}

HostTensor convert_dtype(const HostTensor& tensor, DType dtype) {
  if (tensor.dtype() == dtype) return tensor;
  HostTensor out(dtype, tensor.shape());
  convert_values(tensor.view(), out.view());
  return out;
}

}  // namespace farskip
