// SPDX-License-Identifier: Apache-2.0
#include "data/sampler.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <numeric>
#include <set>

#include "farskip/base/error.h"
#include "farskip/base/random.h"
#include "support/catch.h"
#include "support/support.h"

using namespace farskip;

namespace {

using Ids = std::vector<std::int32_t>;

std::shared_ptr<const TokenFile> make_source(const test::TemporaryFolder& folder, const std::string& name,
                                             const std::vector<Ids>& documents) {
  TokenFileWriter writer((folder / name).string(), TokenType::i32);
  for (const Ids& document : documents) writer.add_document(document);
  writer.commit();
  return std::make_shared<TokenFile>((folder / name).string());
}

/// `count` tokens first, first + 1, …
std::shared_ptr<const TokenFile> make_counting(const test::TemporaryFolder& folder, const std::string& name,
                                               int first, int count) {
  Ids tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return make_source(folder, name, {tokens});
}

SamplerOptions options_of(std::int64_t length, bool shuffle) {
  SamplerOptions options;
  options.sequence_length = length;
  options.shuffle = shuffle;
  return options;
}

}  // namespace

TEST_CASE("A permutation is one to one for every size") {
  for (std::uint64_t size = 1; size < 300; ++size) {
    const Permutation permutation(size, 3, size);
    std::set<std::uint64_t> seen;
    for (std::uint64_t i = 0; i < size; ++i) seen.insert(permutation(i));
    REQUIRE(seen.size() == size);
    REQUIRE(*seen.rbegin() == size - 1);
  }
  const std::uint64_t huge = (std::uint64_t{1} << 40) + 12345;
  CHECK(Permutation(1, 1, huge)(huge - 1) < huge);
}

TEST_CASE("Permutations of different streams are spread evenly over all orders") {
  std::map<std::vector<std::uint64_t>, int> orders;
  const int draws = 24000;
  for (std::uint64_t stream = 0; stream < draws; ++stream) {
    const Permutation permutation(11, stream, 4);
    ++orders[{permutation(0), permutation(1), permutation(2), permutation(3)}];
  }
  CHECK(orders.size() == 24);
  double chi_square = 0;
  for (const auto& [order, count] : orders) chi_square += std::pow(count - 1000.0, 2) / 1000.0;
  CHECK(chi_square < 49.7);  // 23 degrees of freedom, p = 0.001
}

TEST_CASE("A large permutation neither keeps neighbours together nor indices in place") {
  const std::uint64_t size = 100000;
  const Permutation permutation(1, 2, size);
  int fixed = 0, adjacent = 0;
  double correlation = 0;
  for (std::uint64_t i = 0; i + 1 < size; ++i) {
    fixed += permutation(i) == i ? 1 : 0;
    adjacent += permutation(i + 1) == permutation(i) + 1 ? 1 : 0;
    correlation += (static_cast<double>(i) / size - 0.5) * (static_cast<double>(permutation(i)) / size - 0.5);
  }
  CHECK(fixed < 8);     // 1 expected
  CHECK(adjacent < 8);  // 1 expected
  CHECK(std::abs(correlation / size * 12) < 0.015);
}

TEST_CASE("Without shuffling sample i is tokens iS to iS + S and the epoch wraps") {
  const auto file = std::make_shared<TokenFile>((test::fixtures() / "deepseek_v2" / "tokens").string());
  const Sampler sampler({{file}}, options_of(32, false));
  REQUIRE(sampler.samples_per_epoch(0) == 80);
  for (const std::uint64_t number : {0U, 1U, 79U, 80U, 163U}) {
    Ids expected(33);
    file->read(number % 80 * 32, 33, expected.data());
    const Sample sample = sampler.sample(number);
    CHECK(sample.tokens == Ids(expected.begin(), expected.end() - 1));
    CHECK(sample.targets == Ids(expected.begin() + 1, expected.end()));
    CHECK(sample.document_start.empty());
    CHECK(sample.address == SampleAddress{0, number / 80, number % 80});
  }
}

TEST_CASE("With shuffling every epoch has every sample once, each epoch and seed in another order") {
  const test::TemporaryFolder folder;
  const auto file = make_counting(folder, "t", 0, 1000);
  const Sampler sampler({{file}}, options_of(9, true));
  const std::uint64_t n = sampler.samples_per_epoch(0);
  REQUIRE(n == 111);
  std::vector<std::vector<std::uint64_t>> orders(3);
  for (std::uint64_t number = 0; number < 3 * n; ++number) {
    const Sample sample = sampler.sample(number);
    CHECK(sample.address.epoch == number / n);
    CHECK(sample.tokens.front() == static_cast<std::int32_t>(sample.address.index * 9));
    CHECK(sample.targets.back() == sample.tokens.front() + 9);
    orders[number / n].push_back(sample.address.index);
  }
  CHECK(orders[0] != orders[1]);
  CHECK(orders[1] != orders[2]);
  for (auto order : orders) {
    std::sort(order.begin(), order.end());
    std::vector<std::uint64_t> all(n);
    std::iota(all.begin(), all.end(), std::uint64_t{0});
    CHECK(order == all);
  }
  SamplerOptions other = options_of(9, true);
  other.seed = 2;
  int same = 0;
  for (std::uint64_t number = 0; number < n; ++number)
    same += Sampler({{file}}, other).locate(number) == sampler.locate(number) ? 1 : 0;
  CHECK(same < 10);
}

TEST_CASE("F29: resumed anywhere and on any number of ranks, the same samples come in the same order") {
  const test::TemporaryFolder folder;
  const std::vector<SamplerSource> sources{{make_counting(folder, "a", 0, 500), 3},
                                           {make_counting(folder, "b", 1000, 300), 1}};
  SamplerOptions options = options_of(7, GENERATE(false, true));
  options.block_size = 16;
  std::vector<Ids> whole;
  const Sampler once(sources, options);
  const std::uint64_t global_batch = 12, steps = 20;  // both sources wrap
  for (std::uint64_t number = 0; number < global_batch * steps; ++number)
    whole.push_back(once.sample(number).tokens);
  for (const std::uint64_t ranks : {1U, 2U, 3U, 4U, 6U, 12U}) {
    std::vector<Ids> gathered(whole.size());
    for (std::uint64_t rank = 0; rank < ranks; ++rank)
      for (std::uint64_t step = 0; step < steps; ++step) {
        const Sampler resumed(sources, options);  // fresh: as after a restart at this step
        for (std::uint64_t i = rank; i < global_batch; i += ranks)
          gathered[step * global_batch + i] = resumed.sample(step * global_batch + i).tokens;
      }
    CHECK(gathered == whole);
  }
}

TEST_CASE("Every block of a mixture has exactly the apportioned counts, and each source its own order") {
  const test::TemporaryFolder folder;
  const std::vector<SamplerSource> sources{{make_counting(folder, "a", 0, 101), 0.5},
                                           {make_counting(folder, "b", 0, 201), 0.3},
                                           {make_counting(folder, "c", 0, 1001), 0.2}};
  SamplerOptions options = options_of(10, false);
  options.block_size = 13;
  const Sampler sampler(sources, options);
  CHECK(sampler.samples_per_block() == std::vector<std::uint64_t>{6, 4, 3});  // of 6.5, 3.9, 2.6
  std::vector<std::uint64_t> next(3);
  std::set<std::vector<std::uint64_t>> patterns;
  for (std::uint64_t block = 0; block < 30; ++block) {
    std::vector<std::uint64_t> counts(3), pattern;
    for (std::uint64_t i = 0; i < 13; ++i) {
      const SampleAddress address = sampler.locate(block * 13 + i);
      const std::uint64_t n = sampler.samples_per_epoch(address.source);
      CHECK(address.epoch * n + address.index == next[address.source]++);
      ++counts[address.source];
      pattern.push_back(address.source);
    }
    CHECK(counts == sampler.samples_per_block());
    patterns.insert(pattern);
  }
  CHECK(patterns.size() > 20);
}

TEST_CASE("Shares are whole numbers by largest remainder") {
  CHECK(apportion({1, 1, 1}, 10) == std::vector<std::uint64_t>{4, 3, 3});
  CHECK(apportion({0.7, 0.2, 0.1}, 1024) == std::vector<std::uint64_t>{717, 205, 102});
  CHECK(apportion({5}, 7) == std::vector<std::uint64_t>{7});
}

TEST_CASE("A document mask marks where documents begin and ignores targets across the border") {
  const test::TemporaryFolder folder;
  // Borders at 3, 4, 4 (an empty document), 8 and 12.
  const auto file = make_source(folder, "t", {{1, 2, 0}, {0}, {}, {3, 4, 5, 0}, {6, 7, 8, 0}, {9}});
  SamplerOptions options = options_of(4, false);
  options.document_mask = true;
  const Sampler sampler({{file}}, options);
  const Sample a = sampler.sample(0), b = sampler.sample(1), c = sampler.sample(2);
  CHECK(a.tokens == Ids{1, 2, 0, 0});
  CHECK(a.targets == Ids{2, 0, -1, -1});
  CHECK(a.document_start == Ids{0, 0, 0, 3});
  CHECK(b.tokens == Ids{3, 4, 5, 0});
  CHECK(b.targets == Ids{4, 5, 0, -1});
  CHECK(b.document_start == Ids{0, 0, 0, 0});
  CHECK(c.targets == Ids{7, 8, 0, -1});
  options.sequence_length = 6;
  const Sample d = Sampler({{file}}, options).sample(1);  // tokens 6 to 11 begin inside a document
  CHECK(d.tokens == Ids{5, 0, 6, 7, 8, 0});
  CHECK(d.targets == Ids{0, -1, 7, 8, 0, -1});
  CHECK(d.document_start == Ids{0, 0, 2, 2, 2, 2});
}

TEST_CASE("Prompts and padding are no targets") {
  const test::TemporaryFolder folder;
  // 5 ends a prompt. The second document's lies over two sequences; the third has none.
  const auto file = make_source(folder, "t", {{1, 5, 2, 9}, {3, 4, 6, 5, 7, 5}, {8, 9, 8}, {1, 1}});
  SamplerOptions options = options_of(3, false);
  options.prompt_end = 5;
  const auto targets = [&](std::uint64_t n) { return Sampler({{file}}, options).sample(n).targets; };
  CHECK(targets(0) == Ids{-1, 2, 9});
  CHECK(targets(1) == Ids{-1, -1, -1});
  CHECK(targets(2) == Ids{-1, 7, 5});
  CHECK(targets(3) == Ids{8, 9, 8});
  options.padding = 9;
  CHECK(targets(0) == Ids{-1, 2, -1});
  CHECK(targets(3) == Ids{8, -1, 8});
  options.prompt_end.reset();
  CHECK(targets(0) == Ids{5, 2, -1});
}

TEST_CASE("A whole stream ends with a sample that is filled up with targets that do not count") {
  const test::TemporaryFolder folder;
  const auto file = make_source(folder, "t", {{1, 2, 3, 4}, {5, 6, 7}});
  SamplerOptions options = options_of(4, false);
  options.whole_stream = true;
  const Sampler sampler({{file}}, options);
  REQUIRE(sampler.samples_per_epoch(0) == 2);
  CHECK(sampler.sample(0).targets == Ids{2, 3, 4, 5});
  CHECK(sampler.sample(1).tokens == Ids{5, 6, 0, 0});
  CHECK(sampler.sample(1).targets == Ids{6, 7, -1, -1});
  CHECK(sampler.sample(2).tokens == sampler.sample(0).tokens);  // the next epoch
  options.document_mask = true;
  CHECK(Sampler({{file}}, options).sample(1).document_start == Ids{0, 0, 2, 2});
  options.sequence_length = 6;
  CHECK(Sampler({{file}}, options).samples_per_epoch(0) == 1);  // nothing is left over
  options.sequence_length = 100;
  CHECK(Sampler({{file}}, options).samples_per_epoch(0) == 1);
  const auto one = make_source(folder, "one", {{1}});
  CHECK_THROWS_WITH(Sampler({{one}}, options), ContainsSubstring("1 tokens"));
}

TEST_CASE("Prompts are found wherever documents and samples meet") {
  const test::TemporaryFolder folder;
  std::vector<Ids> documents;
  Ids stream, targets;  // what the rule says of the whole stream
  for (std::uint64_t d = 0; d < 200; ++d) {
    Ids document;
    for (std::uint64_t i = uniform_u64(5, d, 0) % 12; i > 0; --i)
      document.push_back(static_cast<std::int32_t>(uniform_u64(6, d, i) % 9));
    const auto prompt_end = std::find(document.begin(), document.end(), 5);
    for (auto it = document.begin(); it != document.end(); ++it) {
      stream.push_back(*it);
      targets.push_back(prompt_end != document.end() && it <= prompt_end ? kIgnoredTarget : *it);
    }
    documents.push_back(document);
  }
  const auto file = make_source(folder, "t", documents);
  for (const std::int64_t length : {1, 2, 3, 7, 50}) {
    SamplerOptions options = options_of(length, false);
    options.prompt_end = 5;
    const Sampler sampler({{file}}, options);
    for (std::uint64_t n = 0; n < sampler.samples_per_epoch(0); ++n) {
      const auto first = static_cast<std::ptrdiff_t>(n) * length;
      const Sample sample = sampler.sample(n);
      REQUIRE(sample.tokens == Ids(stream.begin() + first, stream.begin() + first + length));
      REQUIRE(sample.targets == Ids(targets.begin() + first + 1, targets.begin() + first + length + 1));
    }
  }
}

TEST_CASE("The prompt of a long document is searched once, not for every sample") {
  const test::TemporaryFolder folder;
  const auto file = make_source(folder, "t", {Ids(300000, 1), Ids(20, 1)});
  const PromptEnds ends(file, 5);
  CHECK(ends.behind_prompt(0) == 0);
  std::fstream bin(folder / "t.bin", std::ios::in | std::ios::out | std::ios::binary);
  const std::int32_t prompt_end = 5;
  for (const std::streamoff token : {100000, 300007}) {
    bin.seekp(token * 4);
    bin.write(reinterpret_cast<const char*>(&prompt_end), sizeof prompt_end);
  }
  bin.close();
  CHECK(ends.behind_prompt(0) == 0);
  CHECK(ends.behind_prompt(1) == 300008);
  CHECK(PromptEnds(file, 5).behind_prompt(0) == 100001);
}

TEST_CASE("Impossible samplers are refused with the reason") {
  const test::TemporaryFolder folder;
  const auto file = make_counting(folder, "t", 0, 10);
  CHECK_THROWS_AS(Sampler({}, options_of(4, true)), UsageError);
  CHECK_THROWS_AS(Sampler({{file}}, options_of(0, true)), UsageError);
  CHECK_THROWS_WITH(Sampler({{file}}, options_of(10, true)),
                    ContainsSubstring("10 tokens") && ContainsSubstring("11"));
  CHECK_NOTHROW(Sampler({{file}}, options_of(9, true)));
  for (const double weight : {0.0, -1.0, std::nan(""), HUGE_VAL})
    CHECK_THROWS_AS(Sampler({{file, weight}}, options_of(4, true)), UsageError);
  CHECK_THROWS_WITH(Sampler({{file, 1.0}, {file, 1e-6}}, options_of(4, true)),
                    ContainsSubstring("never be read"));
}

TEST_CASE("An id outside the vocabulary stops the sampler with its place") {
  const test::TemporaryFolder folder;
  make_source(folder, "t", {{1, 2, 3}, {4, 99, 5}});
  const Sampler sampler({{std::make_shared<TokenFile>((folder / "t").string(), 50)}}, options_of(2, false));
  CHECK_NOTHROW(sampler.sample(0));
  CHECK_THROWS_WITH(sampler.sample(1), ContainsSubstring("id 99 at document 1, position 1"));
}
