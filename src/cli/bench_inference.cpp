// SPDX-License-Identifier: Apache-2.0
// farskip bench prefill, farskip bench decode: how fast a model reads texts and continues them.
#include <algorithm>

#include "cli/command_inputs.h"
#include "cli/job.h"
#include "cli/record.h"
#include "cli/units.h"
#include "engine/devices.h"
#include "measure/inference_overlap.h"
#include "passes/farskip.h"

namespace farskip {
namespace {

struct Options {
  std::string config, device;
  std::string counts, lengths;  // lists: texts at once, and tokens of each
  std::vector<std::string> overrides;
  int repetitions = 20;
  EmulateOptions emulate;
};

/// What is measured, on this rank.
struct OpenedBench {
  const LoadedRun& run;
  Context context;
  DType compute;
  bool speaks;  // of all ranks one prints

  Model wired(const FarSkipConfig& wiring) const { return wire_model(run.model, wiring); }
  int ranks() const { return context.world().size(); }
};

std::string_view mode_name(const FarSkipConfig& wiring) {
  return name_of(farskip_mode_names, wiring.mode);
}

/// Texts at once, and tokens of each.
struct Case {
  std::int64_t texts = 1, length = 1;
};

/// On one rank: seconds of a run, and what it reads.
Record measure_alone(const OpenedBench& b, InferenceRun kind, InferenceBench& bench, const Case& c,
                     int repetitions, double copy_rate) {
  const bool decodes = kind == InferenceRun::decode;
  const InferenceTimes t =
      decodes ? bench.decode(c.texts, c.length, repetitions) : bench.prefill(c.texts, c.length, repetitions);
  Record row{{decodes ? "batch" : "length", decodes ? c.texts : c.length},
             {decodes ? "length" : "requests", decodes ? c.length : c.texts},
             {"wiring", mode_name(b.run.model.farskip)},
             {"ranks", 1},
             {"seconds", t.seconds},
             {"seconds_p99", t.seconds_p99},
             {"tokens_per_second", static_cast<double>(t.tokens) / t.seconds}};
  if (decodes) {
    row["bytes_read"] = t.bytes_read;
    row["of_copy_rate"] = t.bytes_read / t.seconds / copy_rate;
  }
  return row;
}

/// Several ranks do the same run blocking and overlapped; in two halves, overlapped alone.
std::vector<Record> measure_pair(const OpenedBench& b, const FarSkipConfig& wiring,
                                 const std::shared_ptr<const States>& weights, const InferenceCase& c,
                                 int repetitions) {
  const InferenceOverlap o = measure_inference_overlap(b.wired(wiring), b.context, weights, c, repetitions);
  const bool decodes = c.kind == InferenceRun::decode, halved = c.parts > 1;
  // Rows of a CPU have their own bits whatever else is read.
  const bool same_rows = b.context.device()->kind() == DeviceKind::cpu;
  std::vector<Record> rows;
  for (const bool overlapped : {false, true}) {
    if (halved && !overlapped) continue;
    const double seconds = overlapped ? o.overlapped_seconds : o.blocking_seconds;
    rows.push_back({{decodes ? "batch" : "length", decodes ? c.texts : c.length},
                    {decodes ? "length" : "requests", decodes ? c.length : c.texts},
                    {"wiring", mode_name(wiring)},
                    {"schedule", halved       ? "halves"
                                 : overlapped ? "overlapped"
                                              : "blocking"},
                    {"ranks", b.ranks()},
                    {"seconds", seconds},
                    {"seconds_p99", overlapped ? o.overlapped_p99 : o.blocking_p99},
                    {"tokens_per_second", static_cast<double>(o.tokens) / seconds},
                    {"all_reduce_seconds", o.transport_seconds},
                    {"hideable_seconds", o.hideable_seconds},
                    {"hidden_fraction", overlapped ? o.hidden_fraction() : 0.0},
                    {"eta", overlapped ? o.eta() : 0.0},
                    {"identical", o.identical && !(same_rows && o.difference > 0)}});
    if (halved) rows.back()["difference"] = o.difference;
  }
  return rows;
}

void print_row(const Record& row) {
  const bool decodes = row.contains("batch");
  fmt::print(
      "{} {:>11} {}",
      text_of(row, decodes ? "{batch:8} {length:8} {wiring:>10}" : "{length:8} {requests:8} {wiring:>10}"),
      row.value("schedule", "alone"),
      text_of(row, "{seconds|ms:10.3f} {seconds_p99|ms:10.3f} {tokens_per_second:12.0f}"));
  if (row.contains("of_copy_rate"))
    fmt::print(" {}", text_of(row, "{bytes_read|MB:10.1f} {of_copy_rate:8.3f}"));
  if (row.contains("identical")) {
    // Of next to nothing there is no share.
    const bool told = row["schedule"] != "blocking" &&
                      number_of(row, "hideable_seconds") > 0.01 * number_of(row, "seconds");
    fmt::print(" {} {:>8} {:>6} {:>5}",
               text_of(row, "{all_reduce_seconds|ms:10.3f} {hideable_seconds|ms:10.3f}"),
               told ? text_of(row, "{hidden_fraction|%:.1f}%") : "-", told ? text_of(row, "{eta:.2f}") : "-",
               row["identical"].get<bool>() ? "same" : "OTHER");
  }
  fmt::print("\n");
}

void print_head(const OpenedBench& b, InferenceRun kind, double copy_rate) {
  const bool decodes = kind == InferenceRun::decode;
  fmt::print("{}, {} rank{}", b.context.device()->name(), b.ranks(), b.ranks() == 1 ? "" : "s");
  if (b.ranks() == 1 && decodes) fmt::print("; copy {:.3g} GB/s", copy_rate * 1e-9);
  fmt::print("\n{:>8} {:>8} {:>10} {:>11} {:>10} {:>10} {:>12}", decodes ? "batch" : "length",
             decodes ? "length" : "requests", "wiring", "schedule", "ms", "p99 ms", "tokens/s");
  if (b.ranks() > 1)
    fmt::print(" {:>10} {:>10} {:>8} {:>6} {:>5}", "reduce ms", "hideable", "hidden", "eta", "bits");
  else if (decodes)
    fmt::print(" {:>10} {:>8}", "read MB", "of copy");
  fmt::print("\n");
}

/// `more`: tokens that follow a text.
void check_lengths(const std::vector<std::int64_t>& lengths, std::int64_t more, const ModelConfig& model) {
  for (const std::int64_t length : lengths)
    if (length + more > model.max_positions)
      throw UsageError(fmt::format(
          "--lengths: {} is out of range; allowed: 1 to {}, by the model's max_position_embeddings", length,
          model.max_positions - more));
}

/// Standard wiring and, where it is another, that of the configuration.
std::vector<FarSkipConfig> wirings_to_compare(const FarSkipConfig& own) {
  std::vector<FarSkipConfig> wirings{{FarSkipMode::off, {}}};
  if (own.mode != FarSkipMode::off) wirings.push_back(own);
  return wirings;
}

ExitCode measure(const Options& options, InferenceRun kind, const OpenedBench& b,
                 const CommonOptions& common) {
  const bool decodes = kind == InferenceRun::decode;
  const auto counts = parse_list(decodes ? "--batches" : "--requests", options.counts, 1 << 16);
  const auto lengths = parse_list("--lengths", options.lengths, 1 << 20);
  check_lengths(lengths, decodes ? 1 : 0, b.run.model);
  const std::int64_t most = *std::max_element(counts.begin(), counts.end());
  if (b.ranks() > 1 && std::find(counts.begin(), counts.end(), 1) != counts.end())
    b.context.logger.info("one text has no halves: two half-batches in flight are measured of more texts");
  const double copy_rate = decodes && b.ranks() == 1 ? measure_copy_rate(*b.context.device(), 5) : 0;
  if (b.speaks && !common.json) print_head(b, kind, copy_rate);
  const auto weights = random_constants(b.wired(b.run.model.farskip), b.context, b.compute,
                                        static_cast<std::uint64_t>(b.run.config.seed));
  bool identical = true;
  for (const std::int64_t length : lengths) {
    std::optional<InferenceBench> alone;
    if (b.ranks() == 1) alone.emplace(b.wired(b.run.model.farskip), b.context, weights, most, length);
    for (const std::int64_t texts : counts) {
      std::vector<Record> rows;
      if (alone)
        rows.push_back(measure_alone(b, kind, *alone, {texts, length}, options.repetitions, copy_rate));
      else
        for (const FarSkipConfig& wiring : wirings_to_compare(b.run.model.farskip))
          for (const int parts : {1, 2}) {
            if (parts > 1 && texts == 1) continue;
            for (auto& row :
                 measure_pair(b, wiring, weights, {kind, texts, length, parts}, options.repetitions))
              rows.push_back(std::move(row));
          }
      for (const Record& row : rows) {
        identical = identical && row.value("identical", true);
        if (b.speaks) print_result(row, print_row, common);
      }
    }
  }
  return identical ? ExitCode::ok : ExitCode::internal;
}

ExitCode run_bench(const Options& options, InferenceRun kind, const CommonOptions& common) {
  LoadedRun run =
      load_run(options.config, options.overrides, {.model = true, .data = false}, common.logger());
  if (!options.device.empty()) run.config.device = parse_choice(device_names, options.device, "--device");
  JobRequest request = request_job(kind == InferenceRun::decode ? "bench decode" : "bench prefill", run);
  request.alike.set("texts", make_node(options.counts));
  request.alike.set("--lengths", make_node(options.lengths));
  request.alike.set("--repetitions", make_node(options.repetitions));
  return run_job(common, request, [&](Job& job) {
    const std::shared_ptr<Device> device = open_device(run.config.device, run.config.precision, job.world);
    const OpenedBench bench{
        run, job.context(mesh_to_measure(options.emulate, run.config.parallel, job.world, *device), device),
        compute_type(run.config.precision), job.world.rank() == 0};
    return measure(options, kind, bench, common);
  });
}

void add(Subcommand& bench, const char* name, const char* help, const char* counts, const Options& defaults,
         const char* counts_help, InferenceRun kind) {
  auto o = std::make_shared<Options>(defaults);
  Subcommand sub = bench.add(name, help);
  sub.positional("CONFIG", o->config, "Run configuration (YAML): model, wiring, precision");
  sub.overrides(o->overrides);
  sub.text(counts, o->counts, counts_help);
  sub.text("--lengths", o->lengths, "Tokens of a text, between commas");
  sub.integer("--repetitions", o->repetitions, "Timed runs of each row", 1, Subcommand::kMostRepetitions);
  sub.text("--device", o->device, "auto, cpu or cuda (default: the configuration's)");
  add_emulate_options(sub, o->emulate);
  sub.run_on_ranks([o, kind](const CommonOptions& common) { return run_bench(*o, kind, common); });
}

}  // namespace

void add_bench_inference(Subcommand& bench) {
  Options prefill, decode;
  prefill.counts = "1,16";
  prefill.lengths = "512,1024,2048";
  decode.counts = "1,8,64,256,1024";
  decode.lengths = "512";
  add(bench, "prefill", "Measure the time to the first token after texts that are read at once", "--requests",
      prefill, "Texts at once, between commas", InferenceRun::prefill);
  add(bench, "decode", "Measure the time between tokens, beside the bytes that have to be read", "--batches",
      decode, "Texts at once, between commas", InferenceRun::decode);
}

}  // namespace farskip
