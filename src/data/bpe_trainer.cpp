// SPDX-License-Identifier: Apache-2.0
#include "data/bpe_trainer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <unordered_map>

#include "data/bpe.h"
#include "data/pre_tokenizer.h"
#include "data/tokenizer_file.h"
#include "data/unicode.h"
#include "farskip/base/error.h"

namespace farskip {

struct BpeTrainer::Words {
  PreTokenizer pre_tokenizer{{{"type", "ByteLevel"}, {"add_prefix_space", false}}, "trainer"};
  PreTokenizer::Splitter splitter{pre_tokenizer};
  std::unordered_map<std::string, std::int64_t, StringHash, std::equal_to<>> counts;
};

namespace {

using Pair = std::uint64_t;  // left id << 32 | right id: compares as (left, right)

Pair make_pair_of(std::int32_t left, std::int32_t right) {
  return static_cast<Pair>(static_cast<std::uint32_t>(left)) << 32 | static_cast<std::uint32_t>(right);
}

struct PairHash {
  std::size_t operator()(Pair pair) const { return (pair ^ pair >> 29) * 0x9E3779B97F4A7C15U; }
};

struct Word {
  std::vector<std::int32_t> ids;
  std::int64_t count;
};

struct PairUse {
  std::int64_t count = 0;
  std::vector<std::uint32_t> words;  // where it occurs, and perhaps no longer does
};

struct HeapEntry {
  std::int64_t count;
  Pair pair;
  bool operator<(const HeapEntry& other) const {
    return count != other.count ? count < other.count : pair > other.pair;
  }
};

/// The merging loop over a fixed set of words.
class Merger {
 public:
  Merger(std::vector<Word> words, std::vector<std::string> tokens)
      : words_(std::move(words)), tokens_(std::move(tokens)) {
    for (std::size_t id = 0; id < tokens_.size(); ++id)
      ids_.emplace(tokens_[id], static_cast<std::int32_t>(id));
    for (std::uint32_t w = 0; w < words_.size(); ++w)
      for (std::size_t i = 0; i + 1 < words_[w].ids.size(); ++i)
        add(make_pair_of(words_[w].ids[i], words_[w].ids[i + 1]), words_[w].count, w);
    for (const auto& [pair, use] : uses_) heap_.push_back({use.count, pair});
    std::make_heap(heap_.begin(), heap_.end());
  }

  void run(std::size_t vocab_size, std::int64_t min_frequency) {
    while (tokens_.size() < vocab_size && !heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end());
      HeapEntry best = heap_.back();
      heap_.pop_back();
      const std::int64_t count = uses_[best.pair].count;
      if (count < std::max<std::int64_t>(min_frequency, 1)) continue;
      if (count != best.count) {  // counts only fall while an entry waits, so a later look is enough
        push({count, best.pair});
        continue;
      }
      merge(best.pair);
    }
  }

  const std::vector<std::string>& tokens() const { return tokens_; }
  const std::vector<std::pair<std::string, std::string>>& merges() const { return merges_; }

 private:
  void push(HeapEntry entry) {
    heap_.push_back(entry);
    std::push_heap(heap_.begin(), heap_.end());
  }

  void add(Pair pair, std::int64_t count, std::uint32_t word) {
    PairUse& use = uses_[pair];
    use.count += count;
    if (count > 0 && (use.words.empty() || use.words.back() != word)) use.words.push_back(word);
  }

  void merge(Pair pair) {
    const auto left = static_cast<std::int32_t>(pair >> 32),
               right = static_cast<std::int32_t>(pair & 0xffffffffU);
    merges_.emplace_back(tokens_[left], tokens_[right]);
    // Two different pairs can spell the same token; it keeps one id.
    const auto [entry, is_new] =
        ids_.emplace(tokens_[left] + tokens_[right], static_cast<std::int32_t>(tokens_.size()));
    if (is_new) tokens_.push_back(entry->first);
    const std::vector<std::uint32_t> places = std::move(uses_[pair].words);
    grown_.clear();
    for (const std::uint32_t w : places) merge_in_word(w, left, right, entry->second);
    uses_[pair] = {};
    std::sort(grown_.begin(), grown_.end());
    grown_.erase(std::unique(grown_.begin(), grown_.end()), grown_.end());
    for (const Pair neighbour : grown_)
      if (neighbour != pair) push({uses_[neighbour].count, neighbour});
  }

  void merge_in_word(std::uint32_t w, std::int32_t left, std::int32_t right, std::int32_t merged) {
    std::vector<std::int32_t>& ids = words_[w].ids;
    const std::int64_t count = words_[w].count;
    std::size_t out = 0;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (i + 1 >= ids.size() || ids[i] != left || ids[i + 1] != right) {
        ids[out++] = ids[i];
        continue;
      }
      if (out > 0) replace(make_pair_of(ids[out - 1], left), make_pair_of(ids[out - 1], merged), count, w);
      if (i + 2 < ids.size())
        replace(make_pair_of(right, ids[i + 2]), make_pair_of(merged, ids[i + 2]), count, w);
      ids[out++] = merged;
      ++i;
    }
    ids.resize(out);
  }

  void replace(Pair old_pair, Pair new_pair, std::int64_t count, std::uint32_t word) {
    uses_[old_pair].count -= count;
    add(new_pair, count, word);
    grown_.push_back(new_pair);
  }

  std::vector<Word> words_;
  std::vector<std::string> tokens_;
  StringToId ids_;
  std::vector<std::pair<std::string, std::string>> merges_;
  std::unordered_map<Pair, PairUse, PairHash> uses_;
  std::vector<HeapEntry> heap_;
  std::vector<Pair> grown_;
};

/// Special tokens first, then the 256 bytes in the order of their letters in the byte alphabet.
std::vector<std::string> initial_tokens(const BpeTrainerOptions& options) {
  std::vector<std::string> tokens = options.special_tokens;
  std::set<std::string> seen;
  for (const std::string& token : tokens)
    if (token.empty() || find_invalid_utf8(token) || !seen.insert(token).second)
      throw UsageError(fmt::format("special token \"{}\": must be UTF-8, not empty and given once", token));
  auto letters = byte_alphabet();
  std::sort(letters.begin(), letters.end());
  for (const char32_t letter : letters) {
    tokens.emplace_back();
    append_code_point(tokens.back(), letter);
    if (seen.contains(tokens.back()))
      throw UsageError(fmt::format("special token \"{}\": a single byte cannot be one", tokens.back()));
  }
  if (options.vocab_size < static_cast<std::int64_t>(tokens.size()))
    throw UsageError(
        fmt::format("a vocabulary of {} tokens has no room for 256 bytes and {} special tokens; ask for at "
                    "least {}",
                    options.vocab_size, options.special_tokens.size(), tokens.size()));
  return tokens;
}

}  // namespace

BpeTrainer::BpeTrainer() : words_(std::make_unique<Words>()) {}
BpeTrainer::~BpeTrainer() = default;

void BpeTrainer::add_text(std::string_view text) {
  if (const auto bad = find_invalid_utf8(text))
    throw DataError(fmt::format("text is not UTF-8 at byte {}", *bad));
  words_->splitter.split(text, [&](std::string_view word) {
    const auto entry = words_->counts.find(word);
    if (entry == words_->counts.end())
      words_->counts.emplace(word, 1);
    else
      ++entry->second;
  });
}

Tokenizer BpeTrainer::train(const BpeTrainerOptions& options) const {
  const std::vector<std::string> tokens = initial_tokens(options);
  StringToId letter_ids;
  for (std::size_t i = options.special_tokens.size(); i < tokens.size(); ++i)
    letter_ids.emplace(tokens[i], static_cast<std::int32_t>(i));
  std::array<std::int32_t, 256> byte_ids{};
  for (std::size_t byte = 0; byte < 256; ++byte)
    byte_ids[byte] =
        letter_ids.at(to_byte_alphabet(std::string(1, static_cast<char>(static_cast<unsigned char>(byte)))));
  std::vector<Word> words;
  words.reserve(words_->counts.size());
  for (const auto& [text, count] : words_->counts) {
    words.push_back({{}, count});
    for (const char byte : text) words.back().ids.push_back(byte_ids[static_cast<unsigned char>(byte)]);
  }
  Merger merger(std::move(words), tokens);
  merger.run(static_cast<std::size_t>(options.vocab_size), options.min_frequency);
  return Tokenizer::from_json(write_tokenizer_file(options.special_tokens, merger.tokens(), merger.merges()),
                              "trained tokenizer");
}

}  // namespace farskip
