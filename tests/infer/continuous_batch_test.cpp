// SPDX-License-Identifier: Apache-2.0
#include "infer/continuous_batch.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "farskip/engine/engine.h"
#include "support/catch.h"
#include "support/context.h"
#include "support/models.h"
#include "support/states.h"

namespace farskip {
namespace {

using Texts = std::map<std::int64_t, Generated>;

/// A model, a cache of a given size, and texts to continue.
class Continued {
 public:
  explicit Continued(const CacheSize& size, std::int64_t max_run_tokens = 512,
                     const std::string& fixture = "qwen3_moe")
      : config_(read_hub_config(test::fixtures() / fixture)),
        engine_(wire_model(config_, {FarSkipMode::full, {}}), test::load_weights(test::fixtures() / fixture),
                test::quiet_context(), size),
        batch_(engine_, {.end_tokens = {}, .max_run_tokens = max_run_tokens}) {}

  std::int64_t submit(const GenerationRequest& request) { return batch_.submit(request); }
  Texts finish() {
    Texts texts;
    for (int runs = 0; batch_.num_open() > 0; ++runs) {
      REQUIRE(runs < 2000);
      for (ContinuousBatch::Ended& ended : batch_.step())
        REQUIRE(texts.emplace(ended.request, std::move(ended.text)).second);
    }
    return texts;
  }
  const ModelConfig& config() const { return config_; }
  ContinuousBatch& batch() { return batch_; }

 private:
  ModelConfig config_;
  CachedEngine engine_;
  ContinuousBatch batch_;
};

GenerationRequest request_of(std::int64_t number) {
  GenerationRequest request;
  for (std::int64_t i = 0; i < 1 + number * 5 % 17; ++i)
    request.prompt.push_back(static_cast<std::int32_t>((7 + 3 * number + 11 * i) % 50));
  request.max_tokens = 1 + number * 7 % 13;
  request.sampling.temperature = number % 3 == 0 ? 0.0 : 0.9;
  request.sampling.top_p = number % 2 == 0 ? 1.0 : 0.8;
  request.sampling.repetition_penalty = number % 4 == 0 ? 1.3 : 1.0;
  request.sampling.seed = number;
  return request;
}

CacheSize roomy() {
  return {.num_blocks = 200, .block_tokens = 4, .max_sequences = 6, .max_tokens = 40};
}

std::vector<std::int32_t> alone(std::int64_t number) {
  Continued continued(roomy());
  continued.submit(request_of(number));
  return continued.finish().at(0).ids;
}

TEST_CASE(
    "a text is the same alone, beside others, read in parts, and where it had to give back its blocks") {
  constexpr std::int64_t count = 15;
  const auto check = [&](const CacheSize& size, std::int64_t max_run_tokens) {
    Continued continued(size, max_run_tokens);
    for (std::int64_t i = 0; i < count; ++i) CHECK(continued.submit(request_of(i)) == i);
    const Texts texts = continued.finish();
    REQUIRE(static_cast<std::int64_t>(texts.size()) == count);
    for (std::int64_t i = 0; i < count; ++i) {
      CAPTURE(i);
      CHECK(texts.at(i).ids == alone(i));
      CHECK(static_cast<std::int64_t>(texts.at(i).ids.size()) == request_of(i).max_tokens);
    }
  };
  check(roomy(), 512);
  check(roomy(), 5);
  // Room for one text of the longest and little more, so that others have to wait and to give way.
  check({.num_blocks = 11, .block_tokens = 4, .max_sequences = 6, .max_tokens = 40}, 512);
  check({.num_blocks = 40, .block_tokens = 1, .max_sequences = 6, .max_tokens = 40}, 7);
}

TEST_CASE("a text ends where there is no more room") {
  Continued continued(roomy());
  const std::int64_t positions = continued.config().max_positions;
  Continued wide({.num_blocks = positions / 16 + 1, .max_sequences = 1, .max_tokens = positions});
  GenerationRequest endless = request_of(2);
  endless.max_tokens = 1 << 20;
  wide.submit(endless);
  const Generated text = wide.finish().at(0);
  CHECK(text.end == GenerationEnd::context);
  CHECK(static_cast<std::int64_t>(text.ids.size() + endless.prompt.size()) == positions);
}

/// The tokenizer whose ids all models of the fixtures have.
Tokenizer small_tokenizer() {
  return Tokenizer::load(test::fixtures() / "tasks" / "tokenizer.json");
}

TEST_CASE("what is passed on while a text grows is the text, and a stop string ends it") {
  const ModelConfig config = read_hub_config(test::fixtures() / "qwen3_moe");
  const Tokenizer tokenizer = small_tokenizer();
  CachedEngine engine(wire_model(config), test::load_weights(test::fixtures() / "qwen3_moe"),
                      test::quiet_context(), roomy(), tokenizer.vocab_size());
  const auto continue_one = [&](std::vector<std::string> stop, GeneratedPart* parts) {
    ContinuousBatch batch(engine, {.end_tokens = {}, .tokenizer = tokenizer});
    GenerationRequest request = request_of(4);
    request.max_tokens = 25;
    request.stop = std::move(stop);
    request.num_likely = 2;
    if (parts != nullptr) request.on_part = [=](const GeneratedPart& part) { *parts += part; };
    batch.submit(std::move(request));
    std::vector<ContinuousBatch::Ended> ended;
    while (ended.empty()) ended = batch.step();
    CHECK(batch.num_open() == 0);
    CHECK(batch.num_used_blocks() == 0);
    return ended[0].text;
  };
  GeneratedPart parts;
  const Generated free = continue_one({}, &parts);
  CHECK((parts.text == free.text && parts.ids == free.ids && parts.scores.size() == free.ids.size()));
  CHECK(free.text == tokenizer.decode(free.ids, true));
  CHECK(free.end == GenerationEnd::max_tokens);
  const std::size_t middle = free.text.size() / 2;
  const std::string stop = free.text.substr(middle, 3);
  parts = {};
  const Generated stopped = continue_one({stop}, &parts);
  CHECK(stopped.end == GenerationEnd::stop);
  CHECK(stopped.text == free.text.substr(0, free.text.find(stop)));
  CHECK((parts.text == stopped.text && parts.ids == stopped.ids));
  CHECK(stopped.ids ==
        std::vector<std::int32_t>(free.ids.begin(), free.ids.begin() + std::ssize(stopped.ids)));
}

TEST_CASE("scores are those of the whole text read at once, also of a prompt in parts or read again") {
  const fs::path folder = test::fixtures() / "qwen3_moe";
  const ModelConfig config = read_hub_config(folder);
  const auto weights = test::load_weights(folder);
  const auto check = [&](const CacheSize& size, std::int64_t max_run_tokens) {
    CachedEngine engine(wire_model(config), weights, test::quiet_context(), size);
    ContinuousBatch batch(engine, {.end_tokens = {}, .max_run_tokens = max_run_tokens});
    std::vector<GenerationRequest> requests;
    for (std::int64_t i = 0; i < 9; ++i) {
      GenerationRequest request = request_of(i);
      request.max_tokens = i % 3 == 1 ? 0 : 9;
      request.num_likely = i % 4;
      request.score_prompt = i % 2 == 1;
      requests.push_back(request);
      batch.submit(request);
    }
    InferenceEngine whole(wire_model(config), weights, test::quiet_context());
    while (batch.num_open() > 0)
      for (const ContinuousBatch::Ended& ended : batch.step()) {
        const GenerationRequest& request = requests[static_cast<std::size_t>(ended.request)];
        const auto prompt = static_cast<std::int64_t>(request.prompt.size());
        std::vector<std::int32_t> tokens = request.prompt;
        tokens.insert(tokens.end(), ended.text.ids.begin(), ended.text.ids.end());
        CHECK(std::ssize(ended.text.ids) == request.max_tokens);
        REQUIRE(ended.text.scores.size() == ended.text.ids.size());
        REQUIRE(std::ssize(ended.text.prompt_scores) == (request.score_prompt ? prompt - 1 : 0));
        const TensorView logits = whole.logits(tokens, std::ssize(tokens));
        for (std::int64_t i = request.score_prompt ? 1 : prompt; i < std::ssize(tokens); ++i) {
          const TokenScore& score = i < prompt ? ended.text.prompt_scores[static_cast<std::size_t>(i - 1)]
                                               : ended.text.scores[static_cast<std::size_t>(i - prompt)];
          std::vector<double> row(logits.as<float>() + (i - 1) * logits.shape[1],
                                  logits.as<float>() + i * logits.shape[1]);
          double sum = 0;
          for (const double x : row) sum += std::exp(x);
          const auto log_probability = [&](std::int32_t id) {
            return row[static_cast<std::size_t>(id)] - std::log(sum);
          };
          CHECK(score.log_probability ==
                Catch::Approx(log_probability(tokens[static_cast<std::size_t>(i)])).epsilon(1e-4));
          REQUIRE(std::ssize(score.likeliest) == *request.num_likely);
          std::vector<double> sorted = row;
          std::sort(sorted.rbegin(), sorted.rend());
          for (std::size_t k = 0; k < score.likeliest.size(); ++k)
            CHECK(score.likeliest[k].second == Catch::Approx(sorted[k] - std::log(sum)).epsilon(1e-4));
        }
      }
  };
  check(roomy(), 512);
  check(roomy(), 5);
  check({.num_blocks = 11, .block_tokens = 4, .max_sequences = 6, .max_tokens = 40}, 512);
}

TEST_CASE("a text that is given up gives back its room, and the others do not notice") {
  Continued continued({.num_blocks = 20, .block_tokens = 4, .max_sequences = 3, .max_tokens = 40});
  for (std::int64_t i = 0; i < 8; ++i) continued.submit(request_of(i));
  continued.batch().step();
  continued.batch().step();
  for (const std::int64_t i : {1, 7, 1, 99}) continued.batch().cancel(i);  // one runs, one waits
  const Texts texts = continued.finish();
  CHECK(texts.count(7) == 0);
  CHECK(continued.batch().num_used_blocks() == 0);
  for (const auto& [number, text] : texts) CHECK(text.ids == alone(number));
}

TEST_CASE("what cannot be continued is refused") {
  Continued continued(roomy());
  GenerationRequest request;
  CHECK_THROWS_WITH(continued.submit(request), ContainsSubstring("a prompt is empty"));
  request.prompt.assign(30, 1);
  CHECK_THROWS_WITH(continued.submit(request), ContainsSubstring("which holds 40 of a text"));
  request.prompt.assign(static_cast<std::size_t>(continued.config().max_positions), 1);
  CHECK_THROWS_WITH(continued.submit(request), ContainsSubstring("max_position_embeddings"));
}

TEST_CASE("an end token ends a text and is no part of it") {
  const ModelConfig config = read_hub_config(test::fixtures() / "qwen3_moe");
  CachedEngine engine(wire_model(config), test::load_weights(test::fixtures() / "qwen3_moe"),
                      test::quiet_context(), roomy());
  const auto continue_until = [&](std::vector<std::int64_t> end_tokens) {
    ContinuousBatch batch(engine, {.end_tokens = std::move(end_tokens)});
    batch.submit({.prompt = {1, 2, 3}, .max_tokens = 12, .sampling = {}});
    std::vector<ContinuousBatch::Ended> ended;
    while (ended.empty()) ended = batch.step();
    return ended[0].text;
  };
  const Generated free = continue_until({});
  const std::int32_t end = free.ids[5];
  const Generated ended = continue_until({end});
  const auto first = std::find(free.ids.begin(), free.ids.end(), end);
  CHECK(ended.end == GenerationEnd::stop);
  CHECK(ended.ids == std::vector<std::int32_t>(free.ids.begin(), first));
}

}  // namespace
}  // namespace farskip
