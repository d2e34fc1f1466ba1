// SPDX-License-Identifier: Apache-2.0
// Losses of distillation.
#include <cmath>

#include "op_case.h"
#include "ops/distill_ops.h"

namespace farskip::test {
namespace {

struct Sizes {
  std::int64_t vocab = 23, hidden = 7, teacher_hidden = 5;
  double stddev = 0.7;
};

OpCase loss_case(const char* name, const ops::DistillLoss& a, const HostTensor& targets, Sizes s = {}) {
  const std::int64_t tokens = targets.num_elements();
  OpCase c{"distill_loss",
           name,
           Attributes::of(a),
           {random_tensor({tokens, s.hidden}, 401, s.stddev), random_tensor({s.vocab, s.hidden}, 402),
            random_tensor({tokens, s.teacher_hidden}, 403, s.stddev),
            random_tensor({s.vocab, s.teacher_hidden}, 404), targets},
           {0},
           {2, 3}};
  c.tolerance = 1e-5;
  c.gradient_tolerance = 3e-5;
  return c;
}

/// What a teacher could have left: random log-probabilities that sum to one.
OpCase cached_case(const char* name, const ops::DistillLoss& a, const HostTensor& targets,
                   std::int64_t vocab) {
  const std::int64_t tokens = targets.num_elements(), k = a.top_k;
  HostTensor log_probs = random_tensor({tokens, k}, 413), tail(DType::f32, {tokens});
  for (std::int64_t t = 0; t < tokens; ++t) {
    double sum = vocab > k ? 1.0 : 0.0;
    const auto row =
        log_probs.values<float>().subspan(static_cast<std::size_t>(t * k), static_cast<std::size_t>(k));
    for (const float x : row) sum += std::exp(static_cast<double>(x));
    for (float& x : row) x -= static_cast<float>(std::log(sum));
    tail.values<float>()[static_cast<std::size_t>(t)] =
        vocab > k ? static_cast<float>(-std::log(sum)) : -INFINITY;
  }
  OpCase c{"cached_distill_loss",
           name,
           Attributes::of(a),
           {random_tensor({tokens, 6}, 411, 0.6), random_tensor({vocab, 6}, 412),
            random_choice(tokens, k, vocab, 414), log_probs, tail, random_tensor({tokens}, 415, 0.5, -2.0),
            targets},
           {0},
           {3, 4, 5}};
  c.tolerance = 1e-5;
  c.gradient_tolerance = 3e-5;
  return c;
}

/// Multiples of 1/8: products and sums of these are exact in f32 and in bf16, so that the logits are.
HostTensor coarse(Shape shape, std::uint64_t seed) {
  HostTensor x = random_tensor(std::move(shape), seed);
  for (float& value : x.values<float>()) value = std::round(value * 8.0F) / 8.0F;
  return x;
}

/// A student that is close to its teacher: most of its head is the teacher's.
OpCase close_case(const ops::DistillLoss& a, const HostTensor& targets, const Sizes& s) {
  const HostTensor h = coarse({targets.num_elements(), s.hidden}, 451), w = coarse({s.vocab, s.hidden}, 452);
  HostTensor wt = coarse({s.vocab, s.hidden}, 452);
  for (std::size_t i = 0; i < wt.values<float>().size(); i += 5) wt.values<float>()[i] += 0.03125F;
  OpCase c{"distill_loss", "a student close to its teacher", Attributes::of(a), {h, w, h, wt, targets}, {0},
           {2, 3}};
  c.tolerance = 1e-5;
  c.gradient_tolerance = 3e-5;
  return c;
}

/// The same with what could have been kept of that teacher: log-probabilities of its first tokens and the
/// rest.
OpCase close_cached_case(const ops::DistillLoss& a, const HostTensor& targets, const Sizes& s) {
  OpCase c = close_case(a, targets, s);
  const auto h = c.inputs[2].values<float>(), wt = c.inputs[3].values<float>();
  const std::int64_t tokens = targets.num_elements();
  HostTensor indices(DType::i32, {tokens, a.top_k}), log_probs(DType::f32, {tokens, a.top_k});
  HostTensor tail(DType::f32, {tokens});
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::vector<double> masses(static_cast<std::size_t>(s.vocab), 0.0);
    double sum = 0.0, rest = 0.0;
    for (std::int64_t v = 0; v < s.vocab; ++v) {
      double logit = 0.0;
      for (std::int64_t i = 0; i < s.hidden; ++i)
        logit += static_cast<double>(h[static_cast<std::size_t>(t * s.hidden + i)]) *
                 static_cast<double>(wt[static_cast<std::size_t>(v * s.hidden + i)]);
      sum += masses[static_cast<std::size_t>(v)] = std::exp(logit / a.temperature);
      if (v >= a.top_k) rest += masses[static_cast<std::size_t>(v)];
    }
    for (std::int64_t k = 0; k < a.top_k; ++k) {
      const auto to = static_cast<std::size_t>(t * a.top_k + k);
      indices.values<std::int32_t>()[to] = static_cast<std::int32_t>(k);
      log_probs.values<float>()[to] = static_cast<float>(std::log(masses[static_cast<std::size_t>(k)] / sum));
    }
    tail.values<float>()[static_cast<std::size_t>(t)] = static_cast<float>(std::log(rest / sum));
  }
  c.op = "cached_distill_loss";
  c.inputs = {c.inputs[0], c.inputs[1], indices, log_probs, tail, random_tensor({tokens}, 453, 0.5, -2.0),
              targets};
  c.constants = {3, 4, 5};
  c.gradient_tolerance = 3e-4;  // log(q/p) is 1e-5, and what was kept is known to 1e-7
  return c;
}

/// What is left of the sums is small, and the square of the temperature multiplies their rounding errors.
void add_temperatures(std::vector<OpCase>& cases, const HostTensor& targets) {
  for (ops::DistillLoss a : {ops::DistillLoss{},
                             {.kl = 0, .reverse_kl = 1},
                             {.kl = 0, .jsd = 1},
                             {.kl = 0.4, .reverse_kl = 0.3, .jsd = 0.2, .sft = 0.1}})
    for (const double temperature : {8.0, 1000.0}) {
      a.temperature = temperature;
      for (const std::int64_t top_k : {0, 5}) {
        a.top_k = top_k;
        cases.push_back(close_case(a, targets, {}));
        cases.push_back(loss_case("a student far from its teacher", a, targets));
      }
      cases.push_back(close_cached_case(a, targets, {}));
    }
}

void add_losses(std::vector<OpCase>& cases) {
  const HostTensor targets = integer_tensor({7}, {3, -1, 22, 0, -1, 7, 3});
  const std::vector<std::pair<const char*, ops::DistillLoss>> losses{
      {"KL", {}},
      {"reverse KL", {.kl = 0, .reverse_kl = 1}},
      {"Jensen-Shannon", {.kl = 0, .jsd = 1}},
      {"cross-entropy", {.kl = 0, .sft = 1}},
      {"a mixture", {.kl = 0.4, .reverse_kl = 0.3, .jsd = 0.2, .sft = 0.1}},
      {"KL at a temperature", {.temperature = 2.5}},
      {"a mixture at a temperature",
       {.kl = 0.4, .reverse_kl = 0.3, .jsd = 0.2, .sft = 0.5, .temperature = 0.7}}};
  for (const auto& [name, a] : losses) {
    cases.push_back(loss_case(name, a, targets));
    for (const std::int64_t top_k : {1, 5, 23}) {
      ops::DistillLoss some = a;
      some.top_k = top_k;
      cases.push_back(loss_case(name, some, targets));
      cases.push_back(cached_case(name, some, targets, 23));
    }
  }
  add_temperatures(cases, targets);
  const HostTensor many = random_integers({301}, -1, 1031, 405);
  cases.push_back(loss_case("blocks of tokens", {}, many, {1031, 16, 9, 0.3}));
  cases.push_back(
      loss_case("blocks of tokens", {.jsd = 0.5, .sft = 0.5, .top_k = 40}, many, {1031, 16, 9, 0.3}));
  cases.push_back(loss_case("more than one piece of vocabulary", {.kl = 1, .reverse_kl = 1},
                            random_integers({3}, 0, 9001, 406), {9001, 3, 3, 0.7}));
  OpCase large = loss_case("large logits", {.kl = 0.5, .reverse_kl = 0.5}, targets, {23, 7, 5, 8.0});
  large.tolerance = 1e-4;
  large.gradient_tolerance = 1e-3;
  cases.push_back(large);
  cases.push_back(loss_case("no token counted", {.sft = 1}, integer_tensor({3}, {-1, -1, -1})));
  cases.push_back(loss_case("one token", {}, integer_tensor({1}, {4})));
}

/// A part of a vocabulary of s.vocab ids that is cut over `parts`, and what all parts could have said.
void add_part_cases(std::vector<OpCase>& cases, const char* name, const ops::DistillLoss& a,
                    std::int64_t parts, const HostTensor& targets, const Sizes& s) {
  const std::int64_t tokens = targets.num_elements(), rows = (s.vocab + parts - 1) / parts;
  for (const std::int64_t part : {std::int64_t{0}, parts - 1}) {
    OpCase c = loss_case(name, a, targets, {rows, s.hidden, s.teacher_hidden, s.stddev});
    c.op = "distill_stats";
    c.attributes = Attributes::of(ops::DistillPart{a, {part * rows, s.vocab}});
    cases.push_back(std::move(c));
  }
  OpCase joint{"joint_distill_loss",
               name,
               Attributes::of(ops::JointDistill{a, {rows}}),
               {random_tensor({parts * tokens, ops::kNumDistillSums}, 461, 0.7),
                random_tensor({parts * tokens, ops::kNumDistillFixed}, 462, 0.7), targets},
               {0},
               {1}};
  joint.tolerance = 1e-5;
  joint.gradient_tolerance = 3e-5;
  cases.push_back(std::move(joint));
}

void add_parts(std::vector<OpCase>& cases) {
  const HostTensor targets = integer_tensor({7}, {3, -1, 22, 0, -1, 7, 13});
  for (const auto& [name, a] : std::vector<std::pair<const char*, ops::DistillLoss>>{
           {"KL of a part", {}},
           {"reverse KL of a part", {.kl = 0, .reverse_kl = 1}},
           {"KL of a part at a temperature", {.temperature = 2.5}},
           {"a mixture of a part at a temperature",
            {.kl = 0.4, .reverse_kl = 0.3, .sft = 0.5, .temperature = 0.7}}})
    for (const std::int64_t parts : {1, 2, 4}) add_part_cases(cases, name, a, parts, targets, {});
  add_part_cases(cases, "blocks of tokens of a part", {.reverse_kl = 0.5, .sft = 0.5}, 2,
                 random_integers({301}, -1, 2061, 405), {2061, 16, 9, 0.3});
  add_part_cases(cases, "no token of a part counted", {.sft = 1}, 2, integer_tensor({3}, {-1, -1, -1}), {});
  for (const double temperature : {1.0, 1000.0}) {
    OpCase close = close_case({.reverse_kl = 0.5, .temperature = temperature}, targets, {});
    close.op = "distill_stats";
    close.attributes =
        Attributes::of(ops::DistillPart{{.reverse_kl = 0.5, .temperature = temperature}, {23, 40}});
    cases.push_back(std::move(close));
  }
}

void add_kept(std::vector<OpCase>& cases) {
  for (const std::int64_t top_k : {1, 4, 22}) {
    OpCase c{"teacher_top_k",
             "some tokens not counted",
             Attributes::of(ops::KeepTopK{top_k, 1.5}),
             {random_tensor({9, 6}, 421), random_tensor({23, 6}, 422), random_integers({9}, -1, 23, 423)},
             {}};
    c.tolerance = 1e-5;
    cases.push_back(c);
  }
}

void add_comparisons(std::vector<OpCase>& cases) {
  for (const char* op : {"squared_difference", "router_divergence"})
    for (const auto& [tokens, width] :
         {std::pair<std::int64_t, std::int64_t>{5, 7}, {1, 2}, {301, 64}, {70, 33}}) {
      OpCase c{op,
               "some tokens not counted",
               Attributes::of(ops::Weight{0.3}),
               {random_tensor({tokens, width}, 431), random_tensor({tokens, width}, 432),
                random_integers({tokens}, tokens == 1 ? 0 : -1, 2, 433)},
               {0},
               {1}};
      c.tolerance = 1e-5;
      c.gradient_tolerance = 3e-5;
      cases.push_back(c);
    }
  for (const std::int64_t tokens : {1, 6, 301}) {
    OpCase c{"squared_difference",
             "tokens of different weights",
             Attributes::of(ops::Weight{0.3}),
             {random_tensor({tokens, 33}, 434), random_tensor({tokens, 33}, 435),
              random_integers({tokens}, tokens == 1 ? 0 : -1, 2, 436), random_tensor({tokens}, 437)},
             {0},
             {1, 3}};
    c.tolerance = 1e-5;
    c.gradient_tolerance = 3e-5;
    cases.push_back(c);
  }
  for (const auto& [tokens, width, length] : {std::tuple<std::int64_t, std::int64_t, std::int64_t>{12, 7, 4},
                                              {5, 3, 1},
                                              {600, 33, 300},
                                              {0, 5, 3}}) {
    std::vector<HostTensor> in{random_tensor({tokens, width}, 438)};
    OpCase c{"relative_weights", "sequences", Attributes::of(ops::Sequences{length}), in, {}};
    c.tolerance = 1e-5;
    cases.push_back(c);
    c.inputs.push_back(random_tensor({tokens}, 439));
    c.name = "sequences, with factors";
    cases.push_back(c);
  }
  cases.push_back(
      {"count_routing_flips",
       "some tokens not counted",
       Attributes::of(NoAttributes{}),
       {random_choice(40, 3, 7, 441), random_choice(40, 3, 7, 442), random_integers({40}, -1, 3, 443)},
       {}});
}

}  // namespace

std::vector<OpCase> distill_cases() {
  std::vector<OpCase> cases;
  add_losses(cases);
  add_parts(cases);
  add_kept(cases);
  add_comparisons(cases);
  return cases;
}

}  // namespace farskip::test
