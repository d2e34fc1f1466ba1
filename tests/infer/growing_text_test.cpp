// SPDX-License-Identifier: Apache-2.0
#include "infer/growing_text.h"

#include <random>

#include "support/catch.h"
#include "support/support.h"

namespace farskip {
namespace {

Tokenizer small_tokenizer() {
  return Tokenizer::load(test::fixtures() / "tokenizer_smollm2" / "tokenizer.json");
}

struct Grown {
  std::string text;
  std::int64_t num_tokens = 0, num_settled = 0;
  bool stopped = false;
};
/// The text of tokens that come one by one, taken as soon as it is settled.
Grown grow(const Tokenizer& tokenizer, const std::vector<std::int32_t>& ids,
           const std::vector<std::string>& stop = {}) {
  GrowingText text(tokenizer, stop);
  Grown grown;
  for (const std::int32_t id : ids) {
    grown.stopped = text.add(id);
    ++grown.num_tokens;
    const std::string part = text.take_text();
    for (const std::string& s : stop) CHECK(part.find(s) == std::string::npos);
    grown.text += part;
    if (grown.stopped) break;
  }
  text.finish();
  grown.text += text.take_text();
  grown.num_settled = text.num_settled();
  return grown;
}

TEST_CASE("a text that comes token by token is the one that its tokens decode to, whatever these are") {
  const Tokenizer tokenizer = small_tokenizer();
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::int32_t> ids;  // some end within characters, some are special
    for (int i = 0; i < 30; ++i)
      ids.push_back(static_cast<std::int32_t>(
          random() % (i % 3 == 0 ? 300U : static_cast<unsigned>(tokenizer.vocab_size()))));
    const Grown grown = grow(tokenizer, ids, {"no such text in any of them"});
    CHECK(grown.text == tokenizer.decode(ids, true));
    CHECK(grown.num_settled == 30);
  }
}

TEST_CASE("a stop string is found across tokens, and neither it nor its beginning is ever given") {
  const Tokenizer tokenizer = small_tokenizer();
  const std::string whole = "One two three.\n\nQuestion: caf\xc3\xa9 \xe2\x82\xac 5, and more after it";
  std::vector<std::int32_t> letters;  // a token a byte
  for (const char c : whole) {
    for (std::int32_t id = 0; id < tokenizer.vocab_size(); ++id)
      if (tokenizer.token_bytes(id) == std::string(1, c)) {
        letters.push_back(id);
        break;
      }
  }
  REQUIRE(tokenizer.decode(letters) == whole);
  for (const auto& ids : {tokenizer.encode(whole), letters})
    for (const std::string stop : {"\n\nQuestion:", "two", "\xc3\xa9", "\xe2\x82\xac 5", ".\n", "O", "it"}) {
      CAPTURE(stop, ids.size());
      const Grown grown = grow(tokenizer, ids, {stop, "not there"});
      CHECK(grown.stopped);
      CHECK(grown.text == whole.substr(0, whole.find(stop)));
      CHECK(grown.num_settled < grown.num_tokens);
      // The tokens that are left end before the stop string, and the next one would not.
      const auto bytes = [&](std::int64_t count) {
        std::string text;
        for (std::int64_t i = 0; i < count; ++i)
          text += tokenizer.token_bytes(ids[static_cast<std::size_t>(i)]);
        return text.size();
      };
      CHECK(bytes(grown.num_settled) <= whole.find(stop));
      CHECK(bytes(grown.num_settled + 1) > whole.find(stop));
    }
  // The first of several, and the beginning of one that does not come.
  CHECK(grow(tokenizer, letters, {"three", "two"}).text == "One ");
  CHECK(grow(tokenizer, letters, {"more after it!"}).text == whole);
}

TEST_CASE("without a tokenizer there is no text, and every token is settled at once") {
  GrowingText text(std::nullopt, {});
  CHECK_FALSE(text.add(7));
  CHECK(text.num_settled() == 1);
  CHECK(text.take_text().empty());
}

}  // namespace
}  // namespace farskip
