// SPDX-License-Identifier: Apache-2.0
// Ranks that share every matrix say what one rank says, with a cache and without.

#include <array>
#include <cmath>
#include <numeric>
#include <random>

#include "farskip/engine/engine.h"
#include "infer/continuous_batch.h"
#include "rank_graph.h"
#include "support/catch.h"
#include "support/context.h"
#include "support/models.h"
#include "support/states.h"

namespace farskip::test {
namespace {

constexpr std::int64_t kLength = 19;

std::vector<std::int32_t> random_text(const ModelConfig& config) {
  std::mt19937 random(11);
  std::vector<std::int32_t> text(kLength);
  for (std::int32_t& id : text)
    id = static_cast<std::int32_t>(random() % static_cast<unsigned>(config.vocab_size));
  return text;
}

/// A rank holds this of the weights.
using Weights = std::function<std::shared_ptr<States>(const MeshPosition&)>;

Weights weights_of(const fs::path& folder) {
  return [folder](const MeshPosition& mesh) { return load_weights(folder, mesh); };
}
Weights random_weights(const ModelConfig& config) {
  return [config](const MeshPosition& mesh) {
    auto states = make_weights(config, mesh);
    initialise_weights(*states, 3, 0.3);
    return states;
  };
}

/// Logits of every token of the text.
std::vector<float> read_whole(const Model& model, const Weights& weights, const Mesh& mesh) {
  InferenceEngine engine(model, weights(mesh.position()), quiet_context(mesh));
  const TensorView logits = engine.logits(random_text(model.config), kLength);
  return {logits.as<float>(), logits.as<float>() + logits.num_elements()};
}

/// The same, read in parts beside a cache: a beginning, some tokens at once, then one by one.
std::vector<float> read_in_parts(const Model& model, const Weights& weights, const Mesh& mesh, bool fresh) {
  CacheSize size{.block_tokens = 4, .max_sequences = 2, .max_tokens = kLength};
  size.num_blocks = 2 * size.max_blocks();
  CachedEngine engine(model, weights(mesh.position()), quiet_context(mesh), size);
  std::vector<std::int32_t> blocks(static_cast<std::size_t>(size.max_blocks()));
  std::iota(blocks.rbegin(), blocks.rend(), 1);
  engine.set_blocks(1, blocks);
  const std::vector<std::int32_t> text = random_text(model.config);
  std::vector<float> all;
  std::int64_t position = 0;
  for (const std::int64_t count : {7, 5, 1, 1, 1, 1, 1, 1, 1}) {
    CachedTokens run;
    run.fresh = fresh && position == 0;
    for (const std::int64_t end = position + count; position < end; ++position)
      run.add(text[static_cast<std::size_t>(position)], 1, position, true);
    engine.next(run, std::vector<Draw>(run.output_rows.size()));
    const TensorView logits = engine.logits();
    all.insert(all.end(), logits.as<float>(), logits.as<float>() + logits.num_elements());
  }
  return all;
}

double worst_difference(const std::vector<float>& got, const std::vector<float>& want) {
  if (got.size() != want.size()) return HUGE_VAL;
  double worst = 0, norm = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(got[i]) - want[i]));
    norm = std::max(norm, std::abs(static_cast<double>(want[i])));
  }
  return std::isfinite(worst) ? worst / norm : HUGE_VAL;
}

/// The loss of each token of the text at the next one, some of them not counted.
std::vector<float> read_losses(const Model& model, const Weights& weights, const Mesh& mesh) {
  InferenceEngine engine(model, weights(mesh.position()), quiet_context(mesh));
  Batch batch{random_text(model.config), {}, {}};
  batch.targets.assign(batch.tokens.begin() + 1, batch.tokens.end());
  batch.targets.push_back(-1);
  batch.targets[3] = -1;
  const std::span<const float> losses = engine.token_losses(batch, kLength);
  return {losses.begin(), losses.end()};
}

void check_ranks(const Model& model, const Weights& weights) {
  const std::vector<float> want = read_whole(model, weights, make_self_mesh()),
                           want_losses = read_losses(model, weights, make_self_mesh());
  CHECK(want_losses[3] == 0);
  struct Sizes {
    int tensor, expert;
  };
  for (const auto& [tensor, expert] : {Sizes{2, 1}, Sizes{2, 2}, Sizes{4, 1}}) {
    CAPTURE(tensor, expert);
    const auto said = on_ranks(tensor, [&](const Communicator& world) {
      const Mesh mesh(world, expert, tensor);
      return std::array{read_whole(model, weights, mesh), read_in_parts(model, weights, mesh, false),
                        read_in_parts(model, weights, mesh, true), read_losses(model, weights, mesh)};
    });
    for (const auto& rank : said) {
      CHECK(rank == said[0]);
      for (std::size_t i = 0; i < 3; ++i) CHECK(worst_difference(rank[i], want) < 2e-5);
      CHECK(worst_difference(rank[3], want_losses) < 2e-5);
      CHECK(rank[3][3] == 0);
    }
  }
}

TEST_CASE("ranks that share every matrix give the logits of one rank, each of them the same bits") {
  const std::string name = GENERATE(from_range(model_fixtures()));
  const auto mode = GENERATE(FarSkipMode::off, FarSkipMode::full);
  CAPTURE(name, static_cast<int>(mode));
  const ModelConfig config = read_hub_config(fixtures() / name);
  check_ranks(wire_model(config, {mode, {}}), weights_of(fixtures() / name));
}

TEST_CASE("ranks that share a vocabulary which they do not divide give the logits of one rank") {
  for (const char* name : {"qwen3_moe", "qwen3_moe_tied", "deepseek_v2"})
    for (const std::int64_t vocabulary : {61, 13, 158}) {
      CAPTURE(name, vocabulary);
      ModelConfig config = read_hub_config(fixtures() / name);
      config.vocab_size = vocabulary;
      check_ranks(wire_model(config, {FarSkipMode::full, {}}), random_weights(config));
    }
}

/// Greedily, sampled, and with a penalty; more texts than places, so that blocks change hands.
std::vector<std::vector<std::int32_t>> continue_texts(const Model& model, const Weights& weights,
                                                      const Mesh& mesh) {
  CacheSize size{.block_tokens = 4, .max_sequences = 2, .max_tokens = 24};
  size.num_blocks = 12;
  CachedEngine engine(model, weights(mesh.position()), quiet_context(mesh), size);
  std::vector<std::vector<std::int32_t>> texts(4);
  if (mesh.world().rank() > 0) {
    engine.follow();
    return texts;
  }
  engine.lead();
  ContinuousBatch batch(engine, {});
  for (std::int64_t i = 0; i < 4; ++i) {
    GenerationRequest request;
    const std::vector<std::int32_t> text = random_text(model.config);
    request.prompt = {text.begin(), text.begin() + 3 + i};
    request.max_tokens = 9;
    request.sampling.temperature = i % 2 == 0 ? 0.0 : 0.7;
    request.sampling.repetition_penalty = i < 2 ? 1.0 : 1.3;
    request.sampling.seed = 5 + i;
    batch.submit(std::move(request));
  }
  while (batch.num_open() > 0)
    for (ContinuousBatch::Ended& ended : batch.step())
      texts[static_cast<std::size_t>(ended.request)] = ended.text.ids;
  return texts;
}

/// Three texts of other lengths at once, then some of the next tokens of each, each run in `parts`. Ordered
/// by `costs` if there are any, else made-up ones are noted in `noted`.
std::vector<float> read_texts(const Model& model, const fs::path& weights, const Mesh& mesh, int parts,
                              bool fresh, const CostTable* costs, CostTable& noted) {
  CacheSize size{.block_tokens = 4, .max_sequences = 3, .max_tokens = kLength};
  size.num_blocks = 3 * size.max_blocks();
  CachedEngine engine(model, load_weights(weights, mesh.position()), quiet_context(mesh), size, 0,
                      {.waits = Waits::late, .costs = costs, .in_flight = parts});
  std::mt19937 random(5);
  engine.observe([&](const Executor& executor, const std::vector<StepTime>&) {
    const Graph& graph = executor.graph();
    for (std::size_t n = 0; costs == nullptr && n < graph.nodes().size(); ++n)
      noted.add(graph, NodeId(n),
                static_cast<double>(random() % 100 + 1) * (graph.nodes()[n].op->collective ? 10 : 1));
  });
  std::vector<std::int32_t> blocks(static_cast<std::size_t>(size.max_blocks()));
  for (std::int32_t s = 0; s < 3; ++s) {
    std::iota(blocks.begin(), blocks.end(), s * static_cast<std::int32_t>(size.max_blocks()));
    engine.set_blocks(s, blocks);
  }
  const std::vector<std::int32_t> text = random_text(model.config);
  std::array<std::int64_t, 3> position{};
  std::vector<float> all;
  for (const std::array<std::int64_t, 3> counts :
       {std::array<std::int64_t, 3>{9, 4, 7}, {1, 1, 1}, {3, 1, 2}}) {
    CachedTokens run;
    run.fresh = fresh && position[0] == 0;
    for (std::size_t s = 0; s < 3; ++s)
      for (std::int64_t i = 0; i < counts[s]; ++i, ++position[s])
        run.add(text[static_cast<std::size_t>(position[s])], static_cast<std::int64_t>(s), position[s],
                i + 2 >= counts[s]);
    std::vector<Draw> draws(run.output_rows.size());
    for (std::size_t i = 0; i < draws.size(); ++i)
      draws[i] = {{.temperature = i % 2 == 0 ? 0.0 : 0.8, .seed = static_cast<std::int64_t>(i)}, 1};
    for (const std::int32_t id : engine.next(run, draws)) all.push_back(static_cast<float>(id));
    const TensorView logits = engine.logits();
    all.insert(all.end(), logits.as<float>(), logits.as<float>() + logits.num_elements());
  }
  return all;
}

TEST_CASE("a run in two parts, blocking or interleaved, gives the bits of the run in one") {
  const std::string name = GENERATE("deepseek_v2", "qwen3_moe", "llama4_text");
  const auto mode = GENERATE(FarSkipMode::off, FarSkipMode::full);
  const Model model = wire_model(read_hub_config(fixtures() / name), {mode, {}});
  for (const bool fresh : {false, true}) {
    CAPTURE(name, static_cast<int>(mode), fresh);
    const auto said = on_ranks(2, [&](const Communicator& world) {
      const Mesh mesh(world, 2, 2);
      CostTable noted;
      const auto read = [&](int parts, const CostTable* costs) {
        return read_texts(model, fixtures() / name, mesh, parts, fresh, costs, noted);
      };
      auto whole = read(1, nullptr), halves = read(2, nullptr), thirds = read(3, nullptr);
      return std::array{whole, halves, thirds, read(2, &noted), read(3, &noted)};
    });
    // A text that begins alone is read by another kernel than several where attention is in chunks.
    const bool other_kernel = fresh && model.config.long_text.chunk > 0;
    for (const auto& rank : said)
      for (const std::vector<float>& values : rank) {
        const bool same = values == said[0][0];
        CHECK((same || (other_kernel && worst_difference(values, said[0][0]) < 2e-5)));
      }
  }
}

TEST_CASE("texts that several ranks continue together are those of one rank") {
  for (const char* name : {"deepseek_v3", "qwen3_moe", "odd"}) {
    CAPTURE(name);
    const bool odd = name == std::string_view("odd");
    const fs::path folder = fixtures() / (odd ? "qwen3_moe_tied" : name);
    ModelConfig config = read_hub_config(folder);
    if (odd) config.vocab_size = 157;
    const Weights weights = odd ? random_weights(config) : weights_of(folder);
    const Model model = wire_model(config, {FarSkipMode::full, {}});
    const auto alone = continue_texts(model, weights, make_self_mesh());
    for (const auto& text : alone) CHECK(text.size() == 9);
    for (const int expert : {1, 2}) {
      const auto together = on_ranks(2, [&](const Communicator& world) {
        return continue_texts(model, weights, Mesh(world, expert, 2));
      });
      CHECK(together[0] == alone);
    }
  }
}

}  // namespace
}  // namespace farskip::test
