// SPDX-License-Identifier: Apache-2.0
#include "fold/fold_text.h"

#include <unistd.h>

#include <set>

#include "data/token_file.h"
#include "support/catch.h"
#include "support/support.h"

namespace farskip {
namespace {

const Logger kQuiet(LogLevel::off);

ModelConfig model_of(std::int64_t vocab_size) {
  ModelConfig model;
  model.vocab_size = vocab_size;
  model.max_positions = 64;
  return model;
}

/// Token files of 0, 1, 2, …
std::string write_counting(const test::TemporaryFolder& folder, std::int32_t count) {
  TokenFileWriter writer((folder / "tokens").string(), TokenType::u16);
  std::vector<std::int32_t> ids;
  for (std::int32_t i = 0; i < count; ++i) ids.push_back(i);
  writer.add_document(ids);
  writer.commit();
  return writer.prefix();
}

TEST_CASE("a fold's sequences are spread over the text, and one of 16 is held out, behind the others") {
  const test::TemporaryFolder folder;
  const std::string tokens = write_counting(folder, 64 * 8 + 1);
  const FoldText text = read_fold_text({tokens, 32, 8}, model_of(1000), std::nullopt, kQuiet);
  CHECK(text.fitted == 30);
  CHECK(text.held_out == 2);
  CHECK(text.tokens[8] == 16);            // every other sequence of the 64
  CHECK(text.tokens[30 * 8] == 15 * 16);  // the first that is held out
  for (std::size_t i = 0; i < text.tokens.size(); ++i) CHECK(text.targets[i] == text.tokens[i] + 1);
}

TEST_CASE("a fold takes the sequences that are there, and at most the model's context of tokens") {
  const test::TemporaryFolder folder;
  const std::string tokens = write_counting(folder, 130);
  const FoldText text = read_fold_text({tokens, 512, 0}, model_of(1000), std::nullopt, kQuiet);
  CHECK(text.sequence_length == 64);
  CHECK(text.fitted == 1);
  CHECK(text.held_out == 1);
  CHECK(text.tokens[64] == 64);
}

TEST_CASE("no sequence is both fitted and held out, and those computed together divide both numbers") {
  const test::TemporaryFolder folder;
  const std::string tokens = write_counting(folder, 500 * 8 + 1);
  for (const std::int64_t asked : {2, 5, 15, 16, 17, 120, 499, 500}) {
    INFO(fmt::format("{} sequences", asked));
    const FoldText text = read_fold_text({tokens, asked, 8}, model_of(5000), std::nullopt, kQuiet);
    CHECK(text.held_out >= 1);
    CHECK(text.fitted % text.at_once == 0);
    CHECK(text.held_out % text.at_once == 0);
    CHECK(text.at_once >= std::min<std::int64_t>(asked / 16, 31));
    CHECK(text.sequences() > asked - 2 * text.at_once);
    CHECK(static_cast<std::int64_t>(text.tokens.size()) == text.sequences() * 8);
    const std::set<std::int32_t> distinct(text.tokens.begin(), text.tokens.end());
    CHECK(distinct.size() == text.tokens.size());  // the source counts, so tokens tell sequences apart
  }
}

TEST_CASE("ranks get as many sequences each, no sequence twice, and one held out each where there are two") {
  const test::TemporaryFolder folder;
  const std::string tokens = write_counting(folder, 500 * 8 + 1);
  for (const int ranks : {1, 2, 3, 8})
    for (const std::int64_t asked : {8, 15, 16, 17, 100, 500}) {
      INFO(fmt::format("{} sequences, {} ranks", asked, ranks));
      std::set<std::int32_t> distinct;
      std::int64_t count = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        FoldTextOptions options{tokens, asked, 8};
        options.rank = rank;
        options.ranks = ranks;
        const FoldText text = read_fold_text(options, model_of(5000), std::nullopt, kQuiet);
        CHECK(text.fitted >= 1);
        CHECK(text.fitted % text.at_once == 0);
        CHECK(text.held_out % text.at_once == 0);
        CHECK((text.held_out > 0) == (asked >= 2 * ranks));
        if (rank > 0) CHECK(text.sequences() == count);
        count = text.sequences();
        distinct.insert(text.tokens.begin(), text.tokens.end());
      }
      CHECK(static_cast<std::int64_t>(distinct.size()) == ranks * count * 8);
      CHECK(ranks * count >= asked / 2);
    }
  FoldTextOptions many{tokens, 4, 8};
  many.ranks = 5;
  CHECK_THROWS_WITH(
      read_fold_text(many, model_of(5000), std::nullopt, kQuiet),
      ContainsSubstring("4 sequences of 8 tokens for 5 ranks, each of which takes one at least; give "
                        "more sequences, or fewer ranks"));
  CHECK_THROWS_AS(read_fold_text(many, model_of(5000), std::nullopt, kQuiet), DataError);
}

TEST_CASE("a fold reads text with the model's tokenizer, and leaves no file behind") {
  const test::TemporaryFolder folder;
  fs::create_directory(folder / "pages");
  std::string page;
  for (int i = 0; i < 200; ++i) page += "the quick brown fox ";
  write_text_file(folder / "pages" / "a.txt", page);
  write_text_file(folder / "pages" / "b.md", page);
  const Tokenizer tokenizer = Tokenizer::load(test::fixtures() / "tokenizer_gpt2" / "tokenizer.json");
  const FoldText text = read_fold_text({(folder / "pages").string(), 4, 16}, model_of(tokenizer.vocab_size()),
                                       tokenizer, kQuiet);
  std::vector<std::int32_t> expected = tokenizer.encode(page);
  expected.resize(16);
  CHECK(std::equal(expected.begin(), expected.end(), text.tokens.begin()));
  for (const auto& entry : fs::directory_iterator(fs::temp_directory_path()))
    CHECK_THAT(entry.path().filename().string(),
               !ContainsSubstring(fmt::format("farskip-fold.tmp-{}", ::getpid())));
}

TEST_CASE("a fold refuses what it cannot read, by name") {
  const test::TemporaryFolder folder;
  write_text_file(folder / "empty.txt", "");
  write_text_file(folder / "short.txt", "one");
  const std::string tokens = write_counting(folder, 100), none = (folder / "none").string();
  const Tokenizer tokenizer = Tokenizer::load(test::fixtures() / "tokenizer_gpt2" / "tokenizer.json");
  const ModelConfig model = model_of(tokenizer.vocab_size());
  const auto read = [&](const std::string& source, std::int64_t length, const ModelConfig& of,
                        const std::optional<Tokenizer>& with) {
    return read_fold_text({source, 4, length}, of, with, kQuiet);
  };
  CHECK_THROWS_WITH(read(tokens, 65, model, {}),
                    ContainsSubstring("--sequence-length 65: the model's max_position"));
  CHECK_THROWS_AS(read(tokens, 65, model, {}), UsageError);
  CHECK_THROWS_WITH(read(tokens, 8, model_of(50), {}), ContainsSubstring("50"));
  CHECK_THROWS_AS(read(tokens, 8, model_of(50), {}), DataError);
  CHECK_THROWS_AS(read(none, 8, model, tokenizer), MissingInputError);
  CHECK_THROWS_WITH(read((folder / "short.txt").string(), 8, model, {}),
                    ContainsSubstring("needs a tokenizer"));
  CHECK_THROWS_WITH(read((folder / "empty.txt").string(), 8, model, tokenizer),
                    ContainsSubstring("no document"));
  CHECK_THROWS_WITH(read((folder / "short.txt").string(), 8, model, tokenizer),
                    ContainsSubstring("one sequence takes 9; give more text"));
  CHECK_THROWS_AS(read((folder / "short.txt").string(), 8, model, tokenizer), DataError);
}

}  // namespace
}  // namespace farskip
