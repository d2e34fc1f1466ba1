// SPDX-License-Identifier: Apache-2.0
// Searching for settings that fit a memory: against planning every combination.
#include "plan/plan_search.h"

#include <algorithm>

#include "support/catch.h"
#include "support/context.h"
#include "support/support.h"

namespace farskip {
namespace {

const Logger kQuiet(LogLevel::off);

/// 16 sequences of 32 tokens on 4 ranks.
PlanRequest make_request(const Settings& settings) {
  PlanRequest r;
  r.model = read_hub_config(test::fixtures() / "deepseek_v2");
  r.model.farskip = {FarSkipMode::full, {}};
  r.options.sequence_length = 32;
  r.mesh = {4, 0, 1};
  r.costs.rates = {200e9, 20e9};
  r.costs.links.fill({1e-5, 1e9});
  r.options.micro_batch = 1;
  for (const auto& [key, value] : settings) {
    if (key == "parallel.expert") r.mesh.expert_size = std::stoi(value);
    if (key == "parallel.tensor") r.mesh.tensor_size = std::stoi(value);
    if (key == "parallel.zero") r.options.zero = std::stoi(value);
    if (key == "train.micro_batch") r.options.micro_batch = std::stoi(value);
    if (key == "schedule.recompute") r.options.recompute = *find_choice(recompute_names, value);
  }
  check_mesh_sizes(4, r.mesh.expert_size, r.mesh.tensor_size);
  const std::int64_t sequences = 4 * r.mesh.tensor_size;  // of a rank
  if (sequences % r.options.micro_batch != 0) throw UsageError("the micro-batch does not divide");
  r.options.micro_batches = sequences / r.options.micro_batch;
  return r;
}

SearchSpace whole_space() {
  RunConfig config;
  config.train.global_batch = 16;
  return search_space(config, read_hub_config(test::fixtures() / "deepseek_v2"), 4, {});
}

PlannedStep plan(Settings settings, std::string_view recompute) {
  settings.emplace_back("schedule.recompute", recompute);
  return plan_scheduled_step(make_request(settings), kQuiet);
}

TEST_CASE("a search finds what planning every combination finds, in order, and says what is too large") {
  SearchSpace space = whole_space();
  REQUIRE(space.layouts.size() == 3);
  CHECK(space.layouts[2].values == std::vector<std::string>{"0", "1", "2", "3"});
  CHECK(space.layouts[0].values == std::vector<std::string>{"1", "2", "4"});
  CHECK(space.layouts[1].values == std::vector<std::string>{"1", "2", "4"});  // 4 heads
  CHECK(space.micro_batches.values == std::vector<std::string>{"1", "2", "4", "8", "16"});
  // Few enough that all that fit are scheduled, not the fastest alone.
  space.layouts[0].values = {"2", "4"};
  space.layouts[1].values = {"1", "2"};
  space.layouts[2].values = {"1"};
  space.micro_batches.values = {"1", "2", "4"};
  // Where some fit, some only with recomputation, some not at all.
  const Settings middle{{"parallel.expert", "2"}, {"parallel.zero", "1"}, {"train.micro_batch", "2"}};
  const std::uint64_t memory = plan(middle, "attention").memory.total();
  const std::vector<SearchResult> found = search_plans(space, make_request, memory, kQuiet);

  double best = 1e30;
  std::size_t fitting = 0;
  std::size_t refused = 0;
  for (const std::string& expert : space.layouts[0].values)
    for (const std::string& tensor : space.layouts[1].values)
      for (const std::string& zero : space.layouts[2].values) {
        if (expert != "1" && tensor != "1" && expert != tensor) {
          ++refused;
          continue;
        }
        for (const std::string& micro_batch : space.micro_batches.values) {
          if (4 * std::stoi(tensor) % std::stoi(micro_batch) != 0) continue;
          bool fits = false;
          for (const Recompute recompute : all_recomputations()) {
            const PlannedStep step = plan({{"parallel.expert", expert},
                                           {"parallel.tensor", tensor},
                                           {"parallel.zero", zero},
                                           {"train.micro_batch", micro_batch}},
                                          name_of(recompute_names, recompute));
            if (step.memory.total() > memory) continue;
            fits = true;
            best = std::min(best, step.seconds);
          }
          fitting += fits ? 1 : 0;
        }
      }
  const auto first_too_large =
      std::find_if(found.begin(), found.end(), [](const SearchResult& r) { return !r.why_not.empty(); });
  const auto first_refused =
      std::find_if(found.begin(), found.end(), [](const SearchResult& r) { return r.is_refused; });
  CHECK(static_cast<std::size_t>(found.end() - first_refused) == refused);
  CHECK_THAT(first_refused->why_not, Catch::Matchers::ContainsSubstring("share whole experts"));
  REQUIRE(fitting > 1);
  CHECK(static_cast<std::size_t>(first_too_large - found.begin()) == fitting);
  CHECK(found.front().step->seconds == best);
  REQUIRE(first_too_large != found.end());
  bool recomputes = false;
  for (auto r = found.begin(); r != first_too_large; ++r) {
    CHECK(r->bytes <= memory);
    CHECK(r->is_scheduled == (static_cast<std::size_t>(r - found.begin()) < kMostScheduled));
    if (r->is_scheduled)
      CHECK(r->bytes == plan_scheduled_step(make_request(r->settings), kQuiet).memory.total());
    CHECK((r == found.begin() || (r - 1)->is_scheduled != r->is_scheduled ||
           (r - 1)->step->seconds <= r->step->seconds));
    recomputes = recomputes || r->settings.back().second != "none";
  }
  CHECK(recomputes);
  for (auto r = first_too_large; r != first_refused; ++r) {
    CHECK(r->bytes > memory);
    CHECK_THAT(r->why_not, Catch::Matchers::ContainsSubstring("iB"));
  }
}

TEST_CASE("what a search plans is the FarSkip row of a plan") {
  const PlanRequest request =
      make_request({{"parallel.expert", "2"}, {"parallel.zero", "1"}, {"train.micro_batch", "2"}});
  const WiringReport report = plan_step(request, kQuiet).farskip;
  const PlannedStep step = plan_scheduled_step(request, kQuiet);
  CHECK(step.seconds == report.scheduled_seconds);
  CHECK(step.memory.total() == report.memory.total());
}

TEST_CASE("keys that are fixed are not searched, and settings that are refused say why") {
  RunConfig config;
  config.train.global_batch = 16;
  config.train.micro_batch = 2;
  config.schedule.recompute = Recompute::full;
  const ModelConfig model = read_hub_config(test::fixtures() / "deepseek_v2");
  const SearchSpace space = search_space(
      config, model, 4, {"parallel.expert", "parallel.tensor", "train.micro_batch", "schedule.recompute"});
  REQUIRE(space.layouts.size() == 1);
  CHECK(space.layouts[0].key == "parallel.zero");
  CHECK(space.micro_batches.values == std::vector<std::string>{"2"});
  CHECK(space.recompute == std::vector<Recompute>{Recompute::full});
  const auto refusing = [](const Settings& settings) -> PlanRequest {
    if (settings[0].second == "1") throw UsageError("no ZeRO here");
    return make_request(settings);
  };
  const auto found = search_plans(space, refusing, std::uint64_t{1} << 40, kQuiet);
  REQUIRE(found.size() == 4);
  for (std::size_t i = 0; i < 3; ++i) CHECK(found[i].why_not.empty());
  CHECK(found[3].why_not == "no ZeRO here");
  CHECK(found[3].is_refused);
}

TEST_CASE("recomputation is the fastest that fits, and an error names the least memory that would do") {
  const Settings settings{{"parallel.expert", "2"}, {"train.micro_batch", "2"}};
  const PlanRequest request = make_request(settings);
  const std::size_t none = plan(settings, "none").memory.total(),
                    full = plan(settings, "full").memory.total();
  CHECK(fit_recompute(request, none, 0, kQuiet).recompute == Recompute::none);
  const RecomputePlan less = fit_recompute(request, none - 1, 0, kQuiet);
  CHECK((less.recompute == Recompute::attention || less.recompute == Recompute::experts));
  for (const char* other : {"attention", "experts"}) {
    const PlannedStep step = plan(settings, other);
    CHECK((step.memory.total() >= none || step.seconds >= less.step.seconds));
  }
  CHECK(fit_recompute(request, full, 0, kQuiet).recompute == Recompute::full);
  CHECK_THROWS_WITH(fit_recompute(request, full - 1, 0, kQuiet),
                    Catch::Matchers::ContainsSubstring(fmt::format("allow {} bytes", full)));
  // Of a teacher's weights, which the plan does not count, the error has to count them.
  CHECK(fit_recompute(request, full + 1000, 1000, kQuiet).recompute == Recompute::full);
  CHECK_THROWS_WITH(fit_recompute(request, full + 999, 1000, kQuiet),
                    Catch::Matchers::ContainsSubstring(fmt::format("allow {} bytes", full + 1000)));
}

TEST_CASE("routed rows get the memory that the fitted plan leaves") {
  const PlanRequest request = make_request({{"parallel.expert", "4"}, {"train.micro_batch", "2"}});
  const RoutedRowsPlan usual = plan_routed_rows(request.model, request.options, request.mesh.exchange_size());
  REQUIRE(usual.all_rows == 2 * usual.max_rows);
  const auto fit = [&](std::uint64_t memory) { return fit_recompute(request, memory, 0, kQuiet); };
  const RecomputePlan roomy = fit(std::uint64_t{1} << 40);
  CHECK(roomy.recompute == Recompute::none);
  CHECK(roomy.routed_rows_memory == 2 * usual.bytes);
  const RecomputePlan exact = fit(roomy.step.memory.total()), tight = fit(roomy.step.memory.total() - 1);
  CHECK(exact.routed_rows_memory == roomy.routed_rows_memory);
  CHECK(exact.step.memory.total() == roomy.step.memory.total());
  CHECK(tight.recompute == Recompute::none);
  CHECK(tight.routed_rows_memory == std::nullopt);
  CHECK(tight.step.memory.total() < roomy.step.memory.total());
}

}  // namespace
}  // namespace farskip
