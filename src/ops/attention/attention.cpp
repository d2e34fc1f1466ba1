// SPDX-License-Identifier: Apache-2.0
#include "farskip/ops/ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

namespace {

struct HeadDims {
  std::int64_t qk, v;
};

HeadDims head_dims(const OpTypes& t, std::size_t q) {
  const auto& a = t.get<Attention>();
  return {t.shape(q)[1] / a.heads, t.shape(q + 2)[1] / a.kv_heads};
}

void check(const OpTypes& t, std::size_t q) {
  const auto& a = t.get<Attention>();
  const HeadDims d = head_dims(t, q);
  const std::int64_t tokens = t.shape(q)[0];
  FARSKIP_SHAPE(a.heads % a.kv_heads == 0 && tokens % a.sequence_length == 0 &&
                    t.shape(q)[1] == a.heads * d.qk && t.shape(q + 1) == (Shape{tokens, a.kv_heads * d.qk}) &&
                    t.shape(q + 2) == (Shape{tokens, a.kv_heads * d.v}),
                "attention", t);
}

// Two products over the causal half of [S, S] for every head, of width D and Dv.
double score_flops(const OpTypes& t, std::size_t q) {
  const auto& a = t.get<Attention>();
  const double span =
      static_cast<double>(a.chunk > 0 ? std::min(a.chunk, a.sequence_length) : a.sequence_length);
  const HeadDims d = head_dims(t, q);
  return static_cast<double>(t.shape(q)[0]) * static_cast<double>(a.heads) * (span + 1) *
         static_cast<double>(d.qk + d.v);
}

// Sequences do not see each other.
std::int64_t num_sequences(const OpTypes& t) {
  return t.shape(1)[0] / t.get<Attention>().sequence_length;
}

}  // namespace

void register_attention(OpTable& table);
void register_attention(OpTable& table) {
  table.add({.name = "attention",
             .parse_attributes = &Attributes::parse<Attention>,
             .min_inputs = 3,
             .max_inputs = 4,
             .inputs = {In::compute, In::compute, In::compute, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               check(t, 0);
               const auto& a = t.get<Attention>();
               return {rows_like(t.in(0), a.heads * head_dims(t, 0).v),
                       rows_like(t.in(0), a.heads, wide(t.in(0).dtype))};
             },
             .gradient =
                 [](GradientCall& g) {
                   const auto d =
                       g.builder().emit("attention_grad", g.get<Attention>(),
                                        {g.dout(), g.in(0), g.in(1), g.in(2), g.out(0), g.out(1), g.in(3)});
                   for (std::size_t i = 0; i < 3; ++i) g.set(i, d[i]);
                 },
             .cost = [](const OpTypes& t) { return flops_cost(score_flops(t, 0)); },
             .portions = &num_sequences});

  table.add(
      {.name = "attention_grad",
       .parse_attributes = &Attributes::parse<Attention>,
       .min_inputs = 6,
       .max_inputs = 7,
       .inputs = {In::compute, In::compute, In::compute, In::compute, In::compute, In::wide, In::integer},
       .infer = [](const OpTypes& t) -> std::vector<TensorType> {
         check(t, 1);
         FARSKIP_SHAPE(t.in(0) == t.in(4), "attention_grad", t);
         return {like(t.in(1)), like(t.in(2)), like(t.in(3))};
       },
       // five products instead of two: the scores are recomputed
       .cost = [](const OpTypes& t) { return flops_cost(2.5 * score_flops(t, 1)); },
       .portions = &num_sequences});
}

namespace ops {
AttentionResult attention(Builder& b, ValueId q, ValueId k, ValueId v, ValueId document_start,
                          const Attention& attributes) {
  const auto out = b.emit("attention", attributes, {q, k, v, document_start});
  return {out[0], out[1]};
}
}  // namespace ops
}  // namespace farskip
