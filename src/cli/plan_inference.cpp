// SPDX-License-Identifier: Apache-2.0
// farskip plan --inference: both wirings, blocking, overlapped and in two halves.
#include "cli/plan_inference.h"

#include <optional>

#include "cli/record.h"

namespace farskip {
namespace {

constexpr double kGibibyte = 1 << 30;

/// `memory`: of a rank, bytes; 0: not known.
Record row_of(const InferencePlanRequest& request, const InferenceCase& c, bool overlapped,
              const PlannedInference& p, std::uint64_t memory) {
  const bool decodes = c.kind == InferenceRun::decode;
  const double seconds = overlapped ? p.scheduled_seconds : p.blocking_seconds;
  Record row{{"run", decodes ? "decode" : "prefill"},
             {decodes ? "batch" : "length", decodes ? c.texts : c.length},
             {decodes ? "length" : "requests", decodes ? c.length : c.texts},
             {"wiring", name_of(farskip_mode_names, request.model.farskip.mode)},
             {"schedule", c.parts > 1  ? "halves"
                          : overlapped ? "overlapped"
                                       : "blocking"},
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
  if (memory > 0) row["fits"] = p.total_bytes() <= memory;
  return row;
}

void print_row(const Record& row) {
  const double bytes =
      number_of(row, "weight_bytes") + number_of(row, "cache_bytes") + number_of(row, "arena_bytes");
  fmt::print("{} {:9.2f}{}\n",
             text_of(row, fmt::format("{{run:8}} {{{}:8}} {{length:8}} {{wiring:>10}} {{schedule:>11}} "
                                      "{{seconds|ms:10.3f}} {{tokens_per_second:12.0f}} "
                                      "{{all_reduce_seconds|ms:10.3f}} {{hideable_seconds|ms:10.3f}} "
                                      "{{hidden_fraction|%:7.1f}}%",
                                      row.contains("batch") ? "batch" : "requests")),
             bytes / kGibibyte, row.value("fits", true) ? "" : " too large");
}

/// The text says what takes most, and what would make it less.
void print_too_large(const PlannedInference& p, std::uint64_t memory) {
  const auto gib = [](std::size_t bytes) { return static_cast<double>(bytes) / kGibibyte; };
  fmt::print(
      "too large: more than the {:.2f} GiB of a rank; the largest takes {:.2f} of weights, {:.2f} of cache "
      "and {:.2f} of activations; {}\n",
      gib(memory), gib(p.weight_bytes), gib(p.cache_bytes), gib(p.arena_bytes),
      p.weight_bytes > memory ? "use more ranks (parallel.tensor, with parallel.expert for experts)"
                              : "use fewer or shorter texts at once, or more ranks (parallel.tensor)");
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
  std::optional<PlannedInference> too_large;
  std::vector<FarSkipConfig> wirings{{FarSkipMode::off, {}}};
  if (request.model.farskip.mode != FarSkipMode::off) wirings.push_back(request.model.farskip);
  const Logger quiet(LogLevel::warning);
  for (const InferenceRun kind : {InferenceRun::prefill, InferenceRun::decode})
    for (const std::int64_t length : cases.lengths)
      for (const std::int64_t texts : kind == InferenceRun::decode ? cases.batches : cases.requests)
        for (const FarSkipConfig& wiring : wirings)
          for (const int parts : {1, 2}) {
            if (parts > 1 && (texts == 1 || request.mesh.world_size == 1)) continue;
            request.model.farskip = wiring;
            const InferenceCase run{kind, texts, length, parts};
            const PlannedInference planned = plan_inference(request, run, quiet);
            for (const bool overlapped : {false, true}) {
              if (parts > 1 && !overlapped) continue;
              print_result(row_of(request, run, overlapped, planned, cases.memory), print_row, common);
            }
            if (cases.memory > 0 && planned.total_bytes() > cases.memory &&
                (!too_large || planned.total_bytes() > too_large->total_bytes()))
              too_large = planned;
          }
  if (too_large && !common.json) print_too_large(*too_large, cases.memory);
}

}  // namespace farskip
