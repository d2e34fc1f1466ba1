// SPDX-License-Identifier: Apache-2.0
#include "farskip/ops/optimizer_ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

namespace {

/// A = X Xᵀ, A², and their product with X, of the smaller side k of [r, c].
double muon_flops(const OpTypes& t) {
  if (t.shape(0).num_elements() == 0) return 0;
  const MuonMatrix one(t.get<Muon>(), t.shape(0));
  const auto k = static_cast<double>(one.side), l = static_cast<double>(one.elements / one.side);
  const auto matrices = static_cast<double>(t.shape(0).num_elements() / one.elements);
  return matrices * Muon::kSteps * (4 * k * k * l + 2 * k * k * k) + 10.0 * elements(t.shape(0));
}

}  // namespace

void register_muon(OpTable& table);
void register_muon(OpTable& table) {
  table.add({.name = "muon",
             .parse_attributes = &Attributes::parse<Muon>,
             .min_inputs = 5,  // parameter, momentum, gradient, factor, hyper
             .max_inputs = 5,
             .inputs = {In::wide, In::compute, In::wide},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const auto& a = t.get<Muon>();
               FARSKIP_SHAPE(t.shape(0).rank() >= 2 && t.shape(0) == t.shape(1) && t.shape(0) == t.shape(2) &&
                                 t.shape(4) == Shape{kNumHyper} &&
                                 (a.matrix_rows == 0 || t.shape(0).num_rows() % a.matrix_rows == 0),
                             "muon", t);
               std::vector<TensorType> out{like(t.in(0)), like(t.in(1))};
               if (a.low_copy) out.push_back({DType::bf16, t.shape(0), {}});
               return out;
             },
             .cost = [](const OpTypes& t) { return flops_cost(muon_flops(t)); },
             .in_place = {{0, 0}, {1, 1}}});
}

namespace ops {
MuonState muon(Builder& b, const MuonState& state, ValueId grad, ValueId factor, ValueId hyper,
               const Muon& attributes) {
  const auto out = b.emit("muon", attributes, {state.parameter, state.momentum, grad, factor, hyper});
  return {out[0], out[1], attributes.low_copy ? out[2] : ValueId()};
}
}  // namespace ops
}  // namespace farskip
