// SPDX-License-Identifier: Apache-2.0
// A gated MLP that every token passes: the dense one of a layer, or its shared experts. Gate and up are one
// matrix.

#include "model/blocks/block.h"

namespace farskip {
namespace {

class Mlp : public Block {
 public:
  Mlp(const ModelConfig& c, bool shared)
      : size_(shared ? c.moe.shared_size : c.intermediate_size), is_shared_(shared) {
    const std::string module = shared ? "mlp.shared_experts" : "mlp";
    gate_up_ = {module + ".gate_up_proj", 2 * size_, c.hidden_size, c.mlp_bias, {{.dim = 0, .groups = 2}}};
    down_ = {module + ".down_proj", c.hidden_size, size_, c.mlp_bias, {{.dim = 1}}};
  }

  void list(ParameterList& list) const override {
    list_halves(list, list.add_weight(gate_up_), {size_, gate_up_.inputs}, ".weight");
    name_on_hub(list, list.add_weight(down_), ".down_proj.weight");
    if (!gate_up_.has_bias) return;
    list_halves(list, list.add_bias(gate_up_), {size_}, ".bias");
    name_on_hub(list, list.add_bias(down_), ".down_proj.bias");
  }

  ValueId lower(Lowering& to, ValueId h) const override {
    Builder b = to.builder();
    const ValueId inner = ops::swiglu(b, to.linear(to.for_parts(h), gate_up_));
    to.show("inner", inner);
    return to.linear_of_parts(inner, down_);
  }

  std::vector<std::string> readers() const override { return {gate_up_.weight()}; }
  std::string writer() const override { return down_.weight(); }

 private:
  std::string hub_name(const ParameterList& list, std::string_view part) const {
    const MlpNames& names = list.mlp_names();
    return list.full_name(
        fmt::format("{}{}{}{}", names.module, is_shared_ ? "." : "", is_shared_ ? names.shared : "", part));
  }
  void name_on_hub(const ParameterList& list, ParameterSpec& spec, std::string_view part) const {
    spec.pieces[0].name = hub_name(list, part);
  }
  void list_halves(const ParameterList& list, ParameterSpec& spec, const Shape& half,
                   const char* kind) const {
    spec.pieces = {{hub_name(list, fmt::format(".gate_proj{}", kind)), half, 0},
                   {hub_name(list, fmt::format(".up_proj{}", kind)), half, size_}};
    if (half.rank() > 1) spec.matrix_rows = size_;
  }

  std::int64_t size_;
  bool is_shared_;
  LinearModule gate_up_, down_;
};

}  // namespace

std::unique_ptr<Block> make_mlp(const ModelConfig& config, SubBlock kind) {
  return std::make_unique<Mlp>(config, kind == SubBlock::shared);
}

}  // namespace farskip
