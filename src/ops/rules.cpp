// SPDX-License-Identifier: Apache-2.0
#include "ops/rules.h"

namespace farskip {

void register_ops(OpTable& table);  // generated from the files of src/ops

const OpTable& op_table() {
  static const OpTable table = [] {
    OpTable t;
    register_ops(t);
    return t;
  }();
  return table;
}

}  // namespace farskip
