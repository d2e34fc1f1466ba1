// SPDX-License-Identifier: Apache-2.0
#include "plan/plan_search.h"

#include <algorithm>
#include <array>
#include <tuple>

#include "base/environment.h"
#include "comm/collective_errors.h"
#include "comm/local.h"

namespace farskip {
namespace {

constexpr std::string_view kRecomputeKey = "schedule.recompute", kMicroBatchKey = "train.micro_batch",
                           kTensorKey = "parallel.tensor";

/// What is recomputed together with more is faster than that; of two in one group the plan decides.
constexpr int rank_of(Recompute choice) {
  return choice == Recompute::none ? 0 : choice == Recompute::full ? 2 : 1;
}

std::string size_text(std::uint64_t bytes) {
  const bool is_large = bytes >= std::uint64_t{1} << 30;
  return fmt::format("{:.1f} {}", static_cast<double>(bytes) / (is_large ? 1 << 30 : 1 << 20),
                     is_large ? "GiB" : "MiB");
}

std::vector<std::string> divisors(std::int64_t number, const std::function<bool(std::int64_t)>& is_wanted) {
  std::vector<std::string> values;
  for (std::int64_t d = 1; d <= number; ++d)
    if (number % d == 0 && is_wanted(d)) values.push_back(std::to_string(d));
  return values;
}

/// Whether so many ranks can share every matrix, with whole experts on each or parts of all.
bool divides_matrices(const ModelConfig& model, int ranks, int tensor) {
  const std::vector<ParameterSpec> parameters = list_parameters(model);
  for (const int expert : {1, tensor}) try {
      local_parameters(parameters, {ranks, 0, expert, tensor}, false);
      return true;
    } catch (const UsageError&) {
    }
  return false;
}

}  // namespace

std::vector<Recompute> all_recomputations() {
  std::vector<Recompute> all;
  for (const auto& [name, choice] : recompute_names)
    if (choice != Recompute::automatic) all.push_back(choice);
  return all;
}

RecomputePlan choose_recompute(PlanRequest request, const std::vector<Recompute>& choices,
                               std::uint64_t most_bytes,
                               const std::function<PlannedStep(const PlanRequest&)>& plan) {
  std::optional<RecomputePlan> best, least;
  for (int rank = 0; rank <= 2 && !best; ++rank)
    for (const Recompute choice : choices) {
      if (rank_of(choice) != rank) continue;
      request.options.recompute = choice;
      const RecomputePlan planned{choice, plan(request)};
      const std::size_t bytes = planned.step.memory.total();
      if (bytes <= most_bytes && (!best || planned.step.seconds < best->step.seconds)) best = planned;
      if (!least || bytes < least->step.memory.total()) least = planned;
    }
  FARSKIP_CHECK(least, "no recomputation to choose from");
  return best ? *best : *least;
}

namespace {

/// Gives routed rows what `chosen` leaves free, on CPUs: between GPUs they travel in slabs, full or not, so
/// that more room is more bytes.
void fit_routed_rows(PlanRequest request, std::uint64_t memory, const Logger& logger, RecomputePlan& chosen) {
  request.options.recompute = chosen.recompute;
  const RoutedRowsPlan usual = plan_routed_rows(request.model, request.options, request.mesh.exchange_size());
  if (is_low(request.dtype) || usual.fallback_batch == 0 || request.options.routed_rows_memory) return;
  const std::uint64_t bytes_per_row = usual.bytes / static_cast<std::uint64_t>(usual.max_rows);
  for (std::int64_t rows = usual.all_rows; rows > usual.max_rows; rows = (rows + 1) / 2) {
    request.options.routed_rows_memory = static_cast<std::uint64_t>(rows) * bytes_per_row;
    const PlannedStep step = plan_scheduled_step(request, logger);
    if (step.memory.total() > memory) continue;
    chosen.routed_rows_memory = request.options.routed_rows_memory;
    chosen.step = step;
    return;
  }
}

}  // namespace

RecomputePlan fit_recompute(const PlanRequest& request, std::uint64_t memory, std::uint64_t others,
                            const Logger& logger) {
  const std::uint64_t left = memory - std::min(memory, others);
  RecomputePlan chosen = choose_recompute(request, all_recomputations(), left, [&](const PlanRequest& one) {
    return plan_scheduled_step(one, logger);
  });
  const std::uint64_t bytes = chosen.step.memory.total() + others;
  if (bytes > memory)
    throw UsageError(
        fmt::format("schedule.memory is {}, and a step takes at least {}, with schedule.recompute={}; allow "
                    "{} bytes, or use "
                    "a smaller train.micro_batch, a shorter train.sequence_length or more ranks",
                    size_text(memory), size_text(bytes), name_of(recompute_names, chosen.recompute), bytes));
  fit_routed_rows(request, left, logger, chosen);
  return chosen;
}

void fit_recompute(const ScheduleConfig& config, const Model& model, const Context& context,
                   TrainEngineOptions& options, const std::optional<DistillSetup>& distill) {
  if (options.recompute != Recompute::automatic) return;
  PlanRequest request{
      .model = model.config, .options = options, .distill = distill, .mesh = context.mesh.position()};
  request.dtype = options.compute;
  request.workspace = workspace_rule(*context.device());
  // Times say no more than which of two recomputes less, for which any rates of such a device do.
  request.costs.rates = attained_rates(gpu_cards().front(), options.compute);
  request.costs.links.fill(attained_link(gpu_cards().front(), 0.0));
  const std::uint64_t others =
      options.objective && options.objective->states() ? options.objective->states()->num_bytes() : 0;
  RecomputePlan chosen;
  run_together(context.world(),
               [&] { chosen = fit_recompute(request, *config.memory, others, context.logger); });
  // Shares of ZeRO differ between ranks, their graphs must not.
  std::array<double, 2> choice{static_cast<double>(chosen.recompute),
                               -static_cast<double>(chosen.routed_rows_memory.value_or(0))};
  context.world().all_reduce(std::span<double>(choice), Reduction::max);
  options.recompute = static_cast<Recompute>(static_cast<int>(choice[0]));
  if (choice[1] < 0) options.routed_rows_memory = static_cast<std::uint64_t>(-choice[1]);
  if (context.world().rank() == 0)
    context.logger.info("schedule.recompute: auto: {}, with which a step is planned to take {} of {}",
                        name_of(recompute_names, options.recompute),
                        size_text(chosen.step.memory.total() + others), size_text(*config.memory));
}

SearchSpace search_space(const RunConfig& config, const ModelConfig& model, int ranks,
                         const std::vector<std::string>& fixed) {
  const std::int64_t experts = std::max<std::int64_t>(1, model.moe.num_experts);
  const auto is_fixed = [&](std::string_view key) {
    return std::find(fixed.begin(), fixed.end(), key) != fixed.end();
  };
  int most_tensor = is_fixed(kTensorKey) ? config.parallel.tensor : 1;
  std::vector<std::string> tensor;
  if (!is_fixed(kTensorKey))
    tensor = divisors(ranks, [&](std::int64_t d) {
      const bool is_possible = divides_matrices(model, ranks, static_cast<int>(d));
      if (is_possible) most_tensor = static_cast<int>(d);
      return is_possible;
    });
  // The ranks that share matrices read the same sequences, so the others have more of them.
  const std::int64_t sequences = std::max<std::int64_t>(1, config.train.global_batch * most_tensor / ranks);
  SearchSpace space{
      .layouts = {{"parallel.expert", divisors(ranks, [&](std::int64_t d) { return experts % d == 0; })},
                  {std::string(kTensorKey), tensor},
                  {"parallel.zero",
                   ranks > 1 ? std::vector<std::string>{"0", "1", "2", "3"} : std::vector<std::string>{"0"}}},
      .micro_batches = {std::string(kMicroBatchKey), divisors(sequences, [](std::int64_t) { return true; })},
      .recompute = all_recomputations()};
  std::erase_if(space.layouts, [&](const SearchedKey& key) { return is_fixed(key.key); });
  if (is_fixed(kMicroBatchKey)) space.micro_batches.values = {std::to_string(config.train.micro_batch)};
  if (is_fixed(kRecomputeKey) && config.schedule.recompute != Recompute::automatic)
    space.recompute = {config.schedule.recompute};
  return space;
}

namespace {

class Search {
 public:
  Search(const SearchSpace& space, const RequestMaker& make_request, std::uint64_t most_bytes,
         const Logger& logger)
      : space_(space), make_request_(make_request), most_bytes_(most_bytes), logger_(logger) {}

  std::vector<SearchResult> run() {
    list_layouts({});
    std::vector<std::vector<SearchResult>> by_layout(layouts_.size());
    on_all_cores(layouts_.size(), [&](std::size_t i) { by_layout[i] = try_micro_batches(layouts_[i]); });
    for (const std::vector<SearchResult>& results : by_layout)
      results_.insert(results_.end(), results.begin(), results.end());
    // One that does not fit in the order of training makes place for another.
    for (std::vector<SearchResult*> next; !(next = best_unscheduled()).empty();)
      on_all_cores(next.size(), [&](std::size_t i) { schedule(*next[i]); });
    return std::move(results_);
  }

 private:
  /// All that begin with these settings.
  void list_layouts(const Settings& settings) {
    if (settings.size() == space_.layouts.size()) {
      layouts_.push_back(settings);
      return;
    }
    const SearchedKey& next = space_.layouts[settings.size()];
    for (const std::string& value : next.values) {
      Settings more = settings;
      more.emplace_back(next.key, value);
      list_layouts(more);
    }
  }

  static void on_all_cores(std::size_t count, const std::function<void(std::size_t)>& work) {
    run_local_ranks(machine_info().cores, [&](const Communicator& workers) {
      for (auto i = static_cast<std::size_t>(workers.rank()); i < count;
           i += static_cast<std::size_t>(workers.size()))
        work(i);
    });
  }

  /// Those of the first kMostScheduled that fit, as far as is known, and are not scheduled yet.
  std::vector<SearchResult*> best_unscheduled() {
    sort();
    std::vector<SearchResult*> found;
    for (std::size_t i = 0; i < std::min(results_.size(), kMostScheduled); ++i)
      if (results_[i].why_not.empty() && !results_[i].is_scheduled) found.push_back(&results_[i]);
    return found;
  }

  void sort() {
    const auto key = [](const SearchResult& r) {
      const bool fits = r.why_not.empty();
      return std::tuple(r.is_refused, !fits, !r.is_scheduled,
                        fits ? r.step->seconds : static_cast<double>(r.bytes));
    };
    std::stable_sort(results_.begin(), results_.end(),
                     [&](const SearchResult& a, const SearchResult& b) { return key(a) < key(b); });
  }

  /// A larger one takes more, so the first that does not fit is the last that is told of.
  std::vector<SearchResult> try_micro_batches(const Settings& layout) const {
    std::vector<SearchResult> results, refused;
    for (const std::string& value : space_.micro_batches.values) {
      Settings settings = layout;
      settings.emplace_back(space_.micro_batches.key, value);
      SearchResult result = try_settings(std::move(settings));
      (result.is_refused ? refused : results).push_back(std::move(result));
      if (!results.empty() && !results.back().why_not.empty()) break;
    }
    if (results.empty() && !refused.empty()) return {refused.front()};
    return results;
  }

  SearchResult try_settings(Settings settings) const {
    SearchResult result{.settings = std::move(settings)};
    try {
      const PlanRequest request = make_request_(result.settings);
      result.bytes = state_memory(request).total();
      if (result.bytes > most_bytes_) {
        result.why_not = fmt::format("weights, gradients and moments take {}", size_text(result.bytes));
        return result;
      }
      const RecomputePlan planned = choose_recompute(
          request, space_.recompute, most_bytes_,
          [&](const PlanRequest& one) { return plan_step_in_graph_order(one, most_bytes_, logger_); });
      result.settings.emplace_back(kRecomputeKey, name_of(recompute_names, planned.recompute));
      take(planned.step, result);
    } catch (const UsageError& error) {
      result.is_refused = true;
      result.why_not = error.what();
    }
    return result;
  }

  void take(const PlannedStep& step, SearchResult& result) const {
    result.step = step;
    result.bytes = step.memory.total();
    if (result.bytes > most_bytes_)
      result.why_not = fmt::format("takes {}, {} too many", size_text(result.bytes),
                                   size_text(result.bytes - most_bytes_));
  }

  /// The scheduler's order may take more memory: then with more recomputation.
  void schedule(SearchResult& result) const {
    const Recompute least = *find_choice(recompute_names, result.settings.back().second);
    std::vector<Recompute> choices = space_.recompute;
    std::erase_if(choices, [&](Recompute c) { return c != least && rank_of(c) <= rank_of(least); });
    const RecomputePlan planned =
        choose_recompute(make_request_(result.settings), choices, most_bytes_,
                         [&](const PlanRequest& one) { return plan_scheduled_step(one, logger_); });
    result.settings.back().second = name_of(recompute_names, planned.recompute);
    result.is_scheduled = true;
    take(planned.step, result);
  }

  const SearchSpace& space_;
  const RequestMaker& make_request_;
  const std::uint64_t most_bytes_;
  const Logger& logger_;
  std::vector<Settings> layouts_;
  std::vector<SearchResult> results_;
};

}  // namespace

std::vector<SearchResult> search_plans(const SearchSpace& space, const RequestMaker& make_request,
                                       std::uint64_t most_bytes, const Logger& logger) {
  return Search(space, make_request, most_bytes, logger).run();
}

}  // namespace farskip
