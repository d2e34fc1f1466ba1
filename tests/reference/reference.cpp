// SPDX-License-Identifier: Apache-2.0
#include "reference/reference.h"

namespace farskip {

void register_reference_kernels(KernelTable& table) {
  reference::register_dense(table);
  reference::register_rowwise(table);
  reference::register_attention(table);
  reference::register_routing(table);
  reference::register_optimizer(table);
  reference::register_distill(table);
}

void reference::add_reference(KernelTable& table, std::string_view op, void (*run)(const KernelCall&)) {
  if (!table.contains(op, DType::f64, DeviceKind::cpu))
    table.add(op, DType::f64, DeviceKind::cpu, {.run = run, .workspace = nullptr});
}

}  // namespace farskip
