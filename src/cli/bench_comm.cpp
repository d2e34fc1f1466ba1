// SPDX-License-Identifier: Apache-2.0
// farskip bench comm: what the collectives of a training step reach on the ranks at hand.
#include <algorithm>
#include <cstring>

#include "base/statistics.h"
#include "cli/command_inputs.h"
#include "cli/job.h"
#include "cli/record.h"
#include "engine/devices.h"
#include "engine/engine_options.h"
#include "farskip/engine/engine.h"
#include "measure/measure.h"
#include "ops/collective_ops.h"
#include "run/trainer.h"

namespace farskip {
namespace {

struct Options {
  std::string config, device;
  std::vector<std::string> overrides;
  std::int64_t least = 64 << 10, most = 64 << 20, repetitions = 20;
  int emulate = 0;
};

constexpr std::int64_t kRowElements = 2048;
constexpr std::string_view kPeerOfRow = "peer_of_row";

struct Rate {
  std::string op;
  double bytes = 0;  // sent by one rank
  double transport_seconds = 0, packing_seconds = 0;
};

/// One graph with each collective once, on messages of about `bytes` a peer.
class Collectives {
 public:
  Collectives(std::int64_t bytes, DType dtype, const MeshPosition& mesh) : dtype_(dtype), mesh_(mesh) {
    const auto rows =
        std::max<std::int64_t>(1, bytes / (kRowElements * static_cast<std::int64_t>(dtype_size(dtype))));
    if (mesh.size(MeshAxis::expert) > 1) add_exchange(rows);
    if (mesh.world_size > 1) add_reductions(bytes / static_cast<std::int64_t>(sizeof(float)));
  }

  Graph take() { return std::move(graph_); }
  /// The peer of each row: an even share for all.
  std::vector<std::int32_t> peers() const {
    std::vector<std::int32_t> peers;
    for (int p = 0; p < mesh_.size(MeshAxis::expert); ++p)
      peers.insert(peers.end(), static_cast<std::size_t>(rows_), p);
    return peers;
  }

 private:
  void add_exchange(std::int64_t rows) {
    rows_ = rows;
    const std::int64_t peers = mesh_.size(MeshAxis::expert);
    const ops::RowExchange attributes{.peers = peers, .groups = 1, .max_rows = rows, .rows = peers * rows};
    const ValueId tokens =
        graph_.add_external(ExternalKind::input, "rows", {dtype_, Shape{peers * rows, kRowElements}, {}});
    const ValueId indices = graph_.add_external(ExternalKind::input, std::string(kPeerOfRow),
                                                {DType::i32, Shape{peers * rows, 1}, {}});
    const ops::RoutedOrder order = ops::sort_by_expert(b_, indices, peers);
    const ops::ReceivedRows received =
        ops::exchange_rows(b_, ops::dispatch_rows(b_, tokens, order, 1), order.offsets, attributes);
    const ValueId back = ops::return_rows(b_, received.slabs, received.counts, order.offsets, attributes);
    graph_.add_output("back", ops::combine_rows(b_, back, order, 1));
  }

  void add_reductions(std::int64_t elements) {
    const std::int64_t ranks = mesh_.world_size, rank = mesh_.rank(MeshAxis::world);
    const ValueId whole =
        graph_.add_external(ExternalKind::input, "whole", {DType::f32, Shape{elements * ranks}, {}});
    const ops::Replicas attributes{.axis = MeshAxis::world, .size = ranks, .rank = rank};
    ops::Replicas cut = attributes;
    cut.add(cut_evenly(MeshAxis::world, elements * ranks, static_cast<int>(ranks)));
    const ValueId part = ops::reduce_scatter(b_, {whole}, cut)[0];
    const ValueId gathered = ops::all_gather(b_, {part}, cut)[0];
    graph_.add_output("sum", ops::all_reduce(b_, {gathered}, attributes)[0]);
  }

  DType dtype_;
  MeshPosition mesh_;
  std::int64_t rows_ = 0;
  Graph graph_;
  Builder b_{graph_, {}};
};

/// Medians over the repetitions; of a transport, of the slowest rank.
std::vector<Rate> measure(std::int64_t bytes, DType dtype, const Mesh& mesh, Arena& arena,
                          std::int64_t repetitions) {
  Device& device = arena.device();
  Collectives collectives(bytes, dtype, mesh.position());
  const std::vector<std::int32_t> peers = collectives.peers();
  Graph graph = run_pipeline(collectives.take(), pipeline_for(device.kind(), {}), Logger(LogLevel::warning));
  Plan plan = make_serial_plan(graph, workspace_rule(device), Waits::at_once);
  Executor executor(std::move(graph), std::move(plan), device.kernels(), arena,
                    {.mesh = &mesh, .heartbeat = nullptr, .align = true});
  std::vector<DeviceBuffer> buffers;
  for (const External& external : executor.graph().externals()) {
    const TensorType& type = executor.graph().type(external.value);
    DeviceBuffer& buffer = buffers.emplace_back(allocate_on(device, type.num_bytes()));
    device.fill_zero(buffer.memory.get(), type.num_bytes());
    if (external.name == kPeerOfRow) device.copy_in(buffer.memory.get(), peers.data(), type.num_bytes());
    executor.bind(external.name, {buffer.memory.get(), type.dtype, type.shape});
  }
  std::vector<std::vector<double>> transport(executor.graph().nodes().size()), packing = transport;
  for (std::int64_t i = 0; i < repetitions + 2; ++i) {
    std::vector<StepTime> times;
    executor.run(&times);
    const NodeSeconds seconds = agree_on_seconds(executor.graph(), times, mesh.world());
    NodeSeconds packed(seconds.size(), 0.0);
    for (const StepTime& t : times) packed[t.node.index()] += t.packing_seconds;
    if (i < 2) continue;
    for (std::size_t n = 0; n < seconds.size(); ++n) {
      transport[n].push_back(seconds[n]);
      packing[n].push_back(packed[n]);
    }
  }
  mesh.forget_device_addresses();  // before memory is given back that peers have open
  std::vector<Rate> rates;
  for (std::size_t n = 0; n < transport.size(); ++n)
    if (executor.graph().nodes()[n].op->collective)
      rates.push_back({executor.graph().nodes()[n].op->name, executor.graph().cost(NodeId(n)).wire_bytes,
                       median(transport[n]), median(packing[n])});
  return rates;
}

ExitCode run_on_ranks(const Options& options, const RunConfig& config, const CommonOptions& common,
                      Job& job) {
  refuse_unsupported(config);
  Arena arena(open_device(config.device, config.precision, job.world));
  const Mesh mesh = options.emulate > 0
                        ? make_emulated_mesh(options.emulate, config.parallel, 1.0, arena.device())
                        : make_mesh(job.world, config.parallel, arena.device());
  if (mesh.world().size() == 1) throw UsageError("bench comm: one rank has no peer; use mpirun -np 2");
  Record all = Record::array();
  const bool speaks = job.world.rank() == 0;
  if (speaks && !common.json)
    fmt::print("{} ranks, experts over {}, {}\n{:16} {:>12} {:>10} {:>9} {:>10}\n", mesh.world().size(),
               mesh.expert().size(), arena.device().name(), "collective", "bytes sent", "ms", "GB/s",
               "packing ms");
  for (std::int64_t bytes = options.least; bytes <= options.most; bytes *= 4)
    for (const Rate& r : measure(bytes, compute_type(config.precision), mesh, arena, options.repetitions)) {
      all.push_back({{"collective", r.op},
                     {"bytes", r.bytes},
                     {"seconds", r.transport_seconds},
                     {"packing_seconds", r.packing_seconds}});
      if (speaks && !common.json)
        print_line(all.back(),
                   "{collective:16} {bytes:12.0f} {seconds|ms:10.3f} {bytes/seconds|GB:9.2f} "
                   "{packing_seconds|ms:10.3f}");
    }
  if (speaks && common.json)
    print_json({{"ranks", mesh.world().size()}, {"device", arena.device().name()}, {"collectives", all}});
  return ExitCode::ok;
}

}  // namespace

void add_bench_comm(Subcommand& bench) {
  auto o = std::make_shared<Options>();
  Subcommand comm =
      bench.add("comm", "Measure each collective alone, over message sizes: time, rate, packing");
  comm.positional("CONFIG", o->config, "Run configuration (YAML): device, precision, parallel");
  comm.overrides(o->overrides);
  constexpr std::int64_t most_bytes = std::int64_t{1} << 40;
  comm.integer("--least", o->least,
               "Smallest size, in bytes to each peer; each next size is four times larger", 1024, most_bytes);
  comm.integer("--most", o->most, "Largest size", 1024, most_bytes);
  comm.integer("--repetitions", o->repetitions, "Timed runs of each size", 1, Subcommand::kMostRepetitions);
  comm.integer("--emulate", o->emulate, "One GPU plays rank 0 of N over its bus to the host", 0);
  comm.text("--device", o->device, "auto, cpu or cuda (default: the configuration's)");
  comm.run_on_ranks([o](const CommonOptions& common) {
    LoadedRun run = load_run(o->config, o->overrides, {.model = true, .data = false}, common.logger());
    if (!o->device.empty()) run.config.device = parse_choice(device_names, o->device, "--device");
    JobRequest request = request_job("bench comm", run);
    request.alike.set("--least", make_node(o->least));
    request.alike.set("--most", make_node(o->most));
    request.alike.set("--repetitions", make_node(o->repetitions));
    return run_job(common, request, [&](Job& job) { return run_on_ranks(*o, run.config, common, job); });
  });
}

}  // namespace farskip
