// SPDX-License-Identifier: Apache-2.0
#include "data/bpe_trainer.h"

#include <map>

#include "data/bpe.h"
#include "farskip/base/error.h"
#include "farskip/base/random.h"
#include "support/catch.h"
#include "support/json.h"
#include "support/support.h"

using namespace farskip;
using nlohmann::json;

namespace {

using Merges = std::vector<std::vector<std::string>>;

/// Words of a few letters, so that ties, repeats and overlaps abound.
std::string random_text(std::uint64_t seed, int num_words) {
  std::string text;
  std::uint64_t draw = 0;
  for (int w = 0; w < num_words; ++w) {
    const std::uint64_t length = 1 + uniform_u64(seed, 1, draw++) % 7;
    for (std::uint64_t i = 0; i < length; ++i)
      text += static_cast<char>('a' + uniform_u64(seed, 2, draw++) % 3);
    text += ' ';
  }
  return text;
}

/// Recounts every pair of every word before every merge.
Merges merges_by_recounting(const std::string& text, const Tokenizer& ids, std::size_t num_merges,
                            int min_frequency) {
  std::vector<std::vector<std::string>> words;
  for (std::size_t i = 0, begin = 0; i <= text.size(); ++i)
    if (i == text.size() || (i > begin && text[i] == ' ')) {
      words.emplace_back();
      for (const char c : text.substr(begin, i - begin))
        words.back().push_back(to_byte_alphabet(std::string(1, c)));
      begin = i;
    }
  Merges merges;
  while (merges.size() < num_merges) {
    std::map<std::pair<int, int>, int> counts;
    for (const auto& word : words)
      for (std::size_t i = 0; i + 1 < word.size(); ++i)
        ++counts[{ids.token_id(word[i]).value(), ids.token_id(word[i + 1]).value()}];
    std::pair<int, int> best;
    int best_count = 0;
    for (const auto& [pair, count] : counts)
      if (count > best_count) best = pair, best_count = count;
    if (best_count < min_frequency) break;
    const std::string left = to_byte_alphabet(ids.token_bytes(best.first));
    const std::string right = to_byte_alphabet(ids.token_bytes(best.second));
    merges.push_back({left, right});
    for (auto& word : words)
      for (std::size_t i = 0; i + 1 < word.size(); ++i)
        if (word[i] == left && word[i + 1] == right) {
          word[i] += right;
          word.erase(word.begin() + static_cast<std::ptrdiff_t>(i) + 1);
        }
  }
  return merges;
}

}  // namespace

TEST_CASE("Incremental pair counts give the merges that recounting from scratch gives") {
  const auto seed = static_cast<std::uint64_t>(GENERATE(range(0, 12)));
  const std::string text = random_text(seed, 120);
  BpeTrainer trainer;
  trainer.add_text(text);
  BpeTrainerOptions options;
  options.vocab_size = 330;
  const Tokenizer tokenizer = trainer.train(options);
  const auto learned = test::parse_json(tokenizer.json())["model"]["merges"].get<Merges>();
  CHECK(learned == merges_by_recounting(text, tokenizer, learned.size(), 2));
  CHECK(learned.size() >= 20);
}

TEST_CASE("A trained vocabulary has the size asked for, encodes, and survives saving") {
  const test::TemporaryFolder folder;
  const std::string text = random_text(99, 3000) + " def f(x): return x\n\n\u00e9\u65e5";
  BpeTrainer trainer;
  trainer.add_text(text);
  BpeTrainerOptions options;
  options.vocab_size = 300;
  options.special_tokens = {"<|endoftext|>", "<|pad|>"};
  const Tokenizer tokenizer = trainer.train(options);
  CHECK(tokenizer.vocab_size() == 300);
  CHECK(tokenizer.eos() == 0);
  CHECK(tokenizer.token_id("<|pad|>") == 1);
  const auto ids = tokenizer.encode(text);
  CHECK(ids.size() < text.size() / 2);
  CHECK(tokenizer.decode(ids) == text);
  write_text_file(folder / "t.json", tokenizer.json());
  CHECK(Tokenizer::load(folder / "t.json").encode(text) == ids);
}

TEST_CASE("The vocabulary depends on the texts and not on their order") {
  const std::string a = random_text(1, 500), b = random_text(2, 500), c = "zz yy";
  BpeTrainer forward, backward;
  for (const std::string& text : {a, b, c}) forward.add_text(text);
  for (const std::string& text : {c, b, a}) backward.add_text(text);
  CHECK(forward.train({}).json() == backward.train({}).json());
}

TEST_CASE("The trainer stops when the text has no more pairs, and refuses impossible sizes") {
  BpeTrainer trainer;
  trainer.add_text("ab ab");
  CHECK(trainer.train({}).vocab_size() == 257 + 1);  // "ab"; " ab" stands once only
  BpeTrainerOptions options;
  options.vocab_size = 256;
  CHECK_THROWS_WITH(trainer.train(options), ContainsSubstring("at least 257"));
  options.special_tokens = {"<a>", "<a>"};
  CHECK_THROWS_AS(trainer.train(options), UsageError);
  CHECK_THROWS_AS(trainer.add_text("\xff"), DataError);
}
