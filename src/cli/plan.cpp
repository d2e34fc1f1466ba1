// SPDX-License-Identifier: Apache-2.0
// farskip plan: a training step predicted, without the ranks that it is planned for.
#include <algorithm>
#include <chrono>

#include "backend/cpu/machine.h"
#include "base/environment.h"
#include "base/version.h"
#include "cli/command_inputs.h"
#include "cli/plan_inference.h"
#include "cli/plan_text.h"
#include "cli/search_text.h"
#include "cli/units.h"
#include "engine/engine_options.h"
#include "farskip/config/scalar.h"
#include "measure/measure_without_peers.h"
#include "passes/farskip.h"
#include "run/trainer.h"
#include "tensor/hash.h"

namespace farskip {
namespace {

struct Options {
  std::string config, dump_graphs;
  std::vector<std::string> overrides;
  int ranks = 0, local_ranks = 1;
  std::string link, latency = "20us", costs, device_rate, gpu, memory;
  std::string lengths = "512,1024,2048", requests = "1,16", batches = "1,64,1024";
  bool graph = false, verbose = false, search = false, inference = false;
};

// A measurement that would take longer at the rate of matrix products is done with fewer sequences or steps.
// With all else that a step does, and the setting up, it takes about twice as long.
constexpr double kMostSeconds = 12;

constexpr std::string_view kDefaultCard = "h100";

/// The GPU that is planned for: a named one, and for a run that only a GPU can do some GPU.
const GpuCard* choose_card(const RunConfig& config, const Options& o) {
  const int given = int(!o.costs.empty()) + int(!o.device_rate.empty()) + int(!o.gpu.empty());
  if (given > 1)
    throw UsageError("--costs, --device-rate and --gpu each say what kernels take; use one of them");
  if (!o.gpu.empty()) return &gpu_card(o.gpu);
  const bool needs_gpu = config.device == DeviceChoice::cuda ||
                         (config.device == DeviceChoice::automatic && config.precision == Precision::bf16);
  return given == 0 && needs_gpu ? &gpu_card(kDefaultCard) : nullptr;
}

/// A plan may be for hardware that is not there; what is measured is measured on this machine's CPU.
void refuse_unplannable(RunConfig config, const Options& o, const GpuCard* card) {
  const bool is_measured = card == nullptr && o.device_rate.empty() && o.costs.empty();
  if (!is_measured) config.precision = Precision::fp32;
  config.device = DeviceChoice::cpu;
  refuse_unsupported(config);
}

bool knows_link(const PlanRequest& request, const Options& o) {
  return request.mesh.world_size == 1 || !o.costs.empty() || request.costs.links[0].bytes_per_second > 0;
}

void refuse_unknown_link(const PlanRequest& request) {
  const GpuCard* const card = request.costs.card;
  throw UsageError(fmt::format(
      "--ranks {}: say how fast a rank sends, as in --link 48GB/s or --link 400Gb/s (each way), or give the "
      "costs of a run on as many ranks (--costs RUN_DIR/costs.txt){}",
      request.mesh.world_size,
      card == nullptr ? "" : fmt::format("; NVLink joins only {} {} GPUs", card->linked, card->title)));
}

PlanRequest make_request(const LoadedRun& run, const Options& o, int ranks, const GpuCard* card) {
  const ParallelConfig& parallel = run.config.parallel;
  if (const int inner = std::max(parallel.expert, parallel.tensor); ranks % inner != 0)
    throw UsageError(fmt::format(
        "--ranks {}: parallel.{} is {}, which does not divide it; use a multiple of {}, or another "
        "parallel.{}",
        ranks, parallel.tensor > 1 ? "tensor" : "expert", inner, inner,
        parallel.tensor > 1 ? "tensor" : "expert"));
  PlanRequest request;
  request.model = run.model;
  if (run.model.farskip.mode == FarSkipMode::off) request.model.farskip = {FarSkipMode::full, {}};
  request.options = engine_options(run.config, ranks);
  request.options.expert_chunks = std::max(1, request.options.expert_chunks);  // auto: both are planned
  request.distill = run.distill;
  request.mesh = {ranks, 0, parallel.expert, parallel.tensor};
  request.dtype = run.config.precision == Precision::bf16 ? DType::bf16 : DType::f32;
  const double latency = parse_duration("--latency", o.latency);
  request.costs.card = card;
  if (!o.link.empty())
    request.costs.links.fill({latency, parse_link_rate("--link", o.link)});
  else if (card != nullptr && ranks <= card->linked)
    request.costs.links.fill(attained_link(*card, latency));
  if (card != nullptr)
    request.costs.rates = attained_rates(*card, request.dtype);
  else if (!o.device_rate.empty())
    request.costs.rates = parse_device_rates("--device-rate", o.device_rate);
  return request;
}

/// A table as training keeps it in RUN_DIR/costs.txt (its first line is a key), or without that line.
CostTable read_costs(const fs::path& path) {
  std::string text = read_text_file(path);
  const std::size_t end = text.find('\n');
  if (text.substr(0, end).find('\t') == std::string::npos)
    text.erase(0, end == std::string::npos ? end : end + 1);
  try {
    CostTable table = CostTable::parse(text);
    if (table.empty()) throw DataError("cost table: it is empty");
    return table;
  } catch (const DataError& error) {
    throw DataError(fmt::format("{}: {}", path.string(), error.what()));
  }
}

/// What a teacher adds to what is measured.
std::string distill_key(const DistillSetup& setup) {
  const DistillConfig& c = setup.config;
  return fmt::format(" {} {} {} {} {} {} {} {} {}", c.hidden_loss.weight > 0,
                     static_cast<int>(c.hidden_loss.kind), c.hidden_loss.anneal > 0, c.router_agreement > 0,
                     c.top_k, c.cache ? c.cache->top_k : 0, fmt::join(c.freeze, " "), setup.from_teacher,
                     hub_config_text(setup.teacher));
}

fs::path cache_file(const PlanRequest& r, const Options& o) {
  const std::string folder = user_cache_folder();
  if (folder.empty()) return {};
  const MachineInfo machine = machine_info();
  std::string key = fmt::format(
      "{} {} {} {} {} {} {} {} {} {} {} {} {} {} {}", machine.processor, machine.cores, o.local_ranks,
      commit(), r.mesh.world_size, r.mesh.expert_size, r.mesh.tensor_size, r.options.zero,
      r.options.micro_batch, r.options.micro_batches, r.options.sequence_length, r.options.expert_chunks,
      r.options.balance_loss, r.options.routed_rows_memory.value_or(0), hub_config_text(r.model));
  if (r.distill) key += distill_key(*r.distill);
  return fs::path(folder) / "farskip" / fmt::format("costs-{}.txt", hash_text(key));
}

/// The kept measurement, or nullptr.
std::shared_ptr<const CostTable> read_cache(const fs::path& path, const Logger& logger) {
  if (path.empty() || !fs::exists(path)) return nullptr;
  try {
    return std::make_shared<const CostTable>(read_costs(path));
  } catch (const Error& error) {
    logger.warning("{}; it is measured again", error.what());
    return nullptr;
  }
}

void write_cache(const fs::path& path, const CostTable& table, const Logger& logger) {
  if (path.empty()) return;
  try {
    fs::create_directories(path.parent_path());
    remove_stale_temporaries(path.parent_path(), [](std::string_view name) {
      return name.starts_with("costs-") && name.ends_with(".txt");
    });
    write_text_file(path, table.text());
  } catch (const std::exception& error) {
    logger.warning("cannot keep the measured costs: {}", error.what());
  }
}

std::shared_ptr<const CostTable> measure_costs(const PlanRequest& request, const Options& o,
                                               const Logger& logger) {
  const MachineInfo machine = machine_info();
  cpu::share_cores(o.local_ranks, machine.cores);
  const double rate = cpu::measure_machine().matmul_gflops * 1e9;
  const MirrorMeasurement measurement = choose_measurement(request, rate, kMostSeconds, o.local_ranks);
  const PlanRequest& shorter = measurement.request;
  const auto needed = static_cast<double>(state_memory(shorter).total()) * o.local_ranks;
  if (needed > 0.8 * static_cast<double>(machine.memory_bytes))
    throw UsageError(fmt::format(
        "measuring three layers of this model takes {:.0f} GiB for the weights of {} ranks alone, and this "
        "machine has {:.0f}; "
        "give the rates of a device (--device-rate 400TFLOP/s,3TB/s) or a table of costs (--costs FILE)",
        needed / (1 << 30), o.local_ranks, static_cast<double>(machine.memory_bytes) / (1 << 30)));
  const fs::path path = cache_file(shorter, o);
  if (auto kept = read_cache(path, logger)) {
    logger.info("using kernel costs measured before ({})", path.string());
    return kept;
  }
  logger.info("measuring the kernels of {} of {} layers, {} of {} sequences at a time",
              shorter.model.num_layers, request.model.num_layers, shorter.options.micro_batch,
              request.options.micro_batch);
  auto table =
      std::make_shared<const CostTable>(measure_without_peers(measurement, Logger(LogLevel::warning)));
  write_cache(path, *table, logger);
  return table;
}

/// The memory that a plan has to fit, in bytes.
std::uint64_t memory_to_fit(const Options& o, const GpuCard* card) {
  if (o.memory.empty() && card != nullptr) return static_cast<std::uint64_t>(card->memory_bytes);
  const auto bytes = parse_memory(o.memory);
  if (!bytes.value)
    throw UsageError(
        fmt::format("--memory '{}': {}; say what a rank may take, such as 80GB", o.memory,
                    o.memory.empty() ? "--search needs it where no GPU is named" : bytes.reason));
  return *bytes.value;
}

/// Reading and continuing texts, in place of a training step.
void plan_texts(const PlanRequest& request, const Options& o, const CommonOptions& common) {
  if (request.costs.card == nullptr && o.device_rate.empty())
    throw UsageError(
        "--inference: say what kernels take, as in --gpu h200 or --device-rate 400TFLOP/s,3TB/s; bench "
        "prefill and "
        "bench decode measure this machine");
  const std::vector<std::int64_t> lengths = parse_list("--lengths", o.lengths, 1 << 20);
  for (const std::int64_t length : lengths)
    if (length >= request.model.max_positions)
      throw UsageError(fmt::format(
          "--lengths: {} is out of range; allowed: 1 to {}, by the model's max_position_embeddings", length,
          request.model.max_positions - 1));
  print_inference_plans(
      {.model = request.model, .mesh = request.mesh, .dtype = request.dtype, .costs = request.costs},
      {.lengths = lengths,
       .requests = parse_list("--requests", o.requests, 1 << 16),
       .batches = parse_list("--batches", o.batches, 1 << 16),
       .memory =
           o.memory.empty() && request.costs.card == nullptr ? 0 : memory_to_fit(o, request.costs.card)},
      common);
}

/// `base`: what is planned without a search; its costs hold for all.
ExitCode run_search(const LoadedRun& run, const PlanRequest& base, const Options& o,
                    const CommonOptions& common) {
  if (base.costs.card == nullptr && !base.costs.table && o.device_rate.empty())
    throw UsageError(
        "--search plans many settings, of which none is measured; name a GPU (--gpu h100), give the rates of "
        "a "
        "device (--device-rate 400TFLOP/s,3TB/s) or a table of costs (--costs FILE)");
  std::vector<std::string> fixed;
  for (const std::string& given : o.overrides) fixed.push_back(given.substr(0, given.find('=')));
  const int ranks = base.mesh.world_size;
  const Logger quiet(LogLevel::off);
  const SearchSpace space = search_space(run.config, run.model, ranks, fixed);
  const auto make = [&](const Settings& settings) {
    std::vector<std::string> overrides = o.overrides;
    for (const auto& [key, value] : settings)
      if (std::find(fixed.begin(), fixed.end(), key) == fixed.end())
        overrides.push_back(fmt::format("{}={}", key, value));
    PlanRequest request = make_request(load_run(o.config, overrides, {.model = true, .data = false}, quiet),
                                       o, ranks, base.costs.card);
    request.costs = base.costs;
    return request;
  };
  const std::uint64_t memory = memory_to_fit(o, base.costs.card);
  const auto start = std::chrono::steady_clock::now();
  SearchReport report{ranks,
                      memory,
                      base.options.sequence_length * run.config.train.global_batch,
                      space,
                      search_plans(space, make, memory, quiet),
                      0};
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const auto print_text = [&](const Record& record) {
    print_card(base);
    print_search(record, o.verbose);
  };
  print_result(search_record(report), print_text, common);
  return ExitCode::ok;
}

/// schedule.recompute: auto.
void settle_recompute(const LoadedRun& run, PlanRequest& request, bool json) {
  if (request.options.recompute != Recompute::automatic) return;
  const RecomputePlan chosen =
      fit_recompute(request, *run.config.schedule.memory, 0, Logger(LogLevel::warning));
  request.options.recompute = chosen.recompute;
  if (chosen.routed_rows_memory) request.options.routed_rows_memory = chosen.routed_rows_memory;
  if (!json)
    fmt::print("schedule.recompute: auto: {}, the fastest that fits schedule.memory\n",
               name_of(recompute_names, chosen.recompute));
}

ExitCode run_plan(const Options& o, const CommonOptions& common) {
  if (!o.memory.empty() && !o.search && !o.inference)
    throw UsageError(
        "--memory: a training step is held against it by --search, and --inference; add one of them");
  if (o.inference && o.search)
    throw UsageError(
        "--search tries settings of a training step, and --inference plans none; use one of them");
  if ((o.inference || o.search) && !o.dump_graphs.empty())
    throw UsageError(
        "--dump-graphs writes the graphs of a training step; leave out --inference and --search");
  const Logger logger = common.logger();
  prepare_dump_folder(o.dump_graphs);
  const LoadedRun run = load_run(o.config, o.overrides, {.model = true, .data = false}, logger);
  const GpuCard* const card = choose_card(run.config, o);
  refuse_unplannable(run.config, o, card);
  const int ranks = o.ranks > 0 ? o.ranks : std::max(run.config.parallel.expert, run.config.parallel.tensor);
  PlanRequest request = make_request(run, o, ranks, card);
  const LayerGraph standard = build_layer_graph(request.model);
  const WiringPair wirings{standard, rewire_farskip(standard, request.model.farskip)};
  if (o.graph && !common.json) print_wirings(wirings);
  if (!knows_link(request, o)) {
    if (o.graph && !common.json) return ExitCode::ok;
    refuse_unknown_link(request);
  }
  if (o.inference) {
    plan_texts(request, o, common);
    return ExitCode::ok;
  }
  if (!o.costs.empty())
    request.costs.table = std::make_shared<const CostTable>(read_costs(o.costs));
  else if (card == nullptr && o.device_rate.empty() && !o.search)
    request.costs.table = measure_costs(request, o, logger);
  if (o.search) return run_search(run, request, o, common);
  settle_recompute(run, request, common.json);
  request.options.pipeline.dump_folder = o.dump_graphs;  // not of what was measured
  const PlanReport report = plan_step(request, Logger(LogLevel::warning));
  const auto print_text = [&](const Record& record) { print_plan(request, report, record, o.verbose); };
  print_result(plan_record(request, report, o.graph ? &wirings : nullptr), print_text, common);
  return ExitCode::ok;
}

}  // namespace

void add_plan(Subcommand& root) {
  auto o = std::make_shared<Options>();
  Subcommand plan =
      root.add("plan", "Predict a training step on any number of ranks: time, memory, communication");
  plan.positional("CONFIG", o->config, "Run configuration (YAML)");
  plan.overrides(o->overrides);
  add_dump_option(plan, o->dump_graphs);
  plan.integer("--ranks", o->ranks, "Ranks of the job (0: those of parallel.expert or parallel.tensor)", 0,
               1 << 20);
  plan.text("--link", o->link,
            "Rate of a rank, each way: 48GB/s, 400Gb/s (GB/s, MB/s, Gb/s, Mb/s); up to 8 GPUs: NVLink's");
  plan.text("--latency", o->latency, "Latency of one collective: 20us (us, ms, s)");
  plan.path("--costs", o->costs,
            "Kernel costs that a run has measured (RUN_DIR/costs.txt), instead of measuring them here");
  plan.text("--device-rate", o->device_rate,
            "Matrix and memory rate of a device that this machine lacks: 400TFLOP/s,3TB/s");
  plan.text("--gpu", o->gpu,
            "A GPU that this machine lacks: h100, h200, b200 (h100 where the configuration needs a GPU)");
  plan.integer("--local-ranks", o->local_ranks, "Ranks that share this machine's cores, for measuring", 1,
               4096);
  plan.flag(
      "--search", o->search,
      "Try layouts, recomputation and micro-batches, and list those that fit the memory, fastest first");
  plan.text("--memory", o->memory,
            "Memory of a rank for --search and --inference: 80GB, 75GiB (that of the GPU if it is named)");
  plan.flag("--graph", o->graph, "Also print what each block reads, in both wirings");
  plan.flag("--inference", o->inference, "Predict reading and continuing texts instead of a training step");
  plan.text("--lengths", o->lengths, "With --inference: tokens of a text, between commas");
  plan.text("--requests", o->requests, "With --inference: texts that are read at once");
  plan.text("--batches", o->batches, "With --inference: texts that are continued at once");
  for (const char* option : {"--lengths", "--requests", "--batches"}) plan.needs(option, "--inference");
  plan.flag("--verbose", o->verbose, "Also list every collective of the FarSkip wiring");
  plan.run([o](const CommonOptions& common) { return run_plan(*o, common); });
}

}  // namespace farskip
