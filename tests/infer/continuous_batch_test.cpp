// SPDX-License-Identifier: Apache-2.0
#include "farskip/infer/continuous_batch.h"

#include <map>

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

TEST_CASE("a text ends with the token after which its reader stops, or where there is no more room") {
  Continued continued(roomy());
  GenerationRequest stopped = request_of(1);
  stopped.max_tokens = 30;
  std::vector<std::int32_t> heard;
  stopped.keep_going = [&](std::int32_t id) {
    heard.push_back(id);
    return heard.size() < 3;
  };
  continued.submit(stopped);
  const Texts texts = continued.finish();
  CHECK((texts.at(0).end == GenerationEnd::stop && texts.at(0).ids == heard && heard.size() == 3));

  const std::int64_t positions = continued.config().max_positions;
  Continued wide({.num_blocks = positions / 16 + 1, .max_sequences = 1, .max_tokens = positions});
  GenerationRequest endless = request_of(2);
  endless.max_tokens = 1 << 20;
  wide.submit(endless);
  const Generated text = wide.finish().at(0);
  CHECK(text.end == GenerationEnd::context);
  CHECK(static_cast<std::int64_t>(text.ids.size() + endless.prompt.size()) == positions);
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
