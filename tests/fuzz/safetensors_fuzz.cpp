// SPDX-License-Identifier: Apache-2.0
// The header of a safetensors file, and strict JSON.
#include <nlohmann/json.hpp>

#include "farskip/tensor/safetensors_header.h"
#include "fuzz.h"
#include "tensor/strict_json.h"

using namespace farskip;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  if (size == 0) return 0;
  // The first byte is the size of the data region, the rest the header.
  const std::string_view json = fuzz::as_text(bytes + 1, size - 1);
  const std::uint64_t file_size = sizeof(std::uint64_t) + json.size() + bytes[0];
  fuzz::read_or_refuse([&] {
    const SafetensorsHeader header = parse_safetensors_header(json, file_size, "fuzz");
    std::uint64_t covered = 0;
    for (const TensorInfo& tensor : header.tensors) {
      fuzz::require(tensor.offset + tensor.num_bytes <= file_size);
      covered += tensor.num_bytes;
    }
    fuzz::require(covered == bytes[0]);
  });
  fuzz::read_or_refuse([&] { parse_strict_json(json, "fuzz"); });
  return 0;
}
