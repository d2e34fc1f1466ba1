// SPDX-License-Identifier: Apache-2.0
// farskip plan --inference: both wirings, blocking and overlapped.
#include "farskip/cli/plan_inference.h"

#include <nlohmann/json.hpp>

#include "farskip/cli/command.h"

namespace farskip {
namespace {

constexpr double kGibibyte = 1 << 30;

nlohmann::ordered_json row_of(const InferencePlanRequest& request, InferenceRun kind, std::int64_t texts,
                              std::int64_t length, bool overlapped, const PlannedInference& p) {
  const bool decodes = kind == InferenceRun::decode;
  const double seconds = overlapped ? p.scheduled_seconds : p.blocking_seconds;
  return {{"run", decodes ? "decode" : "prefill"},
          {decodes ? "batch" : "length", decodes ? texts : length},
          {decodes ? "length" : "requests", decodes ? length : texts},
          {"wiring", name_of(farskip_mode_names, request.model.farskip.mode)},
          {"schedule", overlapped ? "overlapped" : "blocking"},
          {"ranks", request.mesh.world_size},
          {"predicted", true},
          {"seconds", seconds},
          {"tokens_per_second", static_cast<double>(p.tokens) / seconds},
          {"all_reduce_seconds", p.transport_seconds},
          {"hideable_seconds", p.hideable_seconds},
          {"hidden_fraction", overlapped ? p.hidden_fraction() : 0.0},
          {"weight_bytes", p.weight_bytes},
          {"cache_bytes", p.cache_bytes},
          {"arena_bytes", p.arena_bytes}};
}

void print_row(const nlohmann::ordered_json& row) {
  const auto number = [&](const char* key) { return row.value(key, 0.0); };
  const bool decodes = row.contains("batch");
  fmt::print("{:8} {:8.0f} {:8.0f} {:>10} {:>11} {:10.3f} {:12.0f} {:10.3f} {:10.3f} {:7.1f}% {:9.2f}\n",
             row.value("run", ""), number(decodes ? "batch" : "requests"), number("length"),
             row.value("wiring", ""), row.value("schedule", ""), 1e3 * number("seconds"),
             number("tokens_per_second"), 1e3 * number("all_reduce_seconds"),
             1e3 * number("hideable_seconds"), 100 * number("hidden_fraction"),
             (number("weight_bytes") + number("cache_bytes") + number("arena_bytes")) / kGibibyte);
}

}  // namespace

void print_inference_plans(InferencePlanRequest request, const InferenceCases& cases,
                           const CommonOptions& common) {
  if (!common.json)
    fmt::print(
        "{} ranks, tensor {}, experts over {}\n{:8} {:>8} {:>8} {:>10} {:>11} {:>10} {:>12} {:>10} {:>10} "
        "{:>8} {:>9}\n",
        request.mesh.world_size, request.mesh.tensor_size, request.mesh.expert_size, "run", "texts", "length",
        "wiring", "schedule", "ms", "tokens/s", "reduce ms", "hideable", "hidden", "GiB");
  std::vector<FarSkipConfig> wirings{{FarSkipMode::off, {}}};
  if (request.model.farskip.mode != FarSkipMode::off) wirings.push_back(request.model.farskip);
  const Logger quiet(LogLevel::warning);
  for (const InferenceRun kind : {InferenceRun::prefill, InferenceRun::decode})
    for (const std::int64_t length : cases.lengths)
      for (const std::int64_t texts : kind == InferenceRun::decode ? cases.batches : cases.requests)
        for (const FarSkipConfig& wiring : wirings) {
          request.model.farskip = wiring;
          const PlannedInference planned = plan_inference(request, kind, texts, length, quiet);
          for (const bool overlapped : {false, true}) {
            const auto row = row_of(request, kind, texts, length, overlapped, planned);
            if (common.json)
              print_json(row);
            else
              print_row(row);
          }
        }
}

}  // namespace farskip
