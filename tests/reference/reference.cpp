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
  reference::register_inference(table);
  reference::register_sampling(table);
}

double reference::table_value(const TensorView& table, std::int64_t i) {
  return table.dtype == DType::f32 ? static_cast<double>(table.as<float>()[i]) : table.as<double>()[i];
}

void reference::add_reference(KernelTable& table, std::string_view op, void (*run)(const KernelCall&)) {
  if (!table.contains(op, DType::f64, DeviceKind::cpu))
    table.add(op, DType::f64, DeviceKind::cpu, {.run = run, .workspace = nullptr});
}

}  // namespace farskip
