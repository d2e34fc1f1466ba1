// SPDX-License-Identifier: Apache-2.0
// farskip bench prefill, farskip bench decode: how fast a model reads texts and continues them.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "farskip/cli/command.h"
#include "farskip/cli/command_inputs.h"
#include "farskip/engine/devices.h"
#include "farskip/engine/engine_options.h"
#include "farskip/measure/inference_bench.h"

namespace farskip {
namespace {

struct Options {
  std::string config, device;
  std::string counts, lengths;  // lists: texts at once, and tokens of each
  std::vector<std::string> overrides;
  int repetitions = 20;
};

/// "1,8,64"
std::vector<std::int64_t> parse_list(const std::string& option, const std::string& text, std::int64_t most) {
  std::vector<std::int64_t> values;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const Parsed<std::int64_t> number = parse_integer(std::string_view(text).substr(begin, end - begin));
    if (!number.value || *number.value < 1 || *number.value > most)
      throw UsageError(
          fmt::format("{}: \"{}\" is no list of numbers; allowed: integers from 1 to {} between commas, "
                      "such as 1,8,64",
                      option, text, most));
    values.push_back(*number.value);
    begin = end + 1;
  }
  return values;
}

struct OpenedBench {
  LoadedRun run;
  Context context;
  DType compute;
  Model model;
};

OpenedBench open_bench(const Options& options, const CommonOptions& common) {
  LoadedRun run =
      load_run(options.config, options.overrides, {.model = true, .data = false}, common.logger());
  if (!options.device.empty()) run.config.device = parse_choice(device_names, options.device, "--device");
  const std::shared_ptr<Device> device = open_device(run.config.device, run.config.precision);
  const DType compute = compute_type(run.config.precision);
  Model model = wire_model(run.model);
  return {std::move(run), make_context(device, common.logger()), compute, std::move(model)};
}

/// `more`: tokens that follow a text.
void check_lengths(const std::vector<std::int64_t>& lengths, std::int64_t more, const ModelConfig& model) {
  for (const std::int64_t length : lengths)
    if (length + more > model.max_positions)
      throw UsageError(fmt::format(
          "--lengths: {} is out of range; allowed: 1 to {}, by the model's max_position_embeddings", length,
          model.max_positions - more));
}

std::string wiring_name(const Model& model) {
  return std::string(name_of(farskip_mode_names, model.config.farskip.mode));
}

ExitCode run_decode(const Options& options, const CommonOptions& common) {
  const auto batches = parse_list("--batches", options.counts, 1 << 16);
  const auto lengths = parse_list("--lengths", options.lengths, 1 << 20);
  const OpenedBench b = open_bench(options, common);
  check_lengths(lengths, 1, b.run.model);
  const double copy_rate = measure_copy_rate(*b.context.device(), 5);
  if (!common.json)
    fmt::print("{}, {}; copy {:.3g} GB/s\n{:>8} {:>8} {:>11} {:>11} {:>12} {:>12} {:>8}\n",
               b.context.device()->name(), wiring_name(b.model), copy_rate * 1e-9, "batch", "length", "ms",
               "p99 ms", "tokens/s", "read MB", "of copy");
  for (const std::int64_t length : lengths) {
    InferenceBench bench(b.model, b.context, b.compute, static_cast<std::uint64_t>(b.run.config.seed),
                         *std::max_element(batches.begin(), batches.end()), length);
    for (const std::int64_t batch : batches) {
      const InferenceTimes t = bench.decode(batch, length, options.repetitions);
      const double rate = static_cast<double>(batch) / t.seconds,
                   share = t.bytes_read / t.seconds / copy_rate;
      if (common.json)
        print_json({{"batch", batch},
                    {"length", length},
                    {"seconds", t.seconds},
                    {"seconds_p99", t.seconds_p99},
                    {"tokens_per_second", rate},
                    {"bytes_read", t.bytes_read},
                    {"of_copy_rate", share}});
      else
        fmt::print("{:8} {:8} {:11.3f} {:11.3f} {:12.0f} {:12.1f} {:8.3f}\n", batch, length, 1e3 * t.seconds,
                   1e3 * t.seconds_p99, rate, t.bytes_read * 1e-6, share);
    }
  }
  return ExitCode::ok;
}

ExitCode run_prefill(const Options& options, const CommonOptions& common) {
  const auto requests = parse_list("--requests", options.counts, 1 << 16);
  const auto lengths = parse_list("--lengths", options.lengths, 1 << 20);
  const OpenedBench b = open_bench(options, common);
  check_lengths(lengths, 0, b.run.model);
  if (!common.json)
    fmt::print("{}, {}\n{:>8} {:>8} {:>11} {:>11} {:>12}\n", b.context.device()->name(), wiring_name(b.model),
               "length", "requests", "ms", "p99 ms", "tokens/s");
  for (const std::int64_t length : lengths) {
    InferenceBench bench(b.model, b.context, b.compute, static_cast<std::uint64_t>(b.run.config.seed),
                         *std::max_element(requests.begin(), requests.end()), length);
    for (const std::int64_t n : requests) {
      const InferenceTimes t = bench.prefill(n, length, options.repetitions);
      const double rate = static_cast<double>(t.tokens) / t.seconds;
      if (common.json)
        print_json({{"length", length},
                    {"requests", n},
                    {"wiring", wiring_name(b.model)},
                    {"ranks", 1},
                    {"seconds", t.seconds},
                    {"seconds_p99", t.seconds_p99},
                    {"tokens_per_second", rate}});
      else
        fmt::print("{:8} {:8} {:11.3f} {:11.3f} {:12.0f}\n", length, n, 1e3 * t.seconds, 1e3 * t.seconds_p99,
                   rate);
    }
  }
  return ExitCode::ok;
}

void add(Subcommand& bench, const char* name, const char* help, const char* counts, const Options& defaults,
         const char* counts_help, ExitCode (*run)(const Options&, const CommonOptions&)) {
  auto o = std::make_shared<Options>(defaults);
  Subcommand sub = bench.add(name, help);
  sub.positional("CONFIG", o->config, "Run configuration (YAML): model, wiring, precision");
  sub.overrides(o->overrides);
  sub.text(counts, o->counts, counts_help);
  sub.text("--lengths", o->lengths, "Tokens of a text, between commas");
  sub.integer("--repetitions", o->repetitions, "Timed runs of each row", 1, Subcommand::kMostRepetitions);
  sub.text("--device", o->device, "auto, cpu or cuda (default: the configuration's)");
  sub.run([o, run](const CommonOptions& common) { return run(*o, common); });
}

}  // namespace

void add_bench_inference(Subcommand& bench) {
  Options prefill, decode;
  prefill.counts = "1,16";
  prefill.lengths = "512,1024,2048";
  decode.counts = "1,8,64,256,1024";
  decode.lengths = "512";
  add(bench, "prefill", "Measure the time to the first token after texts that are read at once", "--requests",
      prefill, "Texts at once, between commas", run_prefill);
  add(bench, "decode", "Measure the time between tokens, beside the bytes that have to be read", "--batches",
      decode, "Texts at once, between commas", run_decode);
}

}  // namespace farskip
