// SPDX-License-Identifier: Apache-2.0
// Plans of a step against the engine that they speak for.

#include "plan/plan_report.h"

#include <set>

#include "comm/mirror.h"
#include "measure/bench_joined_step.h"
#include "measure/measure.h"
#include "measure/measure_without_peers.h"
#include "passes/farskip.h"
#include "reference/rounded.h"
#include "support/catch.h"
#include "support/context.h"
#include "support/plan_requests.h"
#include "support/states.h"
#include "support/support.h"

namespace farskip {
namespace {

using test::make_distill_request;
using test::make_plan_request;

const Logger kQuiet(LogLevel::off);

TEST_CASE("a plan has the collectives, the memory and the rows of the engine at its place") {
  for (const auto& [micro_batches, zero] :
       {std::pair{1, 1}, {2, 1}, {4, 1}, {2, 0}, {4, 2}, {1, 3}, {4, 3}}) {
    const PlanRequest request = make_plan_request({4, 0, 2}, micro_batches, zero);
    const Mesh mesh = make_mirror_mesh(request.mesh);
    const auto weights = test::make_weights(request.model, request.mesh, zero);
    initialise_weights(*weights, 0, 0.02);
    TrainEngineOptions options = request.options;
    options.overlap = false;
    TrainEngine engine(wire_model(request.model), weights, options, test::quiet_context(mesh));
    double bytes = 0;
    std::int64_t count = 0;
    engine.observe([&](const Executor& executor, const std::vector<StepTime>& times) {
      for (const StepTime& t : times)
        if (t.kind == StepKind::start) {
          bytes += executor.graph().cost(t.node).wire_bytes;
          ++count;
        }
    });
    std::vector<Batch> batches;
    for (std::int64_t i = 0; i < micro_batches; ++i)
      batches.push_back(random_batch(1, static_cast<std::uint64_t>(i), 64, request.model.vocab_size));
    engine.compute_gradients(batches, 1.0F / 64, 0.0F);
    engine.update(0.0, 1);
    REQUIRE(engine.num_repeated() == 0);

    const WiringReport plan = plan_step(request, kQuiet).farskip;
    double planned_bytes = 0;
    std::int64_t planned_count = 0;
    for (const PlannedCollective& c : plan.collectives) {
      planned_bytes += static_cast<double>(c.repeats) * c.bytes;
      planned_count += c.repeats;
      CHECK(c.exposed_seconds <= c.transport_seconds * (1 + 1e-9));
    }
    CAPTURE(micro_batches, zero);
    CHECK(planned_count == count);
    CHECK(planned_bytes == Catch::Approx(bytes));
    const MemoryReport memory = engine.memory();
    CHECK(plan.blocking_memory.weights == memory.weights);
    CHECK(plan.blocking_memory.gradients == memory.gradients);
    CHECK(plan.blocking_memory.moments == memory.moments);
    CHECK(static_cast<double>(plan.blocking_memory.arena) ==
          Catch::Approx(static_cast<double>(memory.arena)).epsilon(0.02));
  }
}

TEST_CASE("in the order of training a plan has the memory of the engine, whatever is dealt out") {
  for (const int zero : {0, 1, 2, 3}) {
    PlanRequest request = make_plan_request({4, 0, 2}, 2, zero);
    MirrorMeasurement measurement = choose_measurement(request, 1e12, 1);
    measurement.steps = 1;
    request.costs.table = std::make_shared<const CostTable>(measure_without_peers(measurement, kQuiet));
    request.costs.links = {};
    TrainEngineOptions options = request.options;
    options.costs = request.costs.table;
    const TrainEngine engine(wire_model(request.model), test::make_weights(request.model, request.mesh, zero),
                             options, test::quiet_context(make_mirror_mesh(request.mesh)));
    const MemoryReport planned = plan_scheduled_step(request, kQuiet).memory;
    CAPTURE(zero);
    CHECK(static_cast<double>(planned.total()) ==
          Catch::Approx(static_cast<double>(engine.memory().total())).epsilon(0.03));
  }
}

TEST_CASE("chunks are compared where they can be: experts over ranks, and costs that know of chunks") {
  const auto chunks_planned = [](const PlanRequest& request) {
    std::set<int> chunks;
    for (const OtherSchedule& other : plan_step(request, kQuiet).others) chunks.insert(other.expert_chunks);
    return chunks;
  };
  PlanRequest request = make_plan_request({4, 0, 2}, 1);
  CHECK(chunks_planned(request) == std::set<int>{2});
  request.options.expert_chunks = 3;
  CHECK(chunks_planned(request) == std::set<int>{1});
  request.options.expert_chunks = 1;
  CHECK(chunks_planned(make_plan_request({4, 0, 1}, 1)).empty());
  PlanRequest one_token = make_plan_request({4, 0, 2}, 1), dense = one_token;
  one_token.options.sequence_length = one_token.options.micro_batch = 1;
  CHECK(chunks_planned(one_token).empty());
  dense.model.moe_layers.assign(dense.model.moe_layers.size(), false);
  CHECK(chunks_planned(dense).empty());
  MirrorMeasurement measurement = choose_measurement(request, 1e12, 1);
  CHECK(measurement.expert_chunks == std::vector<int>{1, 2});
  measurement.steps = 1;
  request.costs.table = std::make_shared<const CostTable>(measure_without_peers(measurement, kQuiet));
  CHECK(chunks_planned(request) == std::set<int>{2});
  measurement.expert_chunks = {1};
  request.costs.table = std::make_shared<const CostTable>(measure_without_peers(measurement, kQuiet));
  CHECK(chunks_planned(request).empty());
}

TEST_CASE("chunks that a run leaves open are one, or two where a plan with two is quicker by enough") {
  PlanRequest request = make_plan_request({2, 0, 2}, 4);
  request.options.expert_chunks = 0;
  // Standard wiring has no other window, and the experts' work takes about as long as their rows do.
  request.model.farskip = {FarSkipMode::off, {}};
  request.model.moe.expert_size *= 8;
  request.options.sequence_length = 64;
  request.costs.links.fill({0, 100e6});
  CHECK(choose_expert_chunks(request, kQuiet) == 2);
  request.options.expert_chunks = 2;
  const double two = plan_step(request, kQuiet).farskip.scheduled_seconds;
  request.options.expert_chunks = 1;
  CHECK(two < 0.98 * plan_step(request, kQuiet).farskip.scheduled_seconds);
  request.costs.links.fill({1.0, 100e9});  // latency is all: twice as many transports are worse
  CHECK(choose_expert_chunks(request, kQuiet) == 1);
  request.costs.links.fill({0, 100e6});
  request.mesh = {2, 0, 1};
  CHECK(choose_expert_chunks(request, kQuiet) == 1);
}

TEST_CASE("the plan of a distillation has the memory of the joined step, and of both models by themselves") {
  DistillConfig plain, terms, frozen, cached;
  terms.hidden_loss.weight = 0.5;
  terms.router_agreement = 0.5;
  frozen.freeze = {"head", "experts"};
  cached.cache = {"none", 7};
  for (const DistillConfig& config : {plain, terms, frozen, cached}) {
    const PlanRequest request = make_distill_request({1, 0, 1}, config);
    const PlanReport plan = plan_step(request, kQuiet);
    const SeparateReport measured =
        bench_joined_step(request.model, *request.distill, request.options, test::quiet_context(), {1, 0, 3});
    const auto check = [](const MemoryReport& planned, const MemoryReport& taken) {
      CHECK(planned.weights == taken.weights);
      CHECK(planned.gradients == taken.gradients);
      CHECK(planned.moments == taken.moments);
      CHECK(static_cast<double>(planned.arena) ==
            Catch::Approx(static_cast<double>(taken.arena)).epsilon(0.02));
    };
    check(plan.farskip.blocking_memory, measured.joined);
    CHECK(measured.joined_seconds.size() == 1);
    CHECK(measured.separate_seconds[0] ==
          Catch::Approx(measured.teacher_seconds[0] + measured.student_seconds[0]));
    REQUIRE(plan.separate.has_value() == !config.cache.has_value());
    if (!plan.separate) continue;
    check(plan.separate->teacher, measured.teacher);
    check(plan.separate->student, measured.student);
    // Buffers of one model serve the other; what is frozen is there once.
    CHECK(measured.joined.total() < measured.teacher.total() + measured.student.total());
  }
}

TEST_CASE("the plan of a distillation in bf16 has the weights that a device holds") {
  DistillConfig plain, frozen;
  frozen.freeze = {"head", "experts"};
  for (const DistillConfig& config : {plain, frozen}) {
    PlanRequest request = make_distill_request({1, 0, 1}, config);
    request.dtype = request.options.compute = DType::bf16;
    const PlanReport plan = plan_step(request, kQuiet);
    const SeparateReport measured =
        bench_joined_step(request.model, *request.distill, request.options,
                          test::quiet_context(make_self_mesh(), make_pretended_gpu()), {1, 0, 3});
    const auto check = [](const MemoryReport& planned, const MemoryReport& taken) {
      CHECK(planned.weights == taken.weights);
      CHECK(planned.gradients == taken.gradients);
    };
    check(plan.farskip.blocking_memory, measured.joined);
    check(plan.separate->teacher, measured.teacher);
    check(plan.separate->student, measured.student);
    // A teacher is there in bf16 alone, and what is shared with the student once.
    const std::size_t apart = plan.separate->teacher.weights + plan.separate->student.weights;
    CHECK(
        (config.freeze.empty() ? plan.farskip.memory.weights == apart : plan.farskip.memory.weights < apart));
  }
}

TEST_CASE("a distillation takes the arithmetic of the teacher more, and none with kept outputs") {
  PlanRequest joined = make_distill_request({2, 0, 2}, {}), student = joined;
  joined.costs.rates = student.costs.rates = {20e9, 1e30};
  student.distill.reset();
  const double alone = plan_step(student, kQuiet).farskip.compute_seconds;
  const double both = plan_step(joined, kQuiet).farskip.compute_seconds;
  // A forward is a third of a step.
  CHECK(both > 1.25 * alone);
  CHECK(both < 1.45 * alone);
  joined.distill->config.cache = {"none", 7};
  CHECK(plan_step(joined, kQuiet).farskip.compute_seconds == Catch::Approx(alone).epsilon(0.02));
}

TEST_CASE("by the rates of a device an op takes the longer of arithmetic and traffic, on the rows expected") {
  const PlanRequest request = make_plan_request({2, 0, 2}, 1);
  PlanRequest slow_memory = request, slow_arithmetic = request, fast_link = request;
  slow_memory.costs.rates = {1e30, 1e9};
  slow_arithmetic.costs.rates = {1e9, 1e30};
  fast_link.costs.links.fill({0, 1e30});
  const double whole = plan_step(request, kQuiet).farskip.compute_seconds;
  CHECK(plan_step(fast_link, kQuiet).farskip.compute_seconds == Catch::Approx(whole));
  CHECK(plan_step(fast_link, kQuiet).farskip.blocking_seconds == Catch::Approx(whole));
  const double memory = plan_step(slow_memory, kQuiet).farskip.compute_seconds;
  slow_memory.costs.rates.bytes_per_second /= 2;
  CHECK(plan_step(slow_memory, kQuiet).farskip.compute_seconds == Catch::Approx(2 * memory));
  // Room for more rows than come is not computed on.
  const double arithmetic = plan_step(slow_arithmetic, kQuiet).farskip.compute_seconds;
  slow_arithmetic.options.routed_rows_memory = std::uint64_t{1} << 40;
  CHECK(plan_step(slow_arithmetic, kQuiet).farskip.compute_seconds == Catch::Approx(arithmetic));
}

}  // namespace
}  // namespace farskip
