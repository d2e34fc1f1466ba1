// SPDX-License-Identifier: Apache-2.0
#include "data/ngram.h"

#include <cmath>

#include "farskip/base/error.h"
#include "farskip/base/random.h"
#include "support/catch.h"
#include "support/support.h"

using namespace farskip;

namespace {

using Ids = std::vector<std::int32_t>;

TokenFile make_file(const test::TemporaryFolder& folder, const Ids& tokens) {
  TokenFileWriter writer((folder / "t").string(), TokenType::u16);
  writer.add_document(tokens);
  writer.commit();
  return TokenFile((folder / "t").string());
}

/// A Markov chain over `states` tokens in which each state is followed by state + 1 with probability
/// `order`, otherwise by any state.
Ids chain(int states, double order, int length) {
  Ids tokens{0};
  for (std::uint64_t i = 0; tokens.size() < static_cast<std::size_t>(length); ++i) {
    const bool follow = uniform_double(1, 1, i) < order;
    const auto any = static_cast<std::int32_t>(uniform_u64(1, 2, i) % static_cast<std::uint64_t>(states));
    tokens.push_back(follow ? (tokens.back() + 1) % states : any);
  }
  return tokens;
}

}  // namespace

TEST_CASE("Probabilities are positive and sum to one after every token, seen or not") {
  const test::TemporaryFolder folder;
  const TokenFile file = make_file(folder, chain(20, 0.6, GENERATE(3, 40, 5000)));
  const std::int32_t vocabulary = 25;  // 20 to 24 never occur
  const NgramBaseline model(file, 0, file.num_tokens(), vocabulary);
  double unigram = 0;
  for (std::int32_t w = 0; w < vocabulary; ++w) {
    CHECK(model.unigram_probability(w) > 0);
    unigram += model.unigram_probability(w);
  }
  CHECK(unigram == Catch::Approx(1).epsilon(1e-12));
  for (std::int32_t v = 0; v < vocabulary; ++v) {
    double sum = 0;
    for (std::int32_t w = 0; w < vocabulary; ++w) {
      REQUIRE(model.bigram_probability(v, w) > 0);
      sum += model.bigram_probability(v, w);
    }
    CHECK(sum == Catch::Approx(1).epsilon(1e-12));
  }
}

TEST_CASE("On a Markov chain the bigram comes near the chain's entropy and the unigram near uniform") {
  const test::TemporaryFolder folder;
  const int states = 50;
  const double order = 0.7;
  const TokenFile file = make_file(folder, chain(states, order, 400000));
  const NgramBaseline model(file, 0, 300000, states);
  const NgramLoss loss = model.evaluate(file, 300000, 100000);
  const double other = (1 - order) / states, next = order + other;
  const double entropy = -next * std::log(next) - (states - 1) * other * std::log(other);
  CHECK(loss.num_predicted == 99999);
  CHECK(loss.bigram > entropy - 0.02);
  CHECK(loss.bigram < entropy + 0.02);
  CHECK(loss.unigram == Catch::Approx(std::log(states)).margin(0.005));
}

TEST_CASE("The bigram has the probabilities of the formula, by hand") {
  const test::TemporaryFolder folder;
  // Bigrams 01 12 20 01 13: four kinds, 01 twice; n1 = 3, n2 = 1, n3 = n4 = 0, so Y = 3/5,
  // D1 = 1 - 2 Y n2/n1 = 0.6, and D2 = 2 - 3 Y n3/n2 = 2 is out of bounds and becomes 0.75.
  const TokenFile file = make_file(folder, {0, 1, 2, 0, 1, 3});
  const NgramBaseline model(file, 0, 6, 5);
  // Every token but 4 has one predecessor: n1 = 4, Y = 1, D1 = 1 is out of bounds and becomes 0.75.
  const double seen = (1 - 0.75 + 4 * 0.75 / 5) / 4, unseen = 4 * 0.75 / 5 / 4;
  CHECK(model.bigram_probability(0, 1) == Catch::Approx((2 - 0.75) / 2 + 0.75 / 2 * seen));
  CHECK(model.bigram_probability(1, 2) == Catch::Approx((1 - 0.6) / 2 + 1.2 / 2 * seen));
  CHECK(model.bigram_probability(1, 0) == Catch::Approx(1.2 / 2 * seen));
  CHECK(model.bigram_probability(1, 4) == Catch::Approx(1.2 / 2 * unseen));
  CHECK(model.bigram_probability(3, 4) == Catch::Approx(unseen));  // 3 is never followed by anything
  const NgramLoss loss = model.evaluate(file, 1, 3);               // 12 20
  CHECK(loss.bigram ==
        Catch::Approx(-(std::log(model.bigram_probability(1, 2)) + std::log(model.bigram_probability(2, 0))) /
                      2));
  CHECK(
      loss.unigram ==
      Catch::Approx(-(std::log(model.unigram_probability(2)) + std::log(model.unigram_probability(0))) / 2));
}

TEST_CASE("Ranges longer than the read buffer count every pair once") {
  const test::TemporaryFolder folder;
  Ids tokens((std::size_t{1} << 20) + 2);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = i % 2 == 0 ? 0 : 1;
  const TokenFile file = make_file(folder, tokens);
  CHECK(NgramBaseline(file, 0, tokens.size(), 2).evaluate(file, 0, tokens.size()).num_predicted ==
        tokens.size() - 1);
}

TEST_CASE("Ranges without a pair and ids outside the vocabulary are refused") {
  const test::TemporaryFolder folder;
  const TokenFile file = make_file(folder, {0, 1, 7});
  CHECK_THROWS_AS(NgramBaseline(file, 0, 1, 8), UsageError);
  CHECK_THROWS_AS(NgramBaseline(file, 2, 2, 8), UsageError);
  CHECK_THROWS_WITH(NgramBaseline(file, 0, 3, 7), ContainsSubstring("id 7") && ContainsSubstring("[0, 7)"));
  const NgramBaseline model(file, 0, 2, 7);
  CHECK_THROWS_AS(model.evaluate(file, 1, 2), DataError);
}
