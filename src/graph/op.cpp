// SPDX-License-Identifier: Apache-2.0
#include "farskip/graph/op.h"

#include <algorithm>
#include <optional>

namespace farskip {
namespace {

bool is_accumulator(const OpDef& op, std::size_t input) {
  return std::any_of(op.accumulates.begin(), op.accumulates.end(),
                     [&](const InPlace& sum) { return sum.input == input; });
}

/// The element types that OpDef::inputs asks for.
bool types_fit(const OpDef& op, const OpTypes& types) {
  std::optional<DType> compute, wide_type;
  for (std::size_t i = 0; i < types.inputs.size(); ++i)
    if (types.has(i) && !is_accumulator(op, i) && op.input_type(i) == InputType::compute) {
      compute = types.in(i).dtype;
      wide_type = wide(*compute);
      break;
    }
  for (std::size_t i = 0; i < types.inputs.size(); ++i) {
    if (!types.has(i) || is_accumulator(op, i)) continue;
    const DType dtype = types.in(i).dtype;
    switch (op.input_type(i)) {
      case InputType::compute:
        if (!is_float(dtype) || dtype != *compute) return false;
        break;
      case InputType::wide:  // those of an op that computes in nothing else agree among each other
        if (!wide_type) wide_type = dtype;
        // References in f64 read some tables in f32.
        if (dtype != *wide_type && !(dtype == DType::f32 && *wide_type == DType::f64)) return false;
        if (!is_float(dtype) || is_low(dtype)) return false;
        break;
      case InputType::integer:
        if (dtype != DType::i32) return false;
        break;
      case InputType::any:
        break;
    }
  }
  return true;
}

bool counts_fit(const OpDef& op, const OpTypes& types) {
  for (std::size_t i = 0; i < types.inputs.size(); ++i)
    if (types.has(i) && types.in(i).count &&
        std::find(op.bounded.begin(), op.bounded.end(), i) == op.bounded.end())
      return false;
  return true;
}

}  // namespace

bool OpDef::may_share(std::size_t output, std::size_t input, DType type) const {
  if (in_place_each && output == input) return true;
  return std::any_of(in_place.begin(), in_place.end(), [&](const InPlace& rule) {
    return rule.output == output && rule.input == input && !(rule.wide_only && type == DType::bf16);
  });
}

InputType OpDef::input_type(std::size_t i) const {
  return inputs[std::min(i, inputs.size() - 1)];
}

bool OpDef::takes_low() const {
  return std::any_of(inputs.begin(), inputs.end(),
                     [](InputType t) { return t == InputType::compute || t == InputType::any; });
}

void OpTable::add(OpDef op) {
  FARSKIP_CHECK(op.infer != nullptr && op.max_inputs >= op.min_inputs && op.inputs.size() <= op.max_inputs &&
                    op.inputs.empty() == (op.max_inputs == 0),
                "op {} is incomplete", op.name);
  const std::string name = op.name;
  FARSKIP_CHECK(ops_.emplace(name, std::move(op)).second, "op {} is registered twice", name);
}

const OpDef* OpTable::find(std::string_view name) const {
  const auto it = ops_.find(name);
  return it == ops_.end() ? nullptr : &it->second;
}

const OpDef& OpTable::at(std::string_view name) const {
  const OpDef* op = find(name);
  FARSKIP_CHECK(op != nullptr, "no op named {}", name);
  return *op;
}

OpCost cost_of(const OpDef& op, const OpTypes& types) {
  OpCost cost;
  if (op.cost != nullptr) cost = op.cost(types);
  if (cost.bytes == 0) {
    for (const TensorType* type : types.inputs)
      if (type != nullptr) cost.bytes += static_cast<double>(type->num_bytes());
    for (const TensorType& type : types.outputs) cost.bytes += static_cast<double>(type.num_bytes());
  }
  return cost;
}

std::string inputs_text(const OpTypes& types) {
  std::string text;
  for (const TensorType* type : types.inputs)
    text += fmt::format(
        "{}{}", text.empty() ? "" : ", ",
        type == nullptr ? "absent" : fmt::format("{}{}", dtype_name(type->dtype), type->shape.text()));
  return text;
}

std::vector<TensorType> infer_outputs(const OpDef& op, const OpTypes& types) {
  const auto describe = [&] { return fmt::format("{} {{{}}}", op.name, types.attributes.text()); };
  FARSKIP_CHECK(types_fit(op, types), "{}: element types do not fit: {}", describe(), inputs_text(types));
  FARSKIP_CHECK(counts_fit(op, types), "{}: rows are bounded that must be whole: {}", describe(),
                inputs_text(types));
  std::vector<TensorType> outputs = op.infer(types);
  for (const InPlace& sum : op.accumulates)
    FARSKIP_CHECK(!types.has(sum.input) || types.in(sum.input) == outputs[sum.output],
                  "{}: input {} cannot be added to output {}: element types do not fit: {}", describe(),
                  sum.input, sum.output, inputs_text(types));
  return outputs;
}

}  // namespace farskip
