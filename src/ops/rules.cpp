#include "farskip/ops/rules.h"

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

namespace ops {

std::string shapes_text(const OpTypes& types) {
  std::string text;
  for (const TensorType* type : types.inputs)
    text += fmt::format(
        "{}{}", text.empty() ? "" : ", ",
        type == nullptr ? "absent" : fmt::format("{}{}", dtype_name(type->dtype), type->shape.text()));
  return text;
}

}  // namespace ops
}  // namespace farskip
