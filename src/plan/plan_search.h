// SPDX-License-Identifier: Apache-2.0
#pragma once
// The settings with which a step fits a memory, by plans, the fastest first.

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "plan/plan_report.h"

namespace farskip {

/// Planned with some recomputation.
struct RecomputePlan {
  Recompute recompute = Recompute::none;
  PlannedStep step;
  std::optional<std::uint64_t> routed_rows_memory{};  // absent: what the request says
};
/// Of `choices`, the one that `plan` says is fastest among those whose memory is within `most_bytes`; where
/// none is, the one that takes least. Choices that others make needless are not planned: what recomputes more
/// is slower.
RecomputePlan choose_recompute(PlanRequest request, const std::vector<Recompute>& choices,
                               std::uint64_t most_bytes,
                               const std::function<PlannedStep(const PlanRequest&)>& plan);
/// All that are no choice themselves.
std::vector<Recompute> all_recomputations();

/// `schedule.recompute: auto` of what is planned: the choice that fits `schedule.memory`, and on CPUs for
/// routed rows (unless the request bounds them) what that leaves free: room for all that a rank could send to
/// one other, or half of them, or a quarter, but never less than usual, since a step with more is computed
/// twice. `others`: bytes of `memory` that the plan does not count. UsageError with the least that would do
/// where no choice fits.
RecomputePlan fit_recompute(const PlanRequest& request, std::uint64_t memory, std::uint64_t others,
                            const Logger& logger);
/// The same of what is to run here, set in `options` and said; nothing where it is not auto. `distill`: of
/// options that have no objective yet. Collective.
void fit_recompute(const ScheduleConfig& config, const Model& model, const Context& context,
                   TrainEngineOptions& options, const std::optional<DistillSetup>& distill = {});

/// A key of the configuration, and the values that a search gives it, in words of the configuration.
struct SearchedKey {
  std::string key;
  std::vector<std::string> values;
};
using Settings = std::vector<std::pair<std::string, std::string>>;

/// What is searched. Every combination of values of `layouts` is tried; within it micro-batches from the
/// smallest on, until one does not fit, each with what recomputes least among what fits. Those that the
/// layout refuses (they do not divide its share of the batch) are passed over.
struct SearchSpace {
  std::vector<SearchedKey> layouts;
  SearchedKey micro_batches;
  std::vector<Recompute> recompute;
};
/// Experts over divisors of ranks that divide them too; matrices over divisors of ranks that divide what they
/// would cut; ZeRO's levels; the micro-batches that make up the global batch. `fixed`: keys that keep the
/// configuration's value.
SearchSpace search_space(const RunConfig& config, const ModelConfig& model, int ranks,
                         const std::vector<std::string>& fixed);

struct SearchResult {
  Settings settings;
  std::optional<PlannedStep> step{};  // absent where the settings were refused, or states alone are too large
  std::uint64_t bytes = 0;            // that it takes; of states alone where there is no step
  bool is_scheduled = false;          // else planned in graph order
  bool is_refused = false;            // no layout of this job, whatever the memory
  std::string why_not{};              // empty: it fits
};
/// The configuration with some keys set; UsageError where it refuses them.
using RequestMaker = std::function<PlanRequest(const Settings& settings)>;
/// So many of what fits are planned in the order of training, too, which takes time.
inline constexpr std::size_t kMostScheduled = 8;
/// What fits, fastest first, then what does not, by what it takes, then what is refused. All are planned in
/// graph order, the fastest kMostScheduled of them then in the order of training; these come first.
std::vector<SearchResult> search_plans(const SearchSpace& space, const RequestMaker& make_request,
                                       std::uint64_t most_bytes, const Logger& logger);

}  // namespace farskip
