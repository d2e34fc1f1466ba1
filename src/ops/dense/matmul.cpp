// SPDX-License-Identifier: Apache-2.0
#include "farskip/ops/ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

namespace {

struct Sizes {
  std::int64_t m, n, k, k_b;
};

Sizes sizes(const OpTypes& t) {
  const auto& attributes = t.get<Matmul>();
  const Shape &a = t.shape(0), &b = t.shape(1);
  const bool ta = attributes.transpose_a, tb = attributes.transpose_b;
  return {a[ta ? 1 : 0], b[tb ? 0 : 1], a[ta ? 0 : 1], b[tb ? 1 : 0]};
}

std::vector<TensorType> infer(const OpTypes& t) {
  FARSKIP_SHAPE(t.shape(0).rank() == 2 && t.shape(1).rank() == 2, "matmul", t);
  const Sizes s = sizes(t);
  FARSKIP_SHAPE(s.k == s.k_b, "matmul", t);
  // Rows of the product are rows of a, so they keep its row count.
  const ValueId count = t.get<Matmul>().transpose_a ? ValueId() : t.in(0).count;
  const DType in = t.in(0).dtype;
  const TensorType out{t.get<Matmul>().wide ? wide(in) : in, Shape{s.m, s.n}, count};
  return {out};
}

// For y = op(a) op(b): da = dy op(b)ᵀ and db = op(a)ᵀ dy, each transposed once more where op transposes.
// Gradients of parameters are wide; a wide y has a wide dy, which products with low operands cannot read.
void gradient(GradientCall& g) {
  const bool ta = g.get<Matmul>().transpose_a, tb = g.get<Matmul>().transpose_b;
  const ValueId a = g.in(0), b = g.in(1);
  const ValueId dy = g.needs(0) || g.needs(1) ? cast(g.builder(), g.dout(), g.dtype(a)) : g.dout();
  const auto set_product = [&](std::size_t input, ValueId x, bool tx, ValueId y, bool ty) {
    const bool as_wide = is_low(g.dtype(x)) && g.is_parameter(input);
    g.set(input, matmul(g.builder(), x, y, {.transpose_a = tx, .transpose_b = ty, .wide = as_wide}));
  };
  if (g.needs(0)) ta ? set_product(0, b, tb, dy, true) : set_product(0, dy, false, b, !tb);
  if (g.needs(1)) tb ? set_product(1, dy, true, a, ta) : set_product(1, a, !ta, dy, false);
  g.set(2, g.dout());
}

}  // namespace

void register_matmul(OpTable& table);
void register_matmul(OpTable& table) {
  table.add({.name = "matmul",
             .parse_attributes = &Attributes::parse<Matmul>,
             .min_inputs = 2,
             .max_inputs = 3,
             .inputs = {In::compute},
             .infer = infer,
             .gradient = gradient,
             .cost =
                 [](const OpTypes& t) {
                   const Sizes s = sizes(t);
                   return flops_cost(2.0 * static_cast<double>(s.m) * static_cast<double>(s.n) *
                                     static_cast<double>(s.k));
                 },
             // cuBLASLt would round a bf16 product before it adds it to what stands in its place.
             .in_place = {{0, 2, true}},
             .accumulates = {{0, 2}}});
}

namespace ops {
ValueId matmul(Builder& b, ValueId x, ValueId y, Matmul attributes) {
  return b.emit("matmul", attributes, {x, y})[0];
}
}  // namespace ops
}  // namespace farskip
