// SPDX-License-Identifier: Apache-2.0
// Multiple choice by likelihood beside what lm-evaluation-harness made of the same task:
// tests/fixtures/tasks, written by scripts/reproduce/tasks.py.
#include "infer/multiple_choice.h"

#include <random>

#include "comm/local.h"
#include "farskip/base/error.h"
#include "hub/companions.h"
#include "infer/whole_sequences.h"
#include "support/catch.h"
#include "support/context.h"
#include "support/json.h"
#include "support/models.h"
#include "support/states.h"
#include "support/support.h"

namespace farskip {
namespace {

using test::fixtures;
using Numbers = std::vector<double>;

const fs::path kFolder = fixtures() / "tasks";

std::vector<Continuation> encode(const Task& task, const ModelConfig& model) {
  const Companions companions = read_companions(kFolder);
  std::vector<Continuation> all;
  for (const TaskItem& item : task.items)
    for (Continuation& c : encode_choices(item, *companions.tokenizer, find_prefix_token(companions), model))
      all.push_back(std::move(c));
  return all;
}

/// On ranks of which `expert` share one set of experts, and `tensor` every matrix.
Numbers log_likelihoods_of(const std::string& fixture, const Task& task, std::int64_t batch,
                           const Communicator& world = make_self_communicator(), int expert = 1,
                           int tensor = 1) {
  const ModelConfig config = read_hub_config(fixtures() / fixture);
  const Mesh mesh(world, expert, tensor);
  return log_likelihoods(wire_model(config), test::load_weights(fixtures() / fixture, mesh.position()),
                         test::quiet_context(mesh), encode(task, config), batch);
}

std::vector<Numbers> on_ranks(int size, int expert, const std::string& fixture, const Task& task,
                              std::int64_t batch, int tensor = 1) {
  std::vector<Numbers> found(static_cast<std::size_t>(size));
  run_local_ranks(size, [&](const Communicator& world) {
    found[static_cast<std::size_t>(world.rank())] =
        log_likelihoods_of(fixture, task, batch, world, expert, tensor);
  });
  return found;
}

void check_close(const Numbers& found, const Numbers& expected) {
  REQUIRE(found.size() == expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    CAPTURE(i);
    CHECK(found[i] == Catch::Approx(expected[i]).epsilon(1e-5));  // sums of f32 there and here
  }
}

TEST_CASE("likelihoods, accuracies and standard errors are those of lm-evaluation-harness") {
  const Task task = read_task(kFolder / "small.jsonl");
  const auto harness = test::parse_json(read_text_file(kFolder / "harness.json"));
  for (const char* model : {"llama", "qwen3_moe"}) {
    const auto& expected = harness[model];
    Numbers wanted;
    for (const auto& of_item : expected["log_likelihoods"])
      for (const double value : of_item) wanted.push_back(value);
    for (const std::int64_t batch : {1, 5, 64}) {
      CAPTURE(model, batch);
      const Numbers found = log_likelihoods_of(model, task, batch);
      check_close(found, wanted);
      const auto [accuracy, normalized] = score_task(task, found);
      CHECK(accuracy.mean == expected["accuracy"].get<double>());
      CHECK(accuracy.standard_error == expected["accuracy_stderr"].get<double>());
      CHECK(normalized.mean == expected["accuracy_norm"].get<double>());
      CHECK(normalized.standard_error == expected["accuracy_norm_stderr"].get<double>());
    }
  }
}

TEST_CASE("any number of ranks finds the same likelihoods, to the bit where each has all experts") {
  const Task task = read_task(kFolder / "small.jsonl");
  const Numbers alone = log_likelihoods_of("qwen3_moe", task, 3);
  for (const int size : {2, 3})
    for (const Numbers& found : on_ranks(size, 1, "qwen3_moe", task, 3)) CHECK(found == alone);
  for (const auto& [size, expert, tensor] : {std::tuple{2, 2, 1}, {4, 2, 1}, {2, 1, 2}, {4, 2, 2}}) {
    const auto found = on_ranks(size, expert, "qwen3_moe", task, 3, tensor);
    for (const Numbers& numbers : found) CHECK(numbers == found.front());
    check_close(found.front(), alone);
  }
}

/// Items of one to five choices; contexts of some items begin alike, some are one token, some too long for
/// the model; a choice may begin like another, or be another.
std::vector<Continuation> random_continuations(const ModelConfig& config) {
  std::mt19937 random(11);
  const auto ids = [&](std::size_t count) {
    std::vector<std::int32_t> out(count);
    for (std::int32_t& id : out)
      id = static_cast<std::int32_t>(random() % static_cast<unsigned>(config.vocab_size));
    return out;
  };
  const std::vector<std::int32_t> examples = ids(53);
  std::vector<Continuation> all;
  const auto most = static_cast<std::size_t>(config.max_positions);
  for (const std::size_t length : {std::size_t{1}, std::size_t{15}, std::size_t{16}, std::size_t{17},
                                   std::size_t{40}, std::size_t{70}, most - 3, most + 5}) {
    std::vector<std::int32_t> context = ids(length);
    if (length >= 70) std::copy(examples.begin(), examples.end(), context.begin());
    for (std::size_t choice = 0; choice < 1 + length % 5; ++choice) {
      std::vector<std::int32_t> tokens = ids(1 + random() % 20);
      if (choice > 0 && choice % 2 == 0) tokens = all.back().tokens;
      if (choice == 4) tokens.resize(1);
      all.push_back({context, tokens});
    }
  }
  return all;
}

TEST_CASE("what texts begin with alike is read once, and they are as likely as whole sequences are") {
  const std::string name = GENERATE(from_range(test::model_fixtures()));
  const FarSkipMode mode = GENERATE(FarSkipMode::off, FarSkipMode::full);
  CAPTURE(name, mode);
  const ModelConfig config = read_hub_config(fixtures() / name);
  const Model model = wire_model(config, {mode, {}});
  const auto weights = test::load_weights(fixtures() / name);
  const std::vector<Continuation> texts = random_continuations(config);
  InferenceEngine whole(model, weights, test::quiet_context());
  const Numbers wanted = whole_sequence_likelihoods(whole, texts, 4);
  const Numbers apart = log_likelihoods(model, weights, test::quiet_context(), texts, 1);
  REQUIRE(apart.size() == wanted.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    CAPTURE(i);
    CHECK(apart[i] == Catch::Approx(wanted[i]).epsilon(2e-5));
  }
  // With what is read of others, and in other runs: the same bits.
  for (const std::int64_t batch : {3, 8, 100})
    CHECK(log_likelihoods(model, weights, test::quiet_context(), texts, batch) == apart);
}

TEST_CASE("a choice that cannot be scored is refused with its place") {
  const Tokenizer tokenizer = *read_companions(kFolder).tokenizer;
  ModelConfig model = read_hub_config(fixtures() / "llama");
  const auto refused = [&](const std::string& context, const std::string& choice,
                           std::optional<std::int32_t> prefix = 0) {
    try {
      encode_choices({context, {" fine", choice}, 0, "t.jsonl:7"}, tokenizer, prefix, model);
    } catch (const DataError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK(refused("the", " model").empty());
  CHECK_THAT(refused("i", "ng"), ContainsSubstring("t.jsonl:7.choices[1]: adds no token"));  // "ing" is one
  CHECK_THAT(refused("", "<|begin|>"), ContainsSubstring("t.jsonl:7.choices[1]: adds no token"));
  CHECK_THAT(refused(" \n", " model", std::nullopt), ContainsSubstring("t.jsonl:7.context: empty"));
  model.max_positions = 5;
  CHECK(refused("a long context that is cut", " fine").empty());
  CHECK_THAT(refused("the", " a long choice that is not"),
             ContainsSubstring("t.jsonl:7.choices[1]") && ContainsSubstring("max_position_embeddings is 5"));
  model.vocab_size = 3;
  CHECK_THAT(refused("the", " model"), ContainsSubstring("not in the model's vocabulary of 3"));
}

TEST_CASE("a share has the standard error of a sample, and one item has none") {
  const Share share = share_of({true, false, false, true, true});
  CHECK(share.mean == 0.6);
  CHECK(share.standard_error.value() == Catch::Approx(0.2449489742783178));  // sqrt(0.3 / 5)
  CHECK(share_of({true, true}).standard_error == 0.0);
  CHECK(share_of({true}).mean == 1.0);
  CHECK_FALSE(share_of({true}).standard_error);
}

TEST_CASE("likelihoods are compared as they are, or for each character; of equal ones the first counts") {
  const Task task{"t", {{"", {"\u00e9\u00e9", "ab c"}, 1, ""}, {"", {"x", "y"}, 0, ""}}};
  const TaskScore score = score_task(task, Numbers{-2.0, -3.0, -1.0, -1.0});  // -1 and -0.75 a character
  CHECK(score.accuracy.mean == 0.5);
  CHECK(score.accuracy_normalized.mean == 1.0);
}

}  // namespace
}  // namespace farskip
