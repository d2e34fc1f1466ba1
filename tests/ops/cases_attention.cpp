// SPDX-License-Identifier: Apache-2.0
// Attention and the assembly of MLA keys and values.
#include <cmath>

#include "farskip/ops/ops.h"
#include "op_case.h"

namespace farskip::test {
namespace {

struct Sizes {
  std::int64_t sequences, length, heads, kv_heads, dim, v_dim, chunk = 0;
};

OpCase attention_case(const char* name, const Sizes& s, HostTensor document_start = {}, double stddev = 1.0) {
  const std::int64_t tokens = s.sequences * s.length;
  return {"attention",
          name,
          Attributes::of(ops::Attention{.sequence_length = s.length,
                                        .heads = s.heads,
                                        .kv_heads = s.kv_heads,
                                        .scale = 1.0 / std::sqrt(static_cast<double>(s.dim)),
                                        .chunk = s.chunk}),
          {random_tensor({tokens, s.heads * s.dim}, 201, stddev),
           random_tensor({tokens, s.kv_heads * s.dim}, 202, stddev),
           random_tensor({tokens, s.kv_heads * s.v_dim}, 203), std::move(document_start)},
          {0},
          {},
          false,
          1e-5,
          1e-4};
}

}  // namespace

std::vector<OpCase> attention_cases() {
  std::vector<OpCase> cases;
  cases.push_back(attention_case("one head", {1, 9, 1, 1, 4, 4}));
  cases.push_back(attention_case("one token", {1, 1, 2, 1, 3, 5}));
  cases.push_back(attention_case("sequences of one token", {4, 1, 2, 2, 3, 2}));
  cases.push_back(attention_case("grouped queries, narrow values, two sequences", {2, 7, 6, 2, 5, 3}));
  cases.push_back(attention_case("chunks that do not divide the sequence", {1, 11, 2, 2, 4, 4, 4}));
  cases.push_back(attention_case("chunk longer than the sequence", {1, 5, 2, 1, 4, 4, 16}));
  cases.push_back(
      attention_case("documents", {1, 8, 2, 1, 4, 4}, integer_tensor({8}, {0, 0, 0, 3, 3, 3, 6, 7})));
  cases.push_back(attention_case("documents and chunks, two sequences", {2, 6, 2, 2, 4, 3, 4},
                                 integer_tensor({12}, {0, 0, 2, 2, 2, 5, 0, 1, 1, 1, 1, 1})));
  cases.push_back(attention_case("large scores", {1, 12, 2, 2, 8, 8}, {}, 4.0));
  cases.push_back(attention_case("more than one tile", {1, 150, 2, 1, 24, 16}));

  const auto mla_case = [](const char* name, std::int64_t tokens, const ops::MlaKeyValue& a) {
    return OpCase{"mla_key_value",
                  name,
                  Attributes::of(a),
                  {random_tensor({tokens, a.heads * (a.nope_dim + a.v_dim)}, 211),
                   random_tensor({tokens, a.rope_dim}, 212)},
                  {0, 1},
                  {},
                  true};
  };
  cases.push_back(mla_case("odd sizes", 5, {.heads = 3, .nope_dim = 5, .rope_dim = 2, .v_dim = 7}));
  cases.push_back(mla_case("one token, one head", 1, {.heads = 1, .nope_dim = 1, .rope_dim = 2, .v_dim = 1}));
  cases.push_back(mla_case("many tokens", 200, {.heads = 4, .nope_dim = 16, .rope_dim = 8, .v_dim = 12}));
  return cases;
}

}  // namespace farskip::test
