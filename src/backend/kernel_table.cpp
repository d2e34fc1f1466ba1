// SPDX-License-Identifier: Apache-2.0
#include "farskip/backend/kernel.h"

namespace farskip {

void KernelTable::add(std::string_view op, DType dtype, DeviceKind device, Kernel kernel) {
  FARSKIP_CHECK(kernels_.emplace(std::tuple(std::string(op), dtype, device), kernel).second,
                "kernel {} {} is registered twice", op, dtype_name(dtype));
}

bool KernelTable::contains(std::string_view op, DType dtype, DeviceKind device) const {
  return kernels_.contains(std::tuple(std::string(op), dtype, device));
}

const Kernel& KernelTable::at(std::string_view op, DType dtype, DeviceKind device) const {
  const auto it = kernels_.find(std::tuple(std::string(op), dtype, device));
  if (it == kernels_.end())
    throw UsageError(fmt::format("op {} has no {} kernel on {}; use precision fp32 on the CPU", op,
                                 dtype_name(dtype), device == DeviceKind::cpu ? "the CPU" : "CUDA"));
  return it->second;
}

const KernelTable& cpu_kernel_table() {
  static const KernelTable table = [] {
    KernelTable t;
    register_cpu_kernels(t);
    return t;
  }();
  return table;
}

}  // namespace farskip
