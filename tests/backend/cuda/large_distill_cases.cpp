// SPDX-License-Identifier: Apache-2.0
// Distillation: several blocks of tokens, rows that shared memory cannot hold, many events, equal logits.
#include <cmath>

#include "job.h"
#include "ops/distill_ops.h"

namespace farskip::test {
namespace {

struct Sizes {
  std::int64_t tokens, vocab, hidden, teacher_hidden;
};

OpCase loss_case(const char* name, const ops::DistillLoss& a, const Sizes& s) {
  return {"distill_loss",
          name,
          Attributes::of(a),
          {random_tensor({s.tokens, s.hidden}, 1001, 0.3), random_tensor({s.vocab, s.hidden}, 1002),
           random_tensor({s.tokens, s.teacher_hidden}, 1003, 0.3),
           random_tensor({s.vocab, s.teacher_hidden}, 1004),
           random_integers({s.tokens}, -1, static_cast<std::int32_t>(s.vocab), 1005)},
          {0},
          {2, 3}};
}

/// Products of multiples of 1/8 are exact, and many of their sums are equal.
HostTensor coarse(Shape shape, std::uint64_t seed) {
  HostTensor x = random_tensor(std::move(shape), seed);
  for (float& value : x.values<float>()) value = std::round(value * 8.0F) / 8.0F;
  return x;
}

/// A student whose head is close to its teacher's, at a high temperature; logits are exact.
OpCase close_case(const ops::DistillLoss& a, const Sizes& s) {
  const HostTensor h = coarse({s.tokens, s.hidden}, 1006), w = coarse({s.vocab, s.hidden}, 1007);
  HostTensor wt = coarse({s.vocab, s.hidden}, 1007);
  for (std::size_t i = 0; i < wt.values<float>().size(); i += 5) wt.values<float>()[i] += 0.03125F;
  return {"distill_loss",
          "a student close to its teacher",
          Attributes::of(a),
          {h, w, h, wt, random_integers({s.tokens}, -1, static_cast<std::int32_t>(s.vocab), 1008)},
          {0},
          {2, 3}};
}

}  // namespace

std::vector<OpCase> large_distill_cases() {
  const Sizes many{4500, 16001, 40, 24}, wide{70, 40009, 33, 17};
  std::vector<OpCase> cases{
      loss_case("several blocks of tokens", {}, many),
      loss_case("several blocks of tokens", {.kl = 0.5, .sft = 0.5, .temperature = 2.0, .top_k = 64}, many),
      loss_case("rows longer than shared memory", {.kl = 0.4, .jsd = 0.3, .sft = 0.3}, wide),
      loss_case("rows longer than shared memory", {.kl = 0.5, .reverse_kl = 0.5, .top_k = 1500}, wide)};
  for (const std::int64_t top_k : {0, 300}) {
    const ops::DistillLoss a{.kl = 0.4, .reverse_kl = 0.3, .jsd = 0.3, .temperature = 200.0, .top_k = top_k};
    cases.push_back(close_case(a, {300, 2053, 20, 20}));
    cases.push_back(close_case(a, wide));
  }
  for (const auto& [tokens, vocab, top_k] :
       {std::tuple<std::int64_t, std::int64_t, std::int64_t>{300, 20011, 100},
        {50, 60013, 1025},
        {3, 2049, 2049}})
    cases.push_back({"teacher_top_k",
                     "equal logits",
                     Attributes::of(ops::KeepTopK{top_k, 1.0}),
                     {coarse({tokens, 3}, 1011), coarse({vocab, 3}, 1012),
                      random_integers({tokens}, -1, static_cast<std::int32_t>(vocab), 1013)},
                     {}});
  for (const char* op : {"squared_difference", "router_divergence"})
    cases.push_back({op,
                     "many tokens",
                     Attributes::of(ops::Weight{0.3}),
                     {random_tensor({5001, 129}, 1021), random_tensor({5001, 129}, 1022),
                      random_integers({5001}, -1, 2, 1023)},
                     {0},
                     {1}});
  cases.push_back({"squared_difference",
                   "many tokens of different weights",
                   Attributes::of(ops::Weight{0.3}),
                   {random_tensor({5001, 129}, 1024), random_tensor({5001, 129}, 1025),
                    random_integers({5001}, -1, 2, 1026), random_tensor({5001}, 1027)},
                   {0},
                   {1, 3}});
  cases.push_back({"relative_weights",
                   "long sequences",
                   Attributes::of(ops::Sequences{2500}),
                   {random_tensor({5000, 129}, 1028), random_tensor({5000}, 1029)},
                   {}});
  cases.push_back({"count_routing_flips",
                   "many tokens",
                   Attributes::of(NoAttributes{}),
                   {random_choice(5001, 6, 64, 1031), random_choice(5001, 6, 64, 1032),
                    random_integers({5001}, -1, 3, 1033)},
                   {}});
  return cases;
}

}  // namespace farskip::test
