// SPDX-License-Identifier: Apache-2.0
#include "model/blocks/attention_output.h"

namespace farskip {

AttentionOutput::AttentionOutput(const ModelConfig& c, std::int64_t inputs)
    // Its inputs are cut, and what the ranks give is summed.
    : out_{"self_attn.o_proj", c.hidden_size, inputs, c.attention_bias, {{.dim = 1, .heads = c.num_heads}}} {
  if (c.gated_attention)
    gate_ = {"self_attn.gate_proj", inputs, c.hidden_size, false, {{.dim = 0, .heads = c.num_heads}}};
}

void AttentionOutput::list(ParameterList& list) const {
  list.add(out_);
  if (gate_) list.add(*gate_);
}

ValueId AttentionOutput::lower(Lowering& to, ValueId h, ValueId heads) const {
  Builder b = to.builder();
  if (gate_) heads = ops::sigmoid_gate(b, heads, to.linear(to.for_parts(h), *gate_));
  to.show("inner", heads);
  return to.linear_of_parts(heads, out_);
}

}  // namespace farskip
