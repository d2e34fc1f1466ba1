// SPDX-License-Identifier: Apache-2.0
// Router, balance loss, and the way to the experts and back.
#include "op_case.h"
#include "ops/collective_ops.h"

namespace farskip::test {
namespace {

OpCase route_case(const char* name, std::int64_t tokens, std::int64_t num_experts, const ops::Route& a,
                  bool biased = false) {
  return {"route",
          name,
          Attributes::of(a),
          {random_tensor({tokens, num_experts}, 301),
           biased ? random_tensor({num_experts}, 302, 0.3) : HostTensor()},
          {1, 2},
          {1}};
}

void add_route(std::vector<OpCase>& cases) {
  // Logits that differ, of which f32 scores are all 1: only logits can choose.
  OpCase saturated = route_case("chosen by logits where scores tie", 3, 4,
                                {.top_k = 2, .score = ops::ScoreFunction::sigmoid, .by_logits = true});
  saturated.inputs[0] = float_tensor({3, 4}, {30, 40, 20, 50, -1, 2, 3, 1, 25, 24, 26, 23});
  cases.push_back(std::move(saturated));
  cases.push_back(route_case("chosen by logits", 101, 37,
                             {.top_k = 3, .score = ops::ScoreFunction::sigmoid, .by_logits = true}));
  for (const auto score : {ops::ScoreFunction::softmax, ops::ScoreFunction::sigmoid})
    for (const bool normalize : {false, true}) {
      const ops::Route a{.top_k = 3, .score = score, .normalize = normalize, .scaling = 2.5};
      cases.push_back(route_case("odd sizes", 7, 11, a));
      cases.push_back(route_case("biased choice", 5, 9, a, true));
      cases.push_back(route_case("more than one tile", 101, 37, a, true));
      cases.push_back(route_case("every expert chosen", 4, 3, a));
      ops::Route grouped = a;
      grouped.num_groups = 4;
      grouped.top_groups = 2;
      grouped.group_score =
          score == ops::ScoreFunction::softmax ? ops::GroupScore::max : ops::GroupScore::top2_sum;
      cases.push_back(route_case("groups", 40, 12, grouped));
      cases.push_back(route_case("groups, biased", 40, 12, grouped, true));
      cases.push_back(route_case("groups of one expert", 6, 4,
                                 {.top_k = 2,
                                  .score = score,
                                  .num_groups = 4,
                                  .top_groups = 3,
                                  .group_score = ops::GroupScore::top2_sum,
                                  .normalize = normalize}));
    }
  cases.push_back(route_case("one token, one expert", 1, 1, {.top_k = 1, .normalize = true}));
  cases.push_back(route_case("no tokens", 0, 4, {.top_k = 2}));

  OpCase ties = route_case("equal scores go to the lower index", 3, 5, {.top_k = 3});
  ties.inputs[0] = float_tensor({3, 5}, {0, 0, 0, 0, 0, 1, 2, 2, 1, 2, 0, 1, 0, 1, 0});
  ties.differentiated = {};
  cases.push_back(ties);
  OpCase tied_groups =
      route_case("equal groups: the lower one is kept", 2, 6,
                 {.top_k = 2, .num_groups = 3, .top_groups = 1, .group_score = ops::GroupScore::top2_sum});
  tied_groups.inputs[0] = float_tensor({2, 6}, {0, 1, 1, 0, 1, 0, 0, 0, 2, 0, 0, 2});
  tied_groups.differentiated = {};
  cases.push_back(tied_groups);
  OpCase negative = route_case("a large negative bias keeps no excluded expert", 5, 6,
                               {.top_k = 2,
                                .score = ops::ScoreFunction::sigmoid,
                                .num_groups = 3,
                                .top_groups = 1,
                                .group_score = ops::GroupScore::top2_sum});
  negative.inputs[1] = random_tensor({6}, 303, 0.5, -5.0);
  cases.push_back(negative);
  OpCase large = route_case("large logits", 6, 8, {.top_k = 2, .normalize = true});
  large.inputs[0] = random_tensor({6, 8}, 304, 10.0);
  large.tolerance = 1e-5;
  large.gradient_tolerance = 1e-4;
  cases.push_back(large);
}

OpCase balance_case(const char* name, std::int64_t sequences, std::int64_t length, std::int64_t num_experts,
                    const HostTensor& indices, bool normalize) {
  HostTensor scores = random_tensor({sequences * length, num_experts}, 311);
  for (float& score : scores.values<float>()) score = 1.0F / (1.0F + score * score);  // in (0, 1]
  return {"balance_loss",
          name,
          Attributes::of(ops::BalanceLoss{.sequence_length = length, .normalize_scores = normalize}),
          {scores, indices}};
}

void add_balance(std::vector<OpCase>& cases) {
  for (const bool normalize : {false, true}) {
    cases.push_back(balance_case("two sequences", 2, 5, 7, random_choice(10, 3, 7, 312), normalize));
    cases.push_back(balance_case("sequences of one token", 3, 1, 4, random_choice(3, 2, 4, 313), normalize));
    cases.push_back(
        balance_case("all tokens to one expert", 1, 9, 5, random_integers({9, 1}, 3, 4, 314), normalize));
    cases.push_back(balance_case("more than one block", 2, 301, 6, random_choice(602, 2, 6, 315), normalize));
  }
}

void add_dispatch(std::vector<OpCase>& cases) {
  struct Row {
    const char* name;
    std::int64_t num_experts, hidden;
    HostTensor indices;
  };
  for (const Row& row : {Row{"odd sizes", 7, 5, random_choice(11, 3, 7, 321)},
                         Row{"one token", 4, 9, random_choice(1, 2, 4, 322)},
                         Row{"all tokens to one expert", 5, 3, random_integers({13, 1}, 3, 4, 323)},
                         Row{"many tokens", 6, 130, random_choice(400, 2, 6, 324)},
                         Row{"no tokens", 3, 4, HostTensor(DType::i32, {0, 2})}}) {
    const Order order = routed_order(row.indices, row.num_experts);
    const std::int64_t tokens = row.indices.shape()[0], top_k = row.indices.shape()[1], rows = tokens * top_k;
    const auto k = Attributes::of(ops::TopK{top_k});
    cases.push_back(
        {"sort_by_expert", row.name, Attributes::of(ops::SortByExpert{row.num_experts}), {row.indices}, {}});
    cases.push_back({"dispatch_rows",
                     row.name,
                     k,
                     {random_tensor({tokens, row.hidden}, 325), order.row_slot, order.slot_row}});
    cases.push_back({"combine_rows",
                     row.name,
                     k,
                     {random_tensor({rows, row.hidden}, 326), order.row_slot, order.slot_row}});
    cases.push_back({"permute_values",
                     row.name,
                     Attributes::of(ops::PermuteValues{}),
                     {random_tensor({tokens, top_k}, 327), order.row_slot, order.slot_row}});
    cases.push_back({"permute_values",
                     row.name,
                     Attributes::of(ops::PermuteValues{top_k}),
                     {random_tensor({rows}, 328), order.slot_row, order.row_slot}});
    // As on one of several ranks: the slots of other experts have no row.
    const auto all = order.slot_row.values<std::int32_t>();
    std::vector<std::int32_t> some(all.begin(), all.end());
    for (std::int32_t& at : some)
      if (at % 3 == 1) at = -1;
    const HostTensor own_row = integer_tensor({rows}, some);
    cases.push_back({"combine_rows",
                     row.name + std::string(", some without a row"),
                     k,
                     {random_tensor({rows, row.hidden}, 330), order.row_slot, own_row},
                     {}});
    cases.push_back({"permute_values",
                     row.name + std::string(", some without a row"),
                     Attributes::of(ops::PermuteValues{top_k}),
                     {random_tensor({rows}, 336), own_row, order.row_slot},
                     {}});
    for (const auto& [first, count] : {std::pair{0, 1}, {1, 2}, {static_cast<int>(row.num_experts) - 2, 2}})
      cases.push_back({"own_experts",
                       row.name,
                       Attributes::of(ops::OwnExperts{first, count}),
                       {order.row_slot, order.slot_row, order.offsets},
                       {}});
  }
  cases.push_back({"sort_by_expert",
                   "more than one block of slots",
                   Attributes::of(ops::SortByExpert{9}),
                   {random_choice(2111, 4, 9, 329)},
                   {}});
}

void add_rows_of_peers(std::vector<OpCase>& cases) {
  struct Row {
    const char* name;
    ops::RowExchange attributes;
    std::vector<std::int32_t> counts;
  };
  for (const Row& row :
       {Row{"slabs of different length", {3, 2, 7}, {4, 0, 0, 7, 2, 3}},
        Row{"full slabs", {2, 3, 6}, {1, 2, 3, 0, 6, 0}}, Row{"no rows at all", {2, 2, 5}, {0, 0, 0, 0}},
        Row{"all rows from one peer to one expert", {4, 1, 9}, {0, 0, 9, 0}},
        Row{"one peer", {1, 4, 11}, {3, 0, 5, 1}}, Row{"no room", {2, 2, 0}, {0, 0, 0, 0}}})
    cases.push_back({"order_by_expert",
                     row.name,
                     Attributes::of(row.attributes),
                     {integer_tensor({row.attributes.peers * row.attributes.groups}, row.counts)},
                     {}});
  // A gradient that scatters leaves rows alone that nobody gathered, so every row is gathered once.
  for (const std::int64_t rows : {1, 13, 700}) {
    const HostTensor source = routed_order(random_choice(rows, 1, 5, 331), 5).row_slot;
    const auto scatter = Attributes::of(ops::ScatterRows{rows});
    for (const Shape& shape : {Shape{rows}, Shape{rows, 1}, Shape{rows, 37}}) {
      const HostTensor x = random_tensor(shape, 332);
      cases.push_back(
          {"gather_rows", "all rows, in another order", Attributes::of(NoAttributes{}), {x, source}});
      cases.push_back({"scatter_rows", "all rows, in another order", scatter, {x, source}});
    }
  }
  const HostTensor none(DType::i32, {0});
  const auto nothing = Attributes::of(ops::ScatterRows{0});
  cases.push_back(
      {"gather_rows", "no rows", Attributes::of(NoAttributes{}), {random_tensor({0, 3}, 333), none}});
  cases.push_back({"scatter_rows", "no rows", nothing, {random_tensor({0, 3}, 334), none}});
}

/// Places of `slots` in slabs that they fill, in some order; `missing` of them have none.
HostTensor slab_places_of(std::int64_t slots, std::int64_t missing) {
  HostTensor places = routed_order(random_choice(slots, 1, 5, 341), 5).row_slot;
  const auto have = static_cast<std::int32_t>(slots - missing);
  for (std::int32_t& place : places.values<std::int32_t>())
    if (place >= have) place = -1;
  return places;
}

void add_slabs(std::vector<OpCase>& cases) {
  struct Row {
    const char* name;
    ops::RowExchange attributes;
    std::int64_t tokens, top_k;
  };
  for (const Row& row : {Row{"room for all", {3, 2, 40, 33}, 11, 3},
                         Row{"too many for some", {3, 2, 9, 33}, 11, 3}, Row{"one peer", {1, 4, 8, 8}, 4, 2},
                         Row{"no room", {2, 2, 0, 5}, 5, 1}, Row{"many rows", {4, 8, 700, 2400}, 800, 3}}) {
    const ops::RowExchange& a = row.attributes;
    const Order order =
        routed_order(random_choice(row.tokens, row.top_k, a.peers * a.groups, 342), a.peers * a.groups);
    cases.push_back({"slab_places", row.name, Attributes::of(a), {order.slot_row, order.offsets}, {}});
  }
  for (const std::int64_t missing : {0, 4})
    for (const std::int64_t hidden : {1, 5, 130}) {
      const std::int64_t tokens = 60, top_k = 3, rows = tokens * top_k - missing;
      const HostTensor places = slab_places_of(tokens * top_k, missing);
      const char* const name = missing == 0 ? "all fit" : "some do not fit";
      const auto k = Attributes::of(ops::SlabRows{top_k, rows, 0});
      cases.push_back({"put_into_slabs", name, k, {random_tensor({tokens, hidden}, 343), places}});
      cases.push_back({"take_from_slabs", name, k, {random_tensor({rows, hidden}, 344), places}});
      const auto values = Attributes::of(ops::SlabRows{0, rows, hidden == 1 ? 0 : top_k});
      cases.push_back({"put_into_slabs",
                       name,
                       Attributes::of(ops::SlabRows{0, rows, 0}),
                       {random_tensor({tokens, top_k}, 345), places}});
      cases.push_back({"take_from_slabs", name, values, {random_tensor({rows}, 346), places}});
    }
}

}  // namespace

std::vector<OpCase> routing_cases() {
  std::vector<OpCase> cases;
  add_route(cases);
  add_balance(cases);
  add_dispatch(cases);
  add_rows_of_peers(cases);
  add_slabs(cases);
  return cases;
}

}  // namespace farskip::test
