// SPDX-License-Identifier: Apache-2.0
// The order of a step is chosen from measured costs, may interleave micro-batches and repeat parts of the
// forward: none of it may change a bit.
#include <cmath>
#include <cstring>
#include <sstream>

#include "farskip/base/random.h"
#include "layouts.h"
#include "measure/measure.h"
#include "support/catch.h"
#include "support/states.h"

namespace farskip::test {
namespace {

void check_same_bits(const Outcome& got, const Outcome& want) {
  CHECK(got.steps == want.steps);
  for (const auto& [a, b] :
       {std::pair{&got.weights, &want.weights}, {&got.first, &want.first}, {&got.second, &want.second}})
    for (const auto& [name, tensor] : *b) {
      INFO(name);
      CHECK(same_bits(a->at(name), tensor));
    }
}

/// Each entry times something between 1/10 and 10.
CostTable spoil(const CostTable& table, std::uint64_t seed) {
  std::string out;
  std::istringstream lines(table.text());
  std::uint64_t number = 0;
  for (std::string line; std::getline(lines, line); ++number) {
    const std::size_t tab = line.rfind('\t');
    const double factor = std::pow(10.0, 2 * uniform_double(seed, 0, number) - 1);
    out += fmt::format("{}\t{}\n", line.substr(0, tab), factor * std::stod(line.substr(tab + 1)));
  }
  return CostTable::parse(out);
}

TEST_CASE("overlapped, interleaved and recomputed steps have the bits of the blocking one") {
  for (const FarSkipMode wiring :
       {FarSkipMode::off, FarSkipMode::attention, FarSkipMode::mlp, FarSkipMode::full})
    for (const auto& [expert, data] : {std::pair{1, 1}, {2, 1}, {2, 2}}) {
      Task task{small_model(4, 2)};
      task.wiring = wiring;
      task.steps = 2;
      task.global_batch = 16;
      task.balance_loss = true;
      const Layout blocking{expert, data, data == 2, false};
      const Outcome want = train_on(task, blocking);
      for (const Recompute again :
           {Recompute::none, Recompute::attention, Recompute::experts, Recompute::full})
        for (const int in_flight : {1, 2}) {
          Layout scheduled = blocking;
          scheduled.overlap = scheduled.scheduled = true;
          scheduled.recompute = again;
          scheduled.in_flight = in_flight;
          INFO(blocking.text() << ", wiring " << static_cast<int>(wiring) << ", recompute "
                               << static_cast<int>(again) << ", in flight " << in_flight);
          check_same_bits(train_on(task, scheduled), want);
        }
    }
}

TEST_CASE("steps that gather their weights have the bits of the blocking ones, whatever the schedule") {
  for (const FarSkipMode wiring : {FarSkipMode::off, FarSkipMode::full})
    for (const int zero : {2, 3})
      for (const auto& [expert, data] : {std::pair{1, 3}, {2, 2}}) {
        Task task{small_model(4, 2)};
        task.wiring = wiring;
        task.steps = 2;
        task.global_batch = 24;
        task.balance_loss = true;
        const Layout blocking{expert, data, zero, false};
        const Outcome want = train_on(task, blocking);
        for (const Recompute again : {Recompute::none, Recompute::full}) {
          Layout scheduled = blocking;
          scheduled.overlap = scheduled.scheduled = true;
          scheduled.recompute = again;
          INFO(blocking.text() << ", wiring " << static_cast<int>(wiring) << ", recompute "
                               << static_cast<int>(again));
          check_same_bits(train_on(task, scheduled), want);
        }
      }
}

TEST_CASE("steps in chunks have the bits of the blocking ones in chunks, whatever the schedule") {
  for (const FarSkipMode wiring : {FarSkipMode::off, FarSkipMode::full})
    for (const int chunks : {2, 5}) {
      Task task{small_model(4, 2)};
      task.wiring = wiring;
      task.steps = 2;
      task.global_batch = 16;
      task.balance_loss = true;
      Layout blocking{2, 2, true, false};
      blocking.chunks = chunks;
      const Outcome want = train_on(task, blocking);
      for (const Recompute again : {Recompute::none, Recompute::experts, Recompute::full})
        for (const int in_flight : {1, 2}) {
          Layout scheduled = blocking;
          scheduled.overlap = scheduled.scheduled = true;
          scheduled.recompute = again;
          scheduled.in_flight = in_flight;
          INFO(chunks << " chunks, wiring " << static_cast<int>(wiring) << ", recompute "
                      << static_cast<int>(again) << ", in flight " << in_flight);
          check_same_bits(train_on(task, scheduled), want);
        }
    }
}

TEST_CASE("ranks whose tables of costs differ start their collectives in one order") {
  const Model model = wire_model(small_model(4, 2), {FarSkipMode::full, {}});
  TrainEngineOptions options;
  options.micro_batch = 2;
  options.sequence_length = 16;
  options.zero = 3;
  const auto ranks = on_ranks(4, [&](const Communicator& world) {
    const Context context = quiet_context(Mesh(world, 2));
    const CostTable measured = measure_step_costs(model, options, context, 1);
    for (int round = 0; round < 5; ++round) {
      TrainEngineOptions planned = options;
      planned.costs = std::make_shared<const CostTable>(
          spoil(measured, static_cast<std::uint64_t>(round * world.size() + world.rank())));
      const auto weights = make_weights(model.config, context.mesh.position(), options.zero);
      const TrainEngine engine(model, weights, planned, context.with_own_arena());  // throws if they differ
    }
    return 1;
  });
  CHECK(ranks == std::vector<int>(4, 1));
}

TEST_CASE("what is computed again is not kept") {
  const ModelConfig model = small_model(8, 3, 6);
  const auto arena_of = [&](Recompute again) {
    TrainEngineOptions options;
    options.micro_batch = 4;
    options.sequence_length = 64;
    options.recompute = again;
    const TrainEngine engine(wire_model(model, {}), make_weights(model), options, quiet_context());
    return engine.memory().arena;
  };
  const std::size_t kept = arena_of(Recompute::none);
  CHECK(arena_of(Recompute::attention) < kept);
  CHECK(arena_of(Recompute::experts) < kept);
  CHECK(arena_of(Recompute::full) < arena_of(Recompute::attention));
  CHECK(arena_of(Recompute::full) < kept * 2 / 3);
}

}  // namespace
}  // namespace farskip::test
