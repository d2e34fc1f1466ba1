// SPDX-License-Identifier: Apache-2.0
#pragma once
// Writing safetensors, streamed: the header first, then each tensor's bytes in pieces of any size.

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "farskip/base/file.h"
#include "farskip/tensor/safetensors_header.h"
#include "farskip/tensor/tensor.h"
#include "tensor/hash.h"

namespace farskip {

struct TensorSpec {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
};

/// What was written: size in bytes and XXH3-128 of the whole file.
struct WrittenFile {
  std::uint64_t size = 0;
  std::string hash;
};

/// The same specs, metadata and data give the same bytes, whatever the order of the specs: tensors stand in
/// the reference library's order (wide dtypes first, then by name), which also keeps each one aligned.
/// The file appears under its name only in finish(). Errors: IoError; wrong use is InternalError.
class SafetensorsWriter {
 public:
  SafetensorsWriter(const fs::path& path, std::vector<TensorSpec> specs,
                    const std::map<std::string, std::string>& metadata = {});

  /// In file order, which is the order in which write() must bring them.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  /// The next bytes of tensor `name`; a tensor may come in any number of pieces.
  void write(std::string_view name, std::span<const std::byte> piece);
  /// Checks that every byte came, syncs the file and puts it in place.
  WrittenFile finish();

 private:
  void emit(std::span<const std::byte> bytes);

  OutputFile file_;
  Hasher hasher_;
  std::vector<TensorInfo> tensors_;
  std::size_t current_ = 0;
  std::uint64_t written_ = 0;  // of tensor current_
};

/// Writes whole tensors that are in memory.
WrittenFile write_safetensors(const fs::path& path, const std::map<std::string, TensorView>& tensors,
                              const std::map<std::string, std::string>& metadata = {});

}  // namespace farskip
