// SPDX-License-Identifier: Apache-2.0
#include "farskip/tensor/dtype.h"

#include <array>

namespace farskip {
namespace {

struct Row {
  DType dtype;
  std::size_t size;
  std::string_view name;
};
constexpr std::array<Row, 12> kTypes{{{DType::f64, 8, "f64"},
                                      {DType::f32, 4, "f32"},
                                      {DType::bf16, 2, "bf16"},
                                      {DType::f16, 2, "f16"},
                                      {DType::f8_e4m3, 1, "f8_e4m3"},
                                      {DType::i64, 8, "i64"},
                                      {DType::i32, 4, "i32"},
                                      {DType::i16, 2, "i16"},
                                      {DType::i8, 1, "i8"},
                                      {DType::u16, 2, "u16"},
                                      {DType::u8, 1, "u8"},
                                      {DType::boolean, 1, "bool"}}};

}  // namespace

std::size_t dtype_size(DType dtype) {
  return kTypes[static_cast<std::size_t>(dtype)].size;
}

bool is_float(DType dtype) {
  return dtype == DType::f64 || dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16 ||
         dtype == DType::f8_e4m3;
}

std::string_view dtype_name(DType dtype) {
  return kTypes[static_cast<std::size_t>(dtype)].name;
}

std::optional<DType> parse_dtype(std::string_view name) {
  for (const Row& row : kTypes)
    if (row.name == name) return row.dtype;
  return std::nullopt;
}

}  // namespace farskip
