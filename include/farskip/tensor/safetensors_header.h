// SPDX-License-Identifier: Apache-2.0
#pragma once
// The header of a safetensors file: an 8-byte little-endian length n, then n bytes of JSON
// {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}, then the data. Offsets
// count from the first byte after the header. Used by the reader, the writer and the fuzzer.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/tensor/tensor.h"

namespace farskip {

/// Longest header accepted, bytes; the same limit as the reference library's.
inline constexpr std::uint64_t kMaxSafetensorsHeader = 100'000'000;
inline constexpr std::size_t kMaxSafetensorsRank = 8;

/// Spelling of an element type in safetensors files and manifests: F32, BF16, F8_E4M3, BOOL, ...
std::string_view safetensors_dtype_name(DType dtype);
std::optional<DType> parse_safetensors_dtype(std::string_view name);

/// One tensor of a file. `offset` is counted from the start of the file, in bytes.
struct TensorInfo {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  std::uint64_t offset = 0;
  std::uint64_t num_bytes = 0;

  /// Size of dim 0; a scalar counts as one row.
  std::int64_t num_rows() const { return shape.rank() == 0 ? 1 : shape[0]; }
};

/// Order of TensorInfo by name, for searches with a name.
struct NameLess {
  bool operator()(const TensorInfo& a, const TensorInfo& b) const { return a.name < b.name; }
  bool operator()(const TensorInfo& a, std::string_view b) const { return a.name < b; }
  bool operator()(std::string_view a, const TensorInfo& b) const { return a < b.name; }
};

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;              // ordered by name
  std::map<std::string, std::string> metadata;  // the string map `__metadata__`
};

/// Bytes of a tensor, or nothing when they do not fit 63 bits (a dim of 0 does not hide an overflow of
/// the others).
std::optional<std::uint64_t> tensor_bytes(DType dtype, const Shape& shape);

/// Checks the whole header of file `where`: `json` is its n bytes, `file_size` that of the file. On return
/// the tensors cover the data region exactly, without hole or overlap, so that reading any of them is safe.
/// Throws DataError naming the tensor, the value and what is allowed.
SafetensorsHeader parse_safetensors_header(std::string_view json, std::uint64_t file_size,
                                           std::string_view where);

}  // namespace farskip
