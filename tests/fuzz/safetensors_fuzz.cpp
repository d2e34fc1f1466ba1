// libFuzzer harness for the header of safetensors files and for strict JSON. Not part of the build:
//   clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -DFMT_HEADER_ONLY -Iinclude
//     tests/fuzz/safetensors_fuzz.cpp src/tensor/safetensors_header.cpp src/tensor/strict_json.cpp
//     src/tensor/dtype.cpp src/tensor/tensor.cpp src/base/file.cpp -o safetensors_fuzz
//   ./safetensors_fuzz -max_total_time=600

#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "farskip/base/error.h"
#include "farskip/tensor/safetensors_header.h"
#include "farskip/tensor/strict_json.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  if (size == 0) return 0;
  // The first byte is the size of the data region, the rest the header.
  const std::string_view json(reinterpret_cast<const char*>(bytes + 1), size - 1);
  const std::uint64_t file_size = sizeof(std::uint64_t) + json.size() + bytes[0];
  try {
    const farskip::SafetensorsHeader header = farskip::parse_safetensors_header(json, file_size, "fuzz");
    std::uint64_t covered = 0;
    for (const farskip::TensorInfo& tensor : header.tensors) {
      if (tensor.offset + tensor.num_bytes > file_size) std::abort();
      covered += tensor.num_bytes;
    }
    if (covered != bytes[0]) std::abort();
  } catch (const farskip::DataError&) {
  }
  try {
    farskip::parse_strict_json(json, "fuzz");
  } catch (const farskip::DataError&) {
  }
  return 0;
}
