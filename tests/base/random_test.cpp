// SPDX-License-Identifier: Apache-2.0
#include "farskip/base/random.h"

#include <cmath>
#include <set>
#include <vector>

#include "support/catch.h"

using namespace farskip;

TEST_CASE("Philox4x32-10 gives the published known answers") {
  using Block = std::array<std::uint32_t, 4>;
  CHECK(philox4x32_10({0, 0, 0, 0}, {0, 0}) == Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox4x32_10({~0U, ~0U, ~0U, ~0U}, {~0U, ~0U}) ==
        Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("Seed, stream and counter all matter, in both halves of their 64 bits") {
  std::set<std::uint64_t> seen;
  const std::uint64_t high = std::uint64_t{1} << 32;
  for (const std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{1}, high})
    for (const std::uint64_t stream : {std::uint64_t{0}, std::uint64_t{1}, high})
      for (const std::uint64_t counter : {std::uint64_t{0}, std::uint64_t{1}, high})
        seen.insert(uniform_u64(seed, stream, counter));
  CHECK(seen.size() == 27);
}

TEST_CASE("uniform_double fills the unit interval evenly") {
  const int draws = 100000;
  std::vector<int> bins(10);
  for (int i = 0; i < draws; ++i) {
    const double u = uniform_double(7, 3, static_cast<std::uint64_t>(i));
    REQUIRE(u >= 0.0);
    REQUIRE(u < 1.0);
    ++bins[static_cast<std::size_t>(u * 10)];
  }
  double chi_square = 0;
  for (const int count : bins) chi_square += std::pow(count - draws / 10, 2) / (draws / 10);
  CHECK(chi_square < 27.9);  // 9 degrees of freedom, p = 0.001
}

TEST_CASE("normal has the moments of the standard normal distribution") {
  const int draws = 200000;
  double sum = 0, square = 0, cube = 0, fourth = 0, neighbours = 0, last = 0;
  for (int i = 0; i < draws; ++i) {
    const double x = normal(1, 2, static_cast<std::uint64_t>(i));
    sum += x;
    square += x * x;
    cube += x * x * x;
    fourth += x * x * x * x;
    neighbours += x * last;
    last = x;
  }
  CHECK(std::abs(sum / draws) < 0.01);
  CHECK(std::abs(square / draws - 1) < 0.015);
  CHECK(std::abs(cube / draws) < 0.04);
  CHECK(std::abs(fourth / draws - 3) < 0.12);
  CHECK(std::abs(neighbours / draws) < 0.01);
}

TEST_CASE("fill_normal gives the same values however a tensor is cut") {
  std::vector<float> whole(101), parts(101);
  fill_normal(5, stream_id("layers.0.weight"), 0, 0.5, 0.02, whole);
  std::size_t begin = 0;
  for (const std::size_t length : {1U, 2U, 7U, 40U, 51U}) {
    fill_normal(5, stream_id("layers.0.weight"), begin, 0.5, 0.02, std::span(parts).subspan(begin, length));
    begin += length;
  }
  CHECK(whole == parts);
  for (std::size_t i = 0; i < whole.size(); ++i)
    REQUIRE(whole[i] == static_cast<float>(0.5 + 0.02 * normal(5, stream_id("layers.0.weight"), i)));
}

TEST_CASE("a run begins with the numbers that it always began with") {
  // Of an implementation in Python from the paper's description of the generator and Box and Muller's
  // formula.
  const std::array<double, 6> known{0.61248386199257121, 0.44562876960621467,  -0.62445952450588227,
                                    -0.4041041736123907, -0.34483040182777547, -0.67083362355081044};
  for (std::size_t i = 0; i < known.size(); ++i)
    CHECK(normal(1, stream_id("model.embed_tokens.weight"), 1000000 + i) ==
          Catch::Approx(known[i]).epsilon(1e-14));
  CHECK(uniform_u64(1, 2, 3) == 7367606758917324626U);
}

TEST_CASE("stream_id is FNV-1a") {
  CHECK(stream_id("") == 0xcbf29ce484222325U);
  CHECK(stream_id("a") == 0xaf63dc4c8601ec8cU);
  CHECK(stream_id("foobar") == 0x85944171f73967e8U);
}
