// SPDX-License-Identifier: Apache-2.0
// Cuts the rows of a tensor apart, and joins them.
#include <cstring>

#include "backend/cpu/parallel.h"
#include "farskip/backend/kernel.h"

namespace farskip {
namespace {

void copy_bytes(std::byte* to, const std::byte* from, std::size_t bytes) {
  constexpr std::int64_t tile = std::int64_t{64} << 10;
  cpu::parallel_ranges(static_cast<std::int64_t>(bytes), tile, [&](std::int64_t begin, std::int64_t end) {
    std::memcpy(to + begin, from + begin, static_cast<std::size_t>(end - begin));
  });
}

void run_split_rows(const KernelCall& call) {
  const std::byte* from = call.inputs[0].as<std::byte>();
  for (const TensorView& part : call.outputs) {
    copy_bytes(part.as<std::byte>(), from, part.num_bytes());
    from += part.num_bytes();
  }
}

void run_concat_rows(const KernelCall& call) {
  std::byte* to = call.outputs[0].as<std::byte>();
  for (const TensorView& part : call.inputs) {
    copy_bytes(to, part.as<std::byte>(), part.num_bytes());
    to += part.num_bytes();
  }
}

}  // namespace

void register_rows(KernelTable& table);
void register_rows(KernelTable& table) {
  for (const DType dtype : {DType::f32, DType::i32}) {
    table.add("split_rows", dtype, DeviceKind::cpu, {.run = run_split_rows, .workspace = nullptr});
    table.add("concat_rows", dtype, DeviceKind::cpu, {.run = run_concat_rows, .workspace = nullptr});
  }
}

}  // namespace farskip
