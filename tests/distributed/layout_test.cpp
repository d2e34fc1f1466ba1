// SPDX-License-Identifier: Apache-2.0
// One training run, on ranks laid out in every way: what it computes must not depend on the layout.

#include <array>
#include <cmath>
#include <random>

#include "data/sampler.h"
#include "engine/engine_options.h"
#include "layouts.h"
#include "same_training.h"
#include "support/catch.h"
#include "support/states.h"

namespace farskip::test {
namespace {

const Logger kQuiet(LogLevel::off);

void check_layouts(const Task& task, const std::vector<Layout>& layouts) {
  const Outcome alone = train_on(task, {});
  for (const StepNumbers& step : alone.steps) {
    REQUIRE(std::isfinite(step.loss));
    REQUIRE(step.norm > 0);
  }
  for (const Layout& layout : layouts) {
    INFO(layout.text());
    check_same_training(train_on(task, layout), alone);
  }
}

/// Expert x data: 1x2, 2x1, 2x2, 4x1, 1x3, with ZeRO and without.
std::vector<Layout> usual_layouts() {
  std::vector<Layout> layouts{{1, 1, true}};
  for (const bool zero : {false, true})
    for (const auto& [expert, data] : {std::pair{1, 2}, {2, 1}, {2, 2}, {4, 1}, {1, 3}})
      layouts.push_back({expert, data, zero});
  return layouts;
}

Task fixture_task(const std::string& name, FarSkipMode wiring) {
  const fs::path folder = fixtures() / name;
  return {.model = read_hub_config(folder), .weights = folder, .wiring = wiring};
}

TEST_CASE("Muon trains the same on every layout, as no matrix is cut") {
  for (const char* name : {"deepseek_v2", "qwen3_moe"}) {
    Task task = fixture_task(name, FarSkipMode::full);
    task.optimizer = OptimizerName::muon;
    check_layouts(task, usual_layouts());
  }
}

TEST_CASE("DeepSeek-V2 trains the same on every layout") {
  check_layouts(fixture_task("deepseek_v2", FarSkipMode::off), usual_layouts());
  Task task = fixture_task("deepseek_v2", FarSkipMode::full);
  task.balance_loss = task.document_mask = true;
  check_layouts(task, usual_layouts());
}

TEST_CASE("a model trains the same in any number of chunks") {
  Task task = fixture_task("deepseek_v2", FarSkipMode::full);
  task.balance_loss = task.document_mask = true;
  task.sequence_length = 17;
  std::vector<Layout> layouts;
  for (const int chunks : {2, 3, 16})
    for (const auto& [expert, data] : {std::pair{1, 2}, {2, 1}, {2, 2}, {4, 1}})
      layouts.push_back({.expert = expert, .data = data, .zero = chunks == 2, .chunks = chunks});
  check_layouts(task, layouts);
  // No token's value changes: the first loss, before any update, is the same to the bit.
  for (const Layout& layout : {Layout{2, 1, false}, Layout{2, 2, true}}) {
    Layout cut = layout;
    cut.chunks = 2;
    CHECK(train_on(task, cut).steps[0].loss == train_on(task, layout).steps[0].loss);
  }
  // Where the experts are on one rank nothing is cut.
  check_same_bits(train_on(task, {.data = 2, .chunks = 3}), train_on(task, {.data = 2}));
  task = fixture_task("qwen3_moe", FarSkipMode::off);
  check_layouts(task, {{.expert = 4, .chunks = 2}, {.expert = 2, .data = 2, .zero = 1, .chunks = 5}});
}

TEST_CASE("a router with a bias, and weights on what experts read, train the same on every layout") {
  for (const char* name : {"deepseek_v3", "llama4_text"}) {
    INFO(name);
    Task task = fixture_task(name, FarSkipMode::full);
    task.balance_loss = task.document_mask = true;
    check_layouts(task, {{1, 2, true}, {2, 1, false}, {2, 2, true}, {.expert = 2, .data = 1, .chunks = 2}});
  }
}

TEST_CASE("Qwen3-MoE trains the same on every layout") {
  check_layouts(fixture_task("qwen3_moe", FarSkipMode::full), usual_layouts());
  Task task = fixture_task("qwen3_moe", FarSkipMode::off);
  task.balance_loss = task.document_mask = true;
  check_layouts(task, usual_layouts());
}

/// Tensor x data, with whole experts on each rank of a tensor group, and with every expert cut.
std::vector<Layout> tensor_layouts() {
  return {{.tensor = 2},
          {.tensor = 4},  // of few heads of keys and values, several ranks have the same
          {.expert = 2, .tensor = 2},
          {.data = 2, .zero = 1, .tensor = 2},
          {.expert = 2, .data = 2, .zero = 1, .tensor = 2},
          {.expert = 2, .data = 2, .recompute = Recompute::full, .tensor = 2}};
}

TEST_CASE("every family trains the same where ranks share every matrix") {
  for (const char* name : {"deepseek_v2", "deepseek_v3", "qwen3_moe", "llama4_text", "mixtral", "olmoe",
                           "instella_moe", "llama_biases", "llama_mlp_biases", "qwen3", "qwen3_moe_tied"})
    for (const FarSkipMode wiring : {FarSkipMode::off, FarSkipMode::full}) {
      INFO(name << ", " << name_of(farskip_mode_names, wiring));
      Task task = fixture_task(name, wiring);
      task.balance_loss = !task.model.moe_layers.empty();
      task.document_mask = wiring == FarSkipMode::full;
      check_layouts(task, tensor_layouts());
    }
}

TEST_CASE("a vocabulary that the ranks do not divide is cut, tied or not, and trains the same") {
  for (const char* name : {"qwen3_moe", "qwen3_moe_tied"})
    for (const std::int64_t vocabulary : {61, 13}) {
      INFO(name << ", " << vocabulary << " ids");
      Task task{.model = read_hub_config(fixtures() / name), .wiring = FarSkipMode::full};
      task.model.vocab_size = vocabulary;
      task.balance_loss = true;
      check_layouts(task, tensor_layouts());
      task.uncounted_every = 2;
      check_layouts(task, {{.tensor = 4}, {.data = 2, .zero = 3, .tensor = 2}});
    }
  Task task{.model = read_hub_config(fixtures() / "qwen3_moe")};
  task.model.vocab_size = 5;
  CHECK_THROWS_WITH(train_on(task, {.tensor = 4}), ContainsSubstring("parallel.tensor is 4") &&
                                                       ContainsSubstring("model.embed_tokens.weight"));
}

TEST_CASE("a model whose 12 experts are 3, 4, 6 or 12 to a rank trains the same on every layout") {
  Task task{.model = small_model(12, 5), .wiring = FarSkipMode::full};
  task.balance_loss = true;
  std::vector<Layout> layouts = usual_layouts();
  layouts.push_back({3, 1, false});
  layouts.push_back({3, 1, true});
  check_layouts(task, layouts);
  task.wiring = FarSkipMode::off;
  task.balance_loss = false;
  task.document_mask = true;
  check_layouts(task, layouts);
}

TEST_CASE("any model trains the same on any layout") {
  std::mt19937 random(5);
  const auto pick = [&](std::initializer_list<std::int64_t> from) {
    return *(from.begin() + random() % from.size());
  };
  for (int i = 0; i < 24; ++i) {
    const Layout layout{static_cast<int>(pick({1, 2, 3, 4, 6})), static_cast<int>(pick({1, 2, 3})),
                        random() % 2 == 0, random() % 2 == 0};
    if (layout.ranks() > 6) continue;
    // In statements of their own: compilers evaluate arguments in orders of their own, and would test other
    // models.
    const std::int64_t experts = layout.expert * pick({1, 2, 3}) + (layout.expert == 1 ? 3 : 0);
    Task task{.model = small_model(experts, 1, pick({2, 3, 4}))};
    task.model.moe.top_k =
        1 + static_cast<std::int64_t>(
                random() % static_cast<unsigned long>(std::min<std::int64_t>(task.model.moe.num_experts, 4)));
    constexpr std::array wirings{FarSkipMode::off, FarSkipMode::attention, FarSkipMode::mlp,
                                 FarSkipMode::full};
    task.wiring = wirings[random() % 4];
    task.micro_batch = pick({1, 2, 3});
    task.global_batch = task.micro_batch * layout.ranks() * pick({1, 2, 4});
    task.sequence_length = pick({1, 5, 9, 16});
    task.document_mask = random() % 2 == 0;
    task.balance_loss = random() % 2 == 0;
    INFO(layout.text() << ", run " << i << ": " << task.model.moe.num_experts << " experts, top "
                       << task.model.moe.top_k << ", " << task.global_batch << " sequences of "
                       << task.sequence_length << ", " << task.micro_batch << " at once");
    check_same_training(train_on(task, layout), train_on(task, {}));
  }
}

TEST_CASE("wirings other than FarSkip's train the same on every layout") {
  for (const FarSkipMode wiring : {FarSkipMode::ladder, FarSkipMode::shortcut, FarSkipMode::delay}) {
    INFO(name_of(farskip_mode_names, wiring));
    Task task{.model = small_model(8, 3), .wiring = wiring};
    task.balance_loss = true;
    check_layouts(task, {{2, 1, false}, {2, 2, true}});
  }
}

/// Expert x data and tensor x data, two replicas or more of everything or of some.
std::vector<Layout> replicated_layouts() {
  return {{1, 2},
          {2, 1},
          {2, 2},
          {4, 1},
          {1, 3},
          {.data = 2, .tensor = 2},
          {.expert = 2, .data = 2, .tensor = 2}};
}

TEST_CASE("gradients and weights in parts train the same, and with one micro-batch to the bit") {
  for (const char* name : {"deepseek_v2", "qwen3_moe_tied", "llama4_text"}) {
    Task task = fixture_task(name, FarSkipMode::full);
    task.balance_loss = task.document_mask = true;
    task.global_batch = 12;
    const Outcome alone = train_on(task, {});
    for (Layout layout : replicated_layouts()) {
      if (task.model.moe.num_experts % layout.expert != 0) continue;
      for (const bool once : {true, false}) {
        task.micro_batch = once ? task.global_batch / layout.readers() : 1;
        layout.zero = 1;
        const Outcome moments = train_on(task, layout);
        layout.zero = 2;
        INFO(name << ", " << layout.text() << ", micro-batches of " << task.micro_batch);
        const Outcome gradients = train_on(task, layout);
        check_same_training(gradients, alone);
        if (once && gradients.repeated == 0) check_same_bits(gradients, moments);
        layout.zero = 3;
        check_same_bits(train_on(task, layout), gradients);
      }
    }
  }
}

TEST_CASE("weights in parts train the same with micro-batches in flight, recomputation, chunks and Muon") {
  Task task = fixture_task("deepseek_v2", FarSkipMode::full);
  task.balance_loss = true;
  task.global_batch = 16;
  for (const int zero : {2, 3})
    check_layouts(task,
                  {{.expert = 2, .data = 2, .zero = zero, .in_flight = 2},
                   {.data = 4, .zero = zero, .recompute = Recompute::full},
                   {.expert = 2, .data = 2, .zero = zero, .chunks = 3, .recompute = Recompute::experts}});
  task.optimizer = OptimizerName::muon;
  check_layouts(task, {{.expert = 2, .data = 2, .zero = 2}, {.data = 4, .zero = 3}});
}

TEST_CASE("one micro-batch a step, or many, train the same") {
  Task task{.model = small_model(8, 3), .wiring = FarSkipMode::full, .global_batch = 8};
  const Outcome alone = train_on(task, {});
  for (const std::int64_t micro_batch : {1, 2, 4}) {
    task.micro_batch = micro_batch;
    for (const Layout& layout : {Layout{2, 1, true}, Layout{2, 1, false}, Layout{1, 2, true}}) {
      INFO(layout.text() << ", micro-batches of " << micro_batch);
      check_same_training(train_on(task, layout), alone);
    }
  }
}

TEST_CASE("a model without experts trains the same on every number of ranks") {
  Task task{.model = small_model(8, 2)};
  task.model.moe_layers.assign(task.model.moe_layers.size(), false);
  check_layouts(task, {{1, 2, false}, {1, 2, true}, {1, 3, true}, {2, 1, true}});
}

TEST_CASE("a layout gives the same bits in every run, and whether it waits at once or late") {
  Task task = fixture_task("qwen3_moe", FarSkipMode::full);
  task.balance_loss = true;
  for (const Layout& layout :
       {Layout{1, 3, 1}, Layout{2, 2, 0}, Layout{2, 2, 1}, Layout{4, 1, 1}, Layout{2, 2, 2}, Layout{1, 3, 3},
        Layout{2, 2, 3}, Layout{.data = 2, .zero = 3, .tensor = 2}, Layout{.expert = 4, .tensor = 4}}) {
    INFO(layout.text());
    const Outcome once = train_on(task, layout);
    check_same_bits(train_on(task, layout), once);
    Layout at_once = layout;
    at_once.overlap = false;
    check_same_bits(train_on(task, at_once), once);
  }
}

TEST_CASE("where all rows go to one rank, the step is repeated in smaller parts and no row is lost") {
  // All tokens are one token: all rows go to the same expert, and its rank gets twice to four times its
  // share.
  Task task{.model = small_model(8, 1), .wiring = FarSkipMode::full};
  task.only_token = 7;
  task.balance_loss = true;
  for (const std::int64_t micro_batch : {1, 4}) {
    task.micro_batch = micro_batch;
    task.global_batch = 16;
    const Outcome alone = train_on(task, {});
    CHECK(alone.repeated == 0);
    CHECK(alone.steps[0].load == Catch::Approx(8));
    for (const Layout& layout : {Layout{4, 1, false}, Layout{4, 1, true}, Layout{4, 1, true, false},
                                 Layout{.expert = 4, .chunks = 3}, Layout{4, 1, 2}, Layout{4, 1, 3}}) {
      INFO(layout.text() << ", micro-batches of " << micro_batch);
      const Outcome outcome = train_on(task, layout);
      CHECK(outcome.repeated == task.steps);
      check_same_training(outcome, alone);
    }
    for (const Layout& layout : {Layout{2, 1, false}, Layout{2, 2, true}, Layout{1, 2, true}}) {
      INFO(layout.text() << ", micro-batches of " << micro_batch);
      const Outcome outcome = train_on(task, layout);
      CHECK(outcome.repeated == 0);  // twice an even share is all there is
      check_same_training(outcome, alone);
    }
  }
}

/// Bytes of one sequence, all of it routed to one rank.
std::uint64_t sequence_memory(const Task& task, int expert) {
  TrainEngineOptions options = options_of(task, {.expert = expert});
  options.micro_batch = 1;
  options.routed_rows_memory.reset();
  const RoutedRowsPlan plan = plan_routed_rows(task.model, options, expert);
  return plan.bytes / static_cast<std::uint64_t>(plan.max_rows) *
         static_cast<std::uint64_t>(task.sequence_length * task.model.moe.top_k);
}

TEST_CASE("with little memory for routed rows the step is repeated and the numbers agree") {
  Task task{.model = small_model(8, 3), .global_batch = 16, .micro_batch = 4};
  task.document_mask = task.balance_loss = true;
  const Outcome alone = train_on(task, {});
  for (const int expert : {2, 4}) {
    task.routed_rows_memory = sequence_memory(task, expert);
    for (const Layout& layout :
         {Layout{expert, 1, false}, Layout{expert, 1, true}, Layout{.expert = expert, .scheduled = true}}) {
      INFO(layout.text());
      const Outcome outcome = train_on(task, layout);
      CHECK(outcome.repeated == task.steps);
      check_same_training(outcome, alone);
    }
  }
}

TEST_CASE("the bound of routed rows follows the memory, and too little is refused with what is needed") {
  Task task{.model = small_model(8, 3), .global_batch = 48, .micro_batch = 6};
  const std::int64_t all = task.micro_batch * task.sequence_length * 3;
  CHECK(plan_routed_rows(task.model, options_of(task, {}), 1).max_rows == 0);
  for (const int expert : {2, 4, 8}) {
    const RoutedRowsPlan plan = plan_routed_rows(task.model, options_of(task, {}), expert);
    CHECK(plan.even_rows == all / expert);
    CHECK(plan.max_rows == std::min(all, 2 * plan.even_rows));
    CHECK((plan.fallback_batch == 0) == (plan.max_rows == all));
    const std::uint64_t sequence = sequence_memory(task, expert);
    task.routed_rows_memory = sequence;
    const RoutedRowsPlan small = plan_routed_rows(task.model, options_of(task, {}), expert);
    CHECK(small.fallback_batch == 1);
    CHECK(small.max_rows == all / task.micro_batch);
    CHECK(small.bytes == sequence);
    task.routed_rows_memory = 5 * sequence;  // of 6 sequences 5 fit, but equal parts of 3 do
    CHECK(plan_routed_rows(task.model, options_of(task, {}), expert).fallback_batch == 3);
    task.routed_rows_memory = sequence * 100;
    CHECK(plan_routed_rows(task.model, options_of(task, {}), expert).fallback_batch == 0);
    const auto per_sequence = static_cast<std::uint64_t>(task.sequence_length) * 3;
    const std::uint64_t share = (per_sequence + static_cast<std::uint64_t>(expert) - 1) /
                                static_cast<std::uint64_t>(expert),
                        least = sequence / per_sequence * share;
    task.routed_rows_memory = least;
    const RoutedRowsPlan tight = plan_routed_rows(task.model, options_of(task, {}), expert);
    CHECK(tight.max_rows == static_cast<std::int64_t>(share));
    CHECK(tight.fallback_rows == static_cast<std::int64_t>(per_sequence));  // which holds any routing
    task.routed_rows_memory = least - 1;
    CHECK_THROWS_WITH(plan_routed_rows(task.model, options_of(task, {}), expert),
                      ContainsSubstring(std::to_string(least - 1)) &&
                          ContainsSubstring(std::to_string(least)) &&
                          ContainsSubstring("routed_rows_memory"));
    CHECK_THROWS_AS(train_on(task, {.expert = expert}), UsageError);
    task.routed_rows_memory.reset();
  }
}

TEST_CASE("a rank without a single counted target takes part") {
  Task task{.model = small_model(8, 3), .wiring = FarSkipMode::full};
  task.balance_loss = true;
  task.uncounted_every = 2;  // rank 1 of 2, ranks 1 and 3 of 4
  check_layouts(task, {{1, 2, false}, {1, 2, true}, {2, 1, false}, {2, 1, true}, {4, 1, true}, {2, 2, true}});
}

// ---- validation

Evaluation evaluate_on(const Task& task, const Layout& layout, const Sampler& sampler, std::int64_t batch,
                       std::int64_t max_sequences) {
  const std::vector<Evaluation> results = on_ranks(layout.ranks(), [&](const Communicator& world) {
    const Mesh mesh(world, layout.expert, layout.tensor);
    InferenceEngine engine(wire_model(task.model, {task.wiring, {}}),
                           load_weights(task.weights, mesh.position()), quiet_context(mesh));
    return evaluate(engine, sampler, batch, max_sequences);
  });
  for (const Evaluation& e : results)
    if (e.loss != results[0].loss || e.accuracy != results[0].accuracy || e.tokens != results[0].tokens)
      throw std::runtime_error("ranks have different results");
  return results[0];
}

TEST_CASE("validation gives the same numbers on every layout, however many sequences there are") {
  const Task task = fixture_task("deepseek_v2", FarSkipMode::full);
  const auto tokens = std::make_shared<TokenFile>((fixtures() / "deepseek_v2" / "tokens").string());
  for (const bool document_mask : {false, true}) {
    const Sampler sampler({{tokens, 1.0}},
                          {.sequence_length = 32, .shuffle = false, .document_mask = document_mask});
    for (const std::int64_t sequences : {0, 1, 7, 12}) {
      const Evaluation alone = evaluate_on(task, {}, sampler, 3, sequences);
      const auto read = sequences == 0 ? static_cast<std::int64_t>(sampler.samples_per_epoch(0)) : sequences;
      CHECK(alone.tokens <= read * 32);
      CHECK(alone.tokens > read * 24);
      for (const Layout& layout : {Layout{1, 2}, Layout{2, 1}, Layout{2, 2}, Layout{4, 1}, Layout{1, 3},
                                   Layout{.tensor = 2}, Layout{.expert = 2, .data = 2, .tensor = 2}}) {
        INFO(layout.text() << ", " << sequences << " sequences");
        const Evaluation e = evaluate_on(task, layout, sampler, 2, sequences);
        CHECK(e.tokens == alone.tokens);
        CHECK(e.loss == Catch::Approx(alone.loss).epsilon(1e-6));
        CHECK(e.accuracy == alone.accuracy);
      }
    }
  }
}

// ---- what is refused

TEST_CASE("layouts that do not divide what they share are refused with both numbers") {
  const Task task{.model = small_model(8, 2)};
  CHECK_THROWS_WITH(train_on(task, {.expert = 3}),
                    ContainsSubstring("parallel.expert is 3") && ContainsSubstring("8 experts"));
  CHECK_THROWS_WITH(
      on_ranks(4, [](const Communicator& world) { return Mesh(world, 3).position().expert_size; }),
      ContainsSubstring("parallel.expert is 3") && ContainsSubstring("4 ranks") &&
          ContainsSubstring("1, 2, 4"));
  RunConfig config;
  config.train.global_batch = 24;
  config.train.micro_batch = 3;
  CHECK(engine_options(config, 4).micro_batches == 2);
  CHECK_THROWS_WITH(engine_options(config, 5), ContainsSubstring("train.global_batch is 24") &&
                                                   ContainsSubstring("5 ranks") &&
                                                   ContainsSubstring("multiple of 15"));
}

}  // namespace
}  // namespace farskip::test
