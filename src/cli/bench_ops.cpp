// SPDX-License-Identifier: Apache-2.0
// `farskip bench ops`: every op that a step runs, alone, in turns with what it is held against.
#include <algorithm>
#include <cmath>

#include "cli/op_cases.h"
#include "cli/record.h"
#include "engine/devices.h"
#include "farskip/base/random.h"
#include "farskip/ops/ops.h"
#include "measure/inference_bench.h"

namespace farskip {
namespace {

struct Options {
  std::string config, device, only;
  std::vector<std::string> overrides;
  std::int64_t rounds = 20;
};

/// A dense product of [m, k] and [n, k].
OpCase product_case(std::int64_t m, std::int64_t n, std::int64_t k, DType low) {
  return {"matmul",
          Attributes::of(ops::Matmul{.transpose_b = true}),
          {TensorType{low, Shape{m, k}, {}}, TensorType{low, Shape{n, k}, {}}}};
}

// ---- results against sums in double --------------------------------------------------------------

/// A tensor copied back, read as double.
class HostCopy {
 public:
  HostCopy(Device& device, const TensorView& view) : tensor_(view.dtype, view.shape) {
    device.copy_out(tensor_.bytes().data(), view.data, view.num_bytes());
  }
  double at(std::int64_t i) const {
    if (tensor_.dtype() == DType::f32) return static_cast<double>(tensor_.view().as<const float>()[i]);
    return static_cast<double>(bf16_to_f32(tensor_.view().as<const std::uint16_t>()[i]));
  }

 private:
  HostTensor tensor_;
};

/// Largest error of sampled elements of a product by expert, relative to Σ |a b|.
double worst_error_by_expert(Device& device, const OpCase& c, const OpRun& run) {
  const HostCopy a(device, run.inputs()[0]), b(device, run.inputs()[1]), y(device, run.outputs()[0]);
  const bool wgrad = c.op == "grouped_matmul_wgrad";
  const bool transpose = !wgrad && c.attributes.get<ops::GroupedMatmul>().transpose_w;
  const std::span<const std::int32_t> offsets = c.values.at(2).values<std::int32_t>();
  const Shape &a_shape = run.inputs()[0].shape, &b_shape = run.inputs()[1].shape;
  const std::int64_t a_columns = a_shape.back(), b_columns = b_shape.back();
  const std::int64_t columns = run.outputs()[0].shape.back(),
                     experts = static_cast<std::int64_t>(offsets.size()) - 1;
  double worst = 0;
  for (std::uint64_t sample = 0; sample < 256; ++sample) {
    const auto pick = [&](std::uint64_t stream, std::int64_t n) {
      return static_cast<std::int64_t>(uniform_u64(2, stream, sample) % static_cast<std::uint64_t>(n));
    };
    const std::int64_t column = pick(1, columns);
    double sum = 0, size = 0, result = 0;
    const auto add = [&](double x, double w) {
      sum += x * w;
      size += std::abs(x * w);
    };
    if (wgrad) {
      const std::int64_t e = pick(2, experts), row = pick(3, a_columns);
      for (std::int64_t r = offsets[static_cast<std::size_t>(e)];
           r < offsets[static_cast<std::size_t>(e) + 1]; ++r)
        add(a.at(r * a_columns + row), b.at(r * b_columns + column));
      result = y.at((e * a_columns + row) * columns + column);
    } else {
      const std::int64_t row = pick(2, a_shape[0]);
      const std::int64_t e = std::upper_bound(offsets.begin(), offsets.end(), row) - offsets.begin() - 1;
      const std::int64_t first = e * b_shape[1] * b_columns;
      for (std::int64_t k = 0; k < a_columns; ++k)
        add(a.at(row * a_columns + k),
            b.at(first + (transpose ? column * b_columns + k : k * b_columns + column)));
      result = y.at(row * columns + column);
    }
    const double error = std::abs(result - sum) / std::max(size, 1e-30);
    worst = std::isnan(error) ? INFINITY : std::max(worst, error);
  }
  return worst;
}

// ---- the table -----------------------------------------------------------------------------------

class OpBench {
 public:
  OpBench(Device& device, DType low, std::int64_t rounds) : device_(device), low_(low), rounds_(rounds) {}

  /// The rates of a large product and a large copy.
  Record measure_ceilings() {
    const std::int64_t size = device_.kind() == DeviceKind::cuda ? 8192 : 1024;
    const OpRun square(device_, product_case(size, size, size, low_));
    product_rate_ = square.flops() / time_in_turns(device_, {[&] { square.run(); }}, rounds_)[0];
    copy_rate_ = measure_copy_rate(device_, static_cast<int>(rounds_));
    return {{"device", device_.name()},
            {"product_tflops", product_rate_ * 1e-12},
            {"copy_terabytes_per_second", copy_rate_ * 1e-12}};
  }

  /// Against a dense product with as much arithmetic, in turns, if it is a product; else against the rate of
  /// the large product or of the copy, whichever bounds it.
  Record measure(const ProgramOp& p) {
    const OpRun run(device_, p.op);
    std::vector<std::function<void()>> runs{[&] { run.run(); }};
    std::optional<OpRun> dense;
    if (p.by_expert || p.op.op == "matmul") {
      dense.emplace(device_, equal_product(p, run));
      runs.emplace_back([&] { dense->run(); });
    }
    const std::vector<double> seconds = time_in_turns(device_, runs, rounds_);
    const double by_product = run.flops() / product_rate_, by_copy = run.bytes() / copy_rate_;
    const bool by_bytes = !dense && by_copy >= by_product;
    const double ceiling = dense ? seconds[1] : std::max(by_product, by_copy);
    Record result{{"name", p.name},
                  {"op", p.op.op},
                  {"scope", p.scope},
                  {"inputs", p.inputs},
                  {"count", p.count},
                  {"seconds", seconds[0]},
                  {by_bytes ? "terabytes_per_second" : "tflops",
                   (by_bytes ? run.bytes() : run.flops()) / seconds[0] * 1e-12},
                  {"ceiling_seconds", ceiling},
                  {"of_ceiling", ceiling / seconds[0]}};
    if (p.by_expert) result["worst_error"] = worst_error_by_expert(device_, p.op, run);
    return result;
  }

 private:
  /// Of the rows of the first input and, of two dims, the last one of the output.
  OpCase equal_product(const ProgramOp& p, const OpRun& run) const {
    const std::int64_t rows = run.inputs()[0].shape[0], columns = run.outputs()[0].shape.back();
    const auto inner =
        static_cast<std::int64_t>(run.flops() / 2 / static_cast<double>(rows) / static_cast<double>(columns));
    return product_case(rows, columns, inner, p.op.inputs[0]->dtype);
  }

  Device& device_;
  DType low_;
  std::int64_t rounds_;
  double product_rate_ = 0, copy_rate_ = 0;
};

void print_row(const Record& r) {
  const bool by_bytes = r.contains("terabytes_per_second");
  fmt::print("{} {}{}\n", text_of(r, "{name:84} {count:4} x {seconds|ms:9.3f} ms"),
             by_bytes ? text_of(r, "{terabytes_per_second:8.2f} TB/s     {of_ceiling:5.3f} of copy")
                      : text_of(r, "{tflops:8.2f} TFLOP/s  {of_ceiling:5.3f} of product"),
             r.contains("worst_error") ? text_of(r, ", error {worst_error:.1e}") : "");
}

/// An op that reads all gradients may be larger than what is left beside nothing else.
bool fits(const ProgramOp& p, const Device& device, const Logger& logger) {
  const std::size_t bytes = bytes_of(p.op), free = device.memory().free;
  if (bytes < free) return true;
  constexpr double kGiB = 1 << 30;
  logger.warning("{}: left out; it takes {:.1f} GiB, and {:.1f} are free", p.name,
                 static_cast<double>(bytes) / kGiB, static_cast<double>(free) / kGiB);
  return false;
}

ExitCode run_ops(const Options& options, const CommonOptions& common) {
  LoadedRun run =
      load_run(options.config, options.overrides, {.model = true, .data = false}, common.logger());
  if (!options.device.empty()) run.config.device = parse_choice(device_names, options.device, "--device");
  const std::shared_ptr<Device> device = open_device(run.config.device, run.config.precision);
  OpBench bench(*device, compute_type(run.config.precision), options.rounds);
  print_result(bench.measure_ceilings(),
               fmt::format("{{device}}: product {{product_tflops:.1f}} TFLOP/s, copy "
                           "{{copy_terabytes_per_second:.2f}} TB/s, medians of {}",
                           options.rounds),
               common);
  bool right = true;
  for (const ProgramOp& op : program_ops(run, *device, options.only, common.logger())) {
    if (!fits(op, *device, common.logger())) continue;
    const Record result = bench.measure(op);
    print_result(result, print_row, common);
    // One rounding of the result to bf16, and sums in f32.
    right = right && !(op.by_expert && number_of(result, "worst_error") > 1.0 / 128);
  }
  if (!right) common.logger().error("a product is wrong");
  return right ? ExitCode::ok : ExitCode::internal;
}

}  // namespace

void add_bench_ops(Subcommand& bench) {
  auto o = std::make_shared<Options>();
  Subcommand ops = bench.add("ops", "Measure each op of a step against a dense product or a copy");
  ops.positional("CONFIG", o->config,
                 "Run configuration (YAML): sizes of the model and of a micro-batch, precision");
  ops.overrides(o->overrides);
  ops.text("--device", o->device, "auto, cpu or cuda (default: the configuration's)");
  ops.text("--only", o->only, "Only ops whose name contains this text");
  ops.integer("--rounds", o->rounds, "Timed rounds of each op", 1, Subcommand::kMostRepetitions);
  ops.run([o](const CommonOptions& common) { return run_ops(*o, common); });
}

}  // namespace farskip
