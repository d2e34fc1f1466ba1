// SPDX-License-Identifier: Apache-2.0
// Ops that read and write a cache of keys and values.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "op_case.h"
#include "ops/inference_ops.h"

namespace farskip::test {
namespace {

struct Sizes {
  std::int64_t heads, kv_heads, dim, value_size, block_tokens, chunk = 0;
  bool keys_alone = false;
};

/// One token of each run: its sequence and position.
using Places = std::vector<std::pair<std::int32_t, std::int32_t>>;

/// Tokens [first, last] of one sequence.
Places positions_of(std::int32_t sequence, std::int32_t first, std::int32_t last) {
  Places places;
  for (std::int32_t p = first; p <= last; ++p) places.emplace_back(sequence, p);
  return places;
}

/// Blocks of the sequences lie in random order in a cache that holds NaN wherever nothing may be read.
OpCase attention_case(const char* name, const Sizes& s, const Places& places) {
  std::vector<std::int32_t> sequences, positions, lengths;
  for (const auto& [sequence, position] : places) {
    sequences.push_back(sequence);
    positions.push_back(position);
    lengths.resize(std::max<std::size_t>(lengths.size(), static_cast<std::size_t>(sequence) + 1));
    std::int32_t& length = lengths[static_cast<std::size_t>(sequence)];
    length = std::max(length, position + 1);
  }
  const auto tokens = static_cast<std::int64_t>(places.size());
  const auto num_sequences = static_cast<std::int64_t>(lengths.size());
  const std::int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  const std::int64_t max_blocks = longest / s.block_tokens + 2;
  std::vector<std::int32_t> table(static_cast<std::size_t>(num_sequences * max_blocks));
  std::iota(table.begin(), table.end(), 1);
  std::mt19937 random(5);
  std::shuffle(table.begin(), table.end(), random);
  const std::int64_t rows = (num_sequences * max_blocks + 1) * s.block_tokens;
  HostTensor keys = random_tensor({rows, s.kv_heads * s.dim}, 302);
  HostTensor values = random_tensor({rows, s.kv_heads * s.value_size}, 303);
  std::vector<char> filled(static_cast<std::size_t>(rows));
  for (std::int64_t q = 0; q < num_sequences; ++q)
    for (std::int64_t p = 0; p < lengths[static_cast<std::size_t>(q)]; ++p)
      filled[static_cast<std::size_t>(table[static_cast<std::size_t>(q * max_blocks + p / s.block_tokens)] *
                                          s.block_tokens +
                                      p % s.block_tokens)] = 1;
  for (std::int64_t r = 0; r < rows; ++r)
    for (HostTensor* tensor : {&keys, &values})
      if (filled[static_cast<std::size_t>(r)] == 0)
        std::fill_n(tensor->view().as<float>() + r * tensor->shape()[1], tensor->shape()[1],
                    std::numeric_limits<float>::quiet_NaN());
  return {"cached_attention",
          name,
          Attributes::of(ops::CachedAttention{.heads = s.heads,
                                              .kv_heads = s.kv_heads,
                                              .scale = 1.0 / std::sqrt(static_cast<double>(s.dim)),
                                              .chunk = s.chunk,
                                              .block_tokens = s.block_tokens,
                                              .value_size = s.value_size}),
          {random_tensor({tokens, s.heads * s.dim}, 301), keys, integer_tensor({tokens}, sequences),
           integer_tensor({tokens}, positions), integer_tensor({num_sequences, max_blocks}, table),
           s.keys_alone ? HostTensor() : values},
          {},
          {},
          false,
          1e-5};
}

Places joined(std::initializer_list<Places> parts) {
  Places all;
  for (const Places& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

}  // namespace

std::vector<OpCase> inference_cases() {
  std::vector<OpCase> cases;
  const Places ragged = {{0, 7}, {1, 0}, {2, 40}, {3, 15}, {4, 16}};
  cases.push_back(attention_case("one token of one", {1, 1, 4, 4, 16}, {{0, 0}}));
  cases.push_back(attention_case("decoding, lengths of all kinds", {6, 2, 5, 3, 4}, ragged));
  cases.push_back(attention_case("decoding, one block a token", {2, 2, 8, 8, 1}, ragged));
  cases.push_back(
      attention_case("more than one window of keys", {4, 1, 24, 16, 16}, {{0, 300}, {1, 127}, {2, 128}}));
  cases.push_back(attention_case("one sequence from its beginning", {3, 3, 4, 4, 8}, positions_of(0, 0, 40)));
  cases.push_back(attention_case("a part of a sequence, beside others", {4, 2, 8, 8, 8},
                                 joined({{{1, 20}}, positions_of(0, 30, 47), {{2, 3}, {2, -1}, {0, -1}}})));
  cases.push_back(
      attention_case("chunks", {2, 1, 4, 4, 4, 6}, joined({positions_of(0, 3, 20), {{1, 5}, {1, 6}}})));
  cases.push_back(attention_case("values are the beginning of keys", {20, 1, 12, 8, 4, 0, true},
                                 joined({ragged, positions_of(0, 8, 14)})));
  cases.push_back(
      attention_case("many query heads of one", {40, 1, 576, 512, 16, 0, true}, {{0, 33}, {1, 150}}));

  // Head sizes and groups of models, for which a GPU has kernels of their own.
  const Places mixed =
      joined({{{0, 0}, {1, 511}, {2, 64}, {3, 63}}, positions_of(4, 37, 109), {{5, -1}, {0, -1}}});
  cases.push_back(attention_case("3 heads of 64 share keys, decoding", {9, 3, 64, 64, 16},
                                 joined({ragged, {{5, 1300}, {6, -1}}})));
  cases.push_back(attention_case("3 heads of 64 share keys, a part of a prompt", {9, 3, 64, 64, 16}, mixed));
  cases.push_back(attention_case("heads of 64 with keys of their own", {3, 3, 64, 64, 32}, mixed));
  cases.push_back(attention_case("4 heads of 128, chunks", {8, 2, 128, 128, 16, 48}, mixed));
  cases.push_back(attention_case("20 heads of 128 share keys", {20, 1, 128, 128, 5}, mixed));
  cases.push_back(attention_case("one prompt of many tiles", {4, 2, 128, 128, 16}, positions_of(0, 0, 200)));
  cases.push_back(attention_case("one long text", {4, 1, 128, 128, 16}, {{0, 3000}}));
  cases.push_back(attention_case("latents of 16 heads", {16, 1, 576, 512, 16, 0, true},
                                 joined({ragged, positions_of(5, 90, 101), {{6, 700}, {7, -1}}})));
  cases.push_back(attention_case("narrower latents", {16, 1, 544, 512, 16, 0, true}, ragged));
  cases.push_back(
      attention_case("latents of 128 heads", {128, 1, 576, 512, 16, 0, true}, {{0, 0}, {1, 260}, {0, -1}}));

  const auto write_case = [](const char* name, std::vector<std::int32_t> rows, std::int64_t more) {
    const auto tokens = static_cast<std::int64_t>(rows.size());
    return OpCase{
        "write_cache",
        name,
        Attributes::of(NoAttributes{}),
        {random_tensor({24, 5 + more}, 311), integer_tensor({tokens}, rows), random_tensor({tokens, 5}, 312),
         more > 0 ? random_tensor({tokens, more}, 313) : HostTensor()},
        {}};
  };
  cases.push_back(write_case("rows in any order, one that is not written", {7, 3, -1, 0, 23}, 0));
  cases.push_back(write_case("rows of two parts", {2, 1, -1}, 3));
  cases.push_back(write_case("no rows", {}, 3));

  const auto head_case = [](const char* op, const char* name, std::int64_t tokens, std::int64_t latent,
                            const ops::MlaKeyValue& a) {
    const std::int64_t width = std::string(op) == "absorb_query" ? a.nope_dim + a.rope_dim : latent;
    return OpCase{op,
                  name,
                  Attributes::of(a),
                  {random_tensor({tokens, a.heads * width}, 321),
                   random_tensor({a.heads * (a.nope_dim + a.v_dim), latent}, 322)},
                  {}};
  };
  for (const char* op : {"absorb_query", "expand_value"}) {
    cases.push_back(head_case(op, "odd sizes", 5, 7, {.heads = 3, .nope_dim = 5, .rope_dim = 2, .v_dim = 9}));
    cases.push_back(
        head_case(op, "one token", 1, 40, {.heads = 2, .nope_dim = 16, .rope_dim = 8, .v_dim = 16}));
    cases.push_back(
        head_case(op, "many tokens", 70, 33, {.heads = 4, .nope_dim = 16, .rope_dim = 4, .v_dim = 12}));
    cases.push_back(head_case(op, "no tokens", 0, 8, {.heads = 2, .nope_dim = 4, .rope_dim = 2, .v_dim = 4}));
  }
  return cases;
}

}  // namespace farskip::test
