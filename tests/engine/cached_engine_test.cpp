// SPDX-License-Identifier: Apache-2.0
// Reading token by token beside a cache gives what reading whole sequences gives.
#include "engine/cached_engine.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <random>

#include "farskip/engine/engine.h"
#include "support/catch.h"
#include "support/context.h"
#include "support/models.h"
#include "support/states.h"

namespace farskip {
namespace {

constexpr std::int64_t kBlockTokens = 3;

FarSkipConfig wiring_of(FarSkipMode mode) {
  return {mode, {}};
}

/// Some sequences of a model: what it says after each token, read as wholes.
struct Texts {
  Texts(const ModelConfig& config, std::vector<std::int64_t> lengths) {
    std::mt19937 random(7);
    for (const std::int64_t length : lengths) {
      auto& text = tokens.emplace_back(static_cast<std::size_t>(length));
      for (std::int32_t& id : text)
        id = static_cast<std::int32_t>(random() % static_cast<unsigned>(config.vocab_size));
    }
  }
  std::vector<std::vector<std::int32_t>> tokens;
};

using Rows = std::map<std::pair<std::int64_t, std::int64_t>, std::vector<float>>;  // by sequence and position

/// Reads parts of texts, a run at a time, and keeps all logits.
class Reader {
 public:
  Reader(const Model& model, std::shared_ptr<const States> weights, const Texts& texts, unsigned seed)
      : texts_(texts), engine_(model, std::move(weights), test::quiet_context(), size_of(texts)) {
    for (const StateSpec& spec : engine_.cache().specs()) {  // whoever reads what was not written gets NaN
      const TensorView view = engine_.cache().at(spec.name);
      std::fill_n(view.as<float>(), view.num_elements(), std::numeric_limits<float>::quiet_NaN());
    }
    // Blocks of all sequences in any order.
    std::vector<std::int32_t> blocks(static_cast<std::size_t>(engine_.size().num_blocks));
    std::iota(blocks.begin(), blocks.end(), 0);
    std::mt19937 random(seed);
    std::shuffle(blocks.begin(), blocks.end(), random);
    const auto each = static_cast<std::size_t>(engine_.size().max_blocks());
    for (std::size_t s = 0; s < texts.tokens.size(); ++s)
      engine_.set_blocks(static_cast<std::int64_t>(s), std::span(blocks).subspan(s * each, each));
  }

  /// Positions [begin, end) of a sequence in the next run.
  Reader& add(std::int64_t sequence, std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) {
      next_.add(texts_.tokens[static_cast<std::size_t>(sequence)][static_cast<std::size_t>(p)], sequence, p,
                true);
      places_.emplace_back(sequence, p);
    }
    return *this;
  }
  Reader& fresh() {
    next_.fresh = true;
    return *this;
  }
  void run() {
    engine_.next(next_, std::vector<Draw>(places_.size()));
    const TensorView logits = engine_.logits();
    REQUIRE(logits.shape[0] == static_cast<std::int64_t>(places_.size()));
    for (std::size_t i = 0; i < places_.size(); ++i) {
      const float* row = logits.as<float>() + static_cast<std::int64_t>(i) * logits.shape[1];
      rows.emplace(places_[i], std::vector<float>(row, row + logits.shape[1]));
    }
    next_ = {};
    places_.clear();
  }
  CachedEngine& engine() { return engine_; }

  Rows rows;

 private:
  static CacheSize size_of(const Texts& texts) {
    CacheSize size{.block_tokens = kBlockTokens,
                   .max_sequences = static_cast<std::int64_t>(texts.tokens.size())};
    for (const auto& text : texts.tokens)
      size.max_tokens = std::max(size.max_tokens, static_cast<std::int64_t>(text.size()));
    size.num_blocks = size.max_sequences * size.max_blocks() + 1;
    return size;
  }

  const Texts& texts_;
  CachedEngine engine_;
  CachedTokens next_;
  std::vector<std::pair<std::int64_t, std::int64_t>> places_;
};

Rows read_whole(const Model& model, std::shared_ptr<const States> weights, const Texts& texts) {
  InferenceEngine engine(model, std::move(weights), test::quiet_context());
  Rows rows;
  for (std::size_t s = 0; s < texts.tokens.size(); ++s) {
    const auto length = static_cast<std::int64_t>(texts.tokens[s].size());
    const TensorView logits = engine.logits(texts.tokens[s], length);
    for (std::int64_t p = 0; p < length; ++p) {
      const float* row = logits.as<float>() + p * logits.shape[1];
      rows.emplace(std::pair(static_cast<std::int64_t>(s), p),
                   std::vector<float>(row, row + logits.shape[1]));
    }
  }
  return rows;
}

double worst_difference(const Rows& got, const Rows& want) {
  REQUIRE(got.size() == want.size());
  double worst = 0, norm = 0;
  for (const auto& [place, row] : want)
    for (std::size_t i = 0; i < row.size(); ++i) {
      worst = std::max(worst, std::abs(static_cast<double>(got.at(place)[i]) - row[i]));
      norm = std::max(norm, std::abs(static_cast<double>(row[i])));
    }
  return std::isfinite(worst) ? worst / norm : HUGE_VAL;
}

/// Beginnings of different lengths at once, a part of a long text beside the next tokens of others, then
/// token by token.
void read_in_parts(Reader& reader, const Texts& texts) {
  reader.add(0, 0, 5).add(1, 0, 1).run();
  reader.add(2, 0, 7).add(0, 5, 6).add(1, 1, 2).run();
  reader.add(1, 2, 3).add(2, 7, 12).add(0, 6, 7).run();
  std::vector<std::int64_t> next{7, 3, 12};
  for (bool more = true; more;) {
    more = false;
    for (std::size_t s = 0; s < next.size(); ++s)
      if (next[s] < static_cast<std::int64_t>(texts.tokens[s].size())) {
        reader.add(static_cast<std::int64_t>(s), next[s], next[s] + 1);
        ++next[s];
        more = true;
      }
    if (more) reader.run();
  }
}

TEST_CASE("reading beside a cache gives the logits of whole sequences, every model and wiring") {
  const std::string name = GENERATE(from_range(test::model_fixtures()));
  const auto mode = GENERATE(FarSkipMode::off, FarSkipMode::attention, FarSkipMode::mlp, FarSkipMode::full);
  const ModelConfig config = read_hub_config(test::fixtures() / name);
  const auto weights = test::load_weights(test::fixtures() / name);
  const Model model = wire_model(config, wiring_of(mode));
  const Texts texts(config, {11, 6, 23});
  CAPTURE(name, static_cast<int>(mode));
  Reader reader(model, weights, texts, 1);
  read_in_parts(reader, texts);
  CHECK(worst_difference(reader.rows, read_whole(model, weights, texts)) < 2e-5);
}

TEST_CASE("texts that begin in a run are read without the cache, and go on from it") {
  const std::string name = GENERATE(from_range(test::family_fixtures()));
  CAPTURE(name);
  const ModelConfig config = read_hub_config(test::fixtures() / name);
  const auto weights = test::load_weights(test::fixtures() / name);
  const Model model = wire_model(config, wiring_of(FarSkipMode::full));
  const Texts texts(config, {11, 8, 23});
  Reader reader(model, weights, texts, 1);
  reader.add(0, 0, 5).add(1, 0, 1).add(2, 0, 9).fresh().run();  // lengths that differ, padding
  reader.add(0, 5, 11).add(1, 1, 2).add(2, 9, 10).run();
  reader.add(1, 2, 8).add(2, 10, 23).run();
  const Rows whole = read_whole(model, weights, texts);
  CHECK(worst_difference(reader.rows, whole) < 2e-5);
  Reader one(model, weights, texts, 2);
  one.add(0, 0, 4).add(1, 0, 4).fresh().run();  // of one length
  one.add(2, 0, 7).fresh().run();               // one text
  one.add(0, 4, 11).add(1, 4, 8).add(2, 7, 23).run();
  CHECK(worst_difference(one.rows, whole) < 2e-5);
}

TEST_CASE("what is read of a sequence has the same bits beside any others, in any parts, in any blocks") {
  const std::string name = GENERATE(from_range(test::family_fixtures()));
  CAPTURE(name);
  const ModelConfig config = read_hub_config(test::fixtures() / name);
  const auto weights = test::load_weights(test::fixtures() / name);
  const Model model = wire_model(config, wiring_of(FarSkipMode::full));
  const Texts texts(config, {11, 6, 23});
  Reader beside(model, weights, texts, 1), alone(model, weights, texts, 2);
  read_in_parts(beside, texts);
  for (std::int64_t s = 0; s < 3; ++s) {
    const auto length = static_cast<std::int64_t>(texts.tokens[static_cast<std::size_t>(s)].size());
    alone.add(s, 0, length / 2).run();
    alone.add(s, length / 2, length).run();
  }
  CHECK(beside.rows == alone.rows);
}

TEST_CASE("blocks of a sequence that has ended serve another one") {
  const ModelConfig config = read_hub_config(test::fixtures() / "qwen3_moe");
  const auto weights = test::load_weights(test::fixtures() / "qwen3_moe");
  const Model model = wire_model(config);
  const Texts texts(config, {14, 9});
  Reader fresh(model, weights, texts, 1), reused(model, weights, texts, 1);
  fresh.add(1, 0, 4).run();
  fresh.add(1, 4, 9).run();
  reused.add(0, 0, 14).run();
  const std::vector<std::int32_t> blocks{4, 0, 3};
  reused.engine().set_blocks(0, blocks);
  reused.engine().set_blocks(1, blocks);
  reused.rows.clear();
  reused.add(1, 0, 4).run();
  reused.add(1, 4, 9).run();
  CHECK(fresh.rows == reused.rows);
}

}  // namespace
}  // namespace farskip
