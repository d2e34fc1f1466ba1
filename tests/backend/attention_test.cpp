// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "farskip/ops/ops.h"
#include "run_kernel.h"
#include "support/catch.h"

using namespace farskip;
using namespace farskip::test;

namespace {

struct Case {
  std::int64_t sequences, length, heads, kv_heads, d, dv;
  std::int64_t chunk = 0;
  bool documents = false;

  std::int64_t tokens() const { return sequences * length; }
};

std::vector<std::int32_t> random_documents(const Case& c, std::mt19937& random) {
  std::vector<std::int32_t> starts;
  for (std::int64_t b = 0; b < c.sequences; ++b) {
    std::int32_t start = 0;
    for (std::int64_t i = 0; i < c.length; ++i) {
      if (random() % 17 == 0 || i == c.length * 2 / 3) start = static_cast<std::int32_t>(i);
      starts.push_back(start);
    }
  }
  return starts;
}

struct Slow {
  Doubles out, lse, dq, dk, dv;
};

/// Attention and, with dout, its gradient, query by query.
Slow slow_attention(const Case& c, double scale, const std::vector<std::int32_t>& starts, const Doubles& q,
                    const Doubles& k, const Doubles& v, const Doubles& dout) {
  Slow s{Doubles(static_cast<std::size_t>(c.tokens() * c.heads * c.dv)),
         Doubles(static_cast<std::size_t>(c.tokens() * c.heads)), Doubles(q.size()), Doubles(k.size()),
         Doubles(v.size())};
  for (std::int64_t t = 0; t < c.tokens(); ++t)
    for (std::int64_t a = 0; a < c.heads; ++a) {
      const std::int64_t i = t % c.length, base = t - i, g = a / (c.heads / c.kv_heads);
      std::int64_t first = c.chunk > 0 ? i / c.chunk * c.chunk : 0;
      if (c.documents) first = std::max<std::int64_t>(first, starts[static_cast<std::size_t>(t)]);
      const double* query = q.data() + (t * c.heads + a) * c.d;
      const auto key = [&](std::int64_t j) { return ((base + j) * c.kv_heads + g) * c.d; };
      const auto value = [&](std::int64_t j) { return ((base + j) * c.kv_heads + g) * c.dv; };
      Doubles weight(static_cast<std::size_t>(i + 1));
      double sum = 0;
      for (std::int64_t j = first; j <= i; ++j) {
        double score = 0;
        for (std::int64_t x = 0; x < c.d; ++x) score += query[x] * k[static_cast<std::size_t>(key(j) + x)];
        sum += weight[static_cast<std::size_t>(j)] = std::exp(scale * score);
      }
      s.lse[static_cast<std::size_t>(t * c.heads + a)] = std::log(sum);
      double* out = s.out.data() + (t * c.heads + a) * c.dv;
      for (std::int64_t j = first; j <= i; ++j) {
        weight[static_cast<std::size_t>(j)] /= sum;
        for (std::int64_t x = 0; x < c.dv; ++x)
          out[x] += weight[static_cast<std::size_t>(j)] * v[static_cast<std::size_t>(value(j) + x)];
      }
      if (dout.empty()) continue;
      const double* d_out = dout.data() + (t * c.heads + a) * c.dv;
      double delta = 0;
      for (std::int64_t x = 0; x < c.dv; ++x) delta += d_out[x] * out[x];
      for (std::int64_t j = first; j <= i; ++j) {
        double dp = 0;
        for (std::int64_t x = 0; x < c.dv; ++x) {
          dp += d_out[x] * v[static_cast<std::size_t>(value(j) + x)];
          s.dv[static_cast<std::size_t>(value(j) + x)] += weight[static_cast<std::size_t>(j)] * d_out[x];
        }
        const double ds = weight[static_cast<std::size_t>(j)] * (dp - delta) * scale;
        for (std::int64_t x = 0; x < c.d; ++x) {
          s.dq[static_cast<std::size_t>((t * c.heads + a) * c.d + x)] +=
              ds * k[static_cast<std::size_t>(key(j) + x)];
          s.dk[static_cast<std::size_t>(key(j) + x)] += ds * query[x];
        }
      }
    }
  return s;
}

struct Inputs {
  HostTensor q, k, v, dout, documents;
  std::vector<std::int32_t> starts;
};

Inputs random_inputs(const Case& c) {
  std::mt19937 random(static_cast<unsigned>(c.length * 3 + c.heads));
  Inputs x{random_floats({c.tokens(), c.heads * c.d}, random),
           random_floats({c.tokens(), c.kv_heads * c.d}, random),
           random_floats({c.tokens(), c.kv_heads * c.dv}, random),
           random_floats({c.tokens(), c.heads * c.dv}, random),
           {},
           random_documents(c, random)};
  if (c.documents) x.documents = integers({c.tokens()}, x.starts);
  return x;
}

void check_attention(const Case& c) {
  CAPTURE(c.sequences, c.length, c.heads, c.kv_heads, c.d, c.dv, c.chunk, c.documents);
  const Inputs x = random_inputs(c);
  const double scale = 1.3 / std::sqrt(static_cast<double>(c.d));
  const Attributes attributes = Attributes::of(ops::Attention{c.length, c.heads, c.kv_heads, scale, c.chunk});
  const Slow slow =
      slow_attention(c, scale, x.starts, doubles(x.q), doubles(x.k), doubles(x.v), doubles(x.dout));
  const auto forward =
      run_kernel({"attention",
                  attributes,
                  {x.q, x.k, x.v, x.documents},
                  {{DType::f32, x.dout.shape(), {}}, {DType::f32, {c.tokens(), c.heads}, {}}}});
  CHECK(worst_error(forward[0], slow.out) < 1e-5);
  CHECK(worst_error(forward[1], slow.lse) < 1e-5);
  const auto backward = run_kernel(
      {"attention_grad",
       attributes,
       {x.dout, x.q, x.k, x.v, forward[0], forward[1], x.documents},
       {{DType::f32, x.q.shape(), {}}, {DType::f32, x.k.shape(), {}}, {DType::f32, x.v.shape(), {}}}});
  CHECK(worst_error(backward[0], slow.dq) < 2e-5);
  CHECK(worst_error(backward[1], slow.dk) < 2e-5);
  CHECK(worst_error(backward[2], slow.dv) < 2e-5);
}

}  // namespace

TEST_CASE("attention and its gradient agree with a loop over queries in double") {
  check_attention({1, 1, 1, 1, 1, 1});
  check_attention({3, 1, 2, 1, 5, 3});
  check_attention({2, 37, 3, 3, 12, 7});      // unequal sizes of keys and values
  check_attention({1, 130, 4, 2, 16, 16});    // just over a block, grouped heads
  check_attention({1, 389, 6, 1, 24, 40});    // all heads on one key-value head, in shares
  check_attention({20, 40, 4, 2, 8, 8});      // enough sequences that no shares are made
  check_attention({1, 300, 1, 1, 192, 128});  // the sizes of DeepSeek-V2
  check_attention({1, 20, 1, 1, 3, 600});     // a head wider than one tile
}

TEST_CASE("attention keeps to documents and chunks") {
  check_attention({2, 300, 2, 2, 12, 10, 0, true});
  check_attention({1, 300, 4, 2, 8, 8, 128});
  check_attention({1, 401, 2, 1, 8, 8, 7});
  check_attention({2, 270, 2, 1, 9, 5, 100, true});
  check_attention({1, 50, 1, 1, 4, 4, 1});  // every query sees itself only
}

TEST_CASE("the gradient of the slow attention is that of finite differences") {
  for (const Case& c : {Case{2, 5, 2, 1, 3, 2}, Case{1, 9, 2, 2, 2, 3, 4, true}}) {
    const Inputs x = random_inputs(c);
    const Doubles q = doubles(x.q), k = doubles(x.k), v = doubles(x.v), dout = doubles(x.dout);
    const auto loss = [&](const Doubles& a, const Doubles& b, const Doubles& e) {
      const Slow s = slow_attention(c, 0.7, x.starts, a, b, e, {});
      double sum = 0;
      for (std::size_t i = 0; i < dout.size(); ++i) sum += dout[i] * s.out[i];
      return sum;
    };
    const Slow slow = slow_attention(c, 0.7, x.starts, q, k, v, dout);
    const auto check = [](const Doubles& a, const Doubles& b) {
      for (std::size_t i = 0; i < a.size(); ++i) REQUIRE(std::abs(a[i] - b[i]) < 1e-6);
    };
    check(slow.dq, finite_differences([&](const Doubles& y) { return loss(y, k, v); }, q));
    check(slow.dk, finite_differences([&](const Doubles& y) { return loss(q, y, v); }, k));
    check(slow.dv, finite_differences([&](const Doubles& y) { return loss(q, k, y); }, v));
  }
}

TEST_CASE("attention survives scores far beyond the range of exp") {
  const Case c{1, 200, 1, 1, 2, 1};
  Inputs x = random_inputs(c);
  for (float& value : x.q.values<float>()) value *= 300.0F;
  const auto out = run_kernel({"attention",
                               Attributes::of(ops::Attention{c.length, 1, 1, 1.0, 0}),
                               {x.q, x.k, x.v, {}},
                               {{DType::f32, {200, 1}, {}}, {DType::f32, {200, 1}, {}}}});
  for (const HostTensor& tensor : out)
    for (const float value : tensor.values<float>()) CHECK(std::isfinite(value));
}

TEST_CASE("mla_key_value puts heads together and its gradient takes them apart") {
  const std::int64_t tokens = 37, heads = 3, nope = 5, rope = 4, v_dim = 6;
  std::mt19937 random(2);
  const HostTensor kv = random_floats({tokens, heads * (nope + v_dim)}, random),
                   k_rope = random_floats({tokens, rope}, random);
  const HostTensor dk = random_floats({tokens, heads * (nope + rope)}, random),
                   dv = random_floats({tokens, heads * v_dim}, random);
  const Attributes attributes = Attributes::of(ops::MlaKeyValue{heads, nope, rope, v_dim});
  const auto out = run_kernel({"mla_key_value",
                               attributes,
                               {kv, k_rope},
                               {{DType::f32, dk.shape(), {}}, {DType::f32, dv.shape(), {}}}});
  const auto grad = run_kernel({"mla_key_value_grad",
                                attributes,
                                {dk, dv},
                                {{DType::f32, kv.shape(), {}}, {DType::f32, k_rope.shape(), {}}}});
  const auto at = [](const HostTensor& tensor, std::int64_t i) {
    return tensor.values<float>()[static_cast<std::size_t>(i)];
  };
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t a = 0; a < heads; ++a) {
      const std::int64_t kv_at = (t * heads + a) * (nope + v_dim), k_at = (t * heads + a) * (nope + rope);
      for (std::int64_t i = 0; i < nope; ++i) {
        CHECK(at(out[0], k_at + i) == at(kv, kv_at + i));
        CHECK(at(grad[0], kv_at + i) == at(dk, k_at + i));
      }
      for (std::int64_t i = 0; i < v_dim; ++i) {
        CHECK(at(out[1], (t * heads + a) * v_dim + i) == at(kv, kv_at + nope + i));
        CHECK(at(grad[0], kv_at + nope + i) == at(dv, (t * heads + a) * v_dim + i));
      }
      for (std::int64_t i = 0; i < rope; ++i) CHECK(at(out[0], k_at + nope + i) == at(k_rope, t * rope + i));
    }
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t i = 0; i < rope; ++i) {
      float sum = 0.0F;
      for (std::int64_t a = 0; a < heads; ++a) sum += at(dk, (t * heads + a) * (nope + rope) + nope + i);
      CHECK(at(grad[1], t * rope + i) == sum);
    }
}
