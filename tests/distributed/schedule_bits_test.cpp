// The order of a step is chosen from measured costs, may interleave micro-batches and repeat parts of the
// forward: none of it may change a bit.
#include <cstring>

#include "layouts.h"
#include "support/catch.h"

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

TEST_CASE("what is computed again is not kept") {
  const ModelConfig model = small_model(8, 3, 6);
  const auto arena_of = [&](Recompute again) {
    TensorMap weights = make_parameter_tensors(list_parameters(model));
    TrainEngineOptions options;
    options.micro_batch = 4;
    options.sequence_length = 64;
    options.recompute = again;
    Arena arena;
    const TrainEngine engine(model, build_layer_graph(model), weights, options, arena, Logger(LogLevel::off));
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
