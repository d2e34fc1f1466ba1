#include "farskip/ops/ops.h"
#include "farskip/ops/rules.h"

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
  FARSKIP_SHAPE(s.k == s.k_b && t.in(0).dtype == t.in(1).dtype, "matmul", t);
  // Rows of the product are rows of a, so they keep its row count.
  const ValueId count = t.get<Matmul>().transpose_a ? ValueId() : t.in(0).count;
  const TensorType out{t.in(0).dtype, Shape{s.m, s.n}, count};
  FARSKIP_SHAPE(!t.has(2) || t.in(2) == out, "matmul", t);
  return {out};
}

// For y = op(a) op(b): da = dy op(b)ᵀ and db = op(a)ᵀ dy, each transposed once more where op transposes.
void gradient(GradientCall& g) {
  const auto [ta, tb] = g.get<Matmul>();
  const ValueId a = g.in(0), b = g.in(1), dy = g.dout();
  if (g.needs(0))
    g.set(0, ta ? matmul(g.builder(), b, dy, {.transpose_a = tb, .transpose_b = true})
                : matmul(g.builder(), dy, b, {.transpose_a = false, .transpose_b = !tb}));
  if (g.needs(1))
    g.set(1, tb ? matmul(g.builder(), dy, a, {.transpose_a = true, .transpose_b = ta})
                : matmul(g.builder(), a, dy, {.transpose_a = !ta, .transpose_b = false}));
  g.set(2, dy);
}

}  // namespace

void register_matmul(OpTable& table);
void register_matmul(OpTable& table) {
  table.add({.name = "matmul",
             .parse_attributes = &Attributes::parse<Matmul>,
             .min_inputs = 2,
             .max_inputs = 3,
             .infer = infer,
             .gradient = gradient,
             .cost =
                 [](const OpTypes& t) {
                   const Sizes s = sizes(t);
                   return flops_cost(2.0 * static_cast<double>(s.m) * static_cast<double>(s.n) *
                                     static_cast<double>(s.k));
                 },
             .in_place = {{0, 2}},
             .accumulates = {{0, 2}}});
}

namespace ops {
ValueId matmul(Builder& b, ValueId x, ValueId y, Matmul attributes) {
  return b.emit("matmul", attributes, {x, y})[0];
}
}  // namespace ops
}  // namespace farskip
