// SPDX-License-Identifier: Apache-2.0
// `farskip bench ops`: every op of a layer alone, in turns with what it is held against.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/statistics.h"
#include "cli/command.h"
#include "cli/command_inputs.h"
#include "cli/op_cases.h"
#include "engine/devices.h"
#include "farskip/backend/device.h"
#include "farskip/base/random.h"
#include "farskip/ops/ops.h"
#include "farskip/runtime/executor.h"
#include "measure/inference_bench.h"

namespace farskip {
namespace {

struct Options {
  std::string config, device, only;
  std::vector<std::string> overrides;
  std::int64_t rounds = 20;
};

std::size_t round_up(std::size_t n) {
  return (n + 255) / 256 * 256;
}

/// Normal values, repeated with a period that is no power of two, so that no two rows are alike by their
/// place.
void fill_random(Device& device, const TensorView& to) {
  constexpr std::size_t kPeriod = 1'000'003;
  const std::size_t count = std::min<std::size_t>(kPeriod, static_cast<std::size_t>(to.num_elements()));
  HostTensor values(DType::f32, {static_cast<std::int64_t>(count)});
  fill_normal(1, static_cast<std::uint64_t>(to.num_elements()), 0, 0.0, 1.0, values.values<float>());
  const HostTensor block = to.dtype == DType::f32 ? values : convert_dtype(values, to.dtype);
  auto* data = static_cast<std::byte*>(to.data);
  device.copy_in(data, block.view().data, block.view().num_bytes());
  for (std::size_t done = block.view().num_bytes(); done < to.num_bytes();) {
    const std::size_t bytes = std::min(done, to.num_bytes() - done);
    device.copy_within(data + done, data, bytes);
    done += bytes;
  }
}

/// One op with its tensors on the device, ready to run.
class OpRun {
 public:
  OpRun(Device& device, const OpCase& c) : device_(device), attributes_(c.attributes) {
    const OpDef& op = op_table().at(c.op);
    std::vector<const TensorType*> inputs;
    for (const TensorType& type : c.inputs) inputs.push_back(&type);
    std::vector<TensorType> outputs = infer_outputs(op, OpTypes{attributes_, inputs});
    const OpTypes types{attributes_, inputs, outputs};
    flops_ = cost_of(op, types).flops;
    kernel_ = &device.kernels().at(c.op, kernel_dtype(types), device.kind());
    workspace_bytes_ = kernel_->workspace == nullptr ? 0 : kernel_->workspace(types);
    place(c.inputs, outputs);
    std::size_t integers = 0;
    for (std::size_t i = 0; i < inputs_.size(); ++i) {
      const TensorView& input = inputs_[i];
      if (input.dtype == DType::i32) {
        const auto& values = c.integers.at(integers++);
        device.copy_in(input.data, values.data(), values.size() * sizeof(values[0]));
      } else if (const auto it = c.numbers.find(i); it != c.numbers.end()) {
        device.copy_in(input.data, it->second.data(), it->second.size() * sizeof(float));
      } else {
        fill_random(device, input);
      }
    }
  }

  double flops() const { return flops_; }
  /// Every input read once, every output written once.
  double bytes() const {
    double sum = 0;
    for (const auto* views : {&inputs_, &outputs_})
      for (const TensorView& view : *views) sum += static_cast<double>(view.num_bytes());
    return sum;
  }
  const std::vector<TensorView>& inputs() const { return inputs_; }
  const std::vector<TensorView>& outputs() const { return outputs_; }
  void run() const {
    kernel_->run({attributes_, inputs_, outputs_, {workspace_, workspace_bytes_}, device_.compute_context()});
  }

 private:
  void place(const std::vector<TensorType>& inputs, const std::vector<TensorType>& outputs) {
    std::size_t bytes = round_up(workspace_bytes_);
    for (const auto* types : {&inputs, &outputs})
      for (const TensorType& type : *types) bytes += round_up(type.num_bytes());
    memory_ = device_.allocate(bytes);
    std::byte* at = memory_.get();
    const auto take = [&](const std::vector<TensorType>& types, std::vector<TensorView>& views) {
      for (const TensorType& type : types) {
        views.push_back({at, type.dtype, type.shape});
        at += round_up(type.num_bytes());
      }
    };
    take(inputs, inputs_);
    take(outputs, outputs_);
    workspace_ = at;
  }

  Device& device_;
  Attributes attributes_;
  double flops_ = 0;
  const Kernel* kernel_ = nullptr;
  std::vector<TensorView> inputs_, outputs_;
  std::byte* workspace_ = nullptr;
  std::size_t workspace_bytes_ = 0;
  std::shared_ptr<std::byte[]> memory_;
};

/// Median seconds of each, taken in turns. One run before each timed one keeps the device busy while the host
/// launches, so that no launch is timed.
std::vector<double> time_in_turns(Device& device, const std::vector<std::function<void()>>& runs,
                                  std::int64_t rounds) {
  const auto marks = device.make_time_marks(2);
  std::vector<std::vector<double>> seconds(runs.size());
  for (std::int64_t round = -2; round < rounds; ++round) {  // two to warm up
    for (std::size_t i = 0; i < runs.size(); ++i) {
      constexpr int kRepeats = 4;
      runs[i]();
      marks->set(0);
      for (int repeat = 0; repeat < kRepeats; ++repeat) runs[i]();
      marks->set(1);
      const double each = marks->seconds(0, 1) / kRepeats;
      if (round >= 0) seconds[i].push_back(each);
    }
  }
  std::vector<double> medians;
  for (const auto& s : seconds) medians.push_back(median(s));
  return medians;
}

OpCase product_case(std::int64_t m, std::int64_t n, std::int64_t k, DType low) {
  return {"product",
          "matmul",
          Attributes::of(ops::Matmul{.transpose_b = true}),
          {{low, Shape{m, k}, {}}, {low, Shape{n, k}, {}}},
          {},
          {}};
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

/// Largest error of sampled elements of a grouped product, relative to Σ |a b|.
double worst_error_of_grouped(Device& device, const OpCase& c, const OpRun& run) {
  const HostCopy a(device, run.inputs()[0]), b(device, run.inputs()[1]), y(device, run.outputs()[0]);
  const bool wgrad = c.op == "grouped_matmul_wgrad";
  const bool transpose = !wgrad && c.attributes.get<ops::GroupedMatmul>().transpose_w;
  const std::vector<std::int32_t>& offsets = c.integers[0];
  const std::int64_t a_columns = c.inputs[0].shape.back(), b_columns = c.inputs[1].shape.back();
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
      const std::int64_t row = pick(2, c.inputs[0].shape[0]);
      const std::int64_t e = std::upper_bound(offsets.begin(), offsets.end(), row) - offsets.begin() - 1;
      const std::int64_t first = e * c.inputs[1].shape[1] * b_columns;
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

struct Result {
  std::string name;
  double seconds = 0, ceiling_seconds = 0;
  double amount = 0;  // flops, or bytes
  bool by_bytes = false;
  std::optional<double> error;

  double of_ceiling() const { return ceiling_seconds / seconds; }
};

class OpBench {
 public:
  OpBench(Device& device, DType low, std::int64_t rounds) : device_(device), low_(low), rounds_(rounds) {}

  /// The rates of a large product and a large copy.
  void measure_ceilings() {
    const std::int64_t size = device_.kind() == DeviceKind::cuda ? 8192 : 1024;
    const OpRun square(device_, product_case(size, size, size, low_));
    product_rate_ = square.flops() / time_in_turns(device_, {[&] { square.run(); }}, rounds_)[0];
    copy_rate_ = measure_copy_rate(device_, static_cast<int>(rounds_));
  }

  Result measure(const OpCase& c) {
    const OpRun run(device_, c);
    const bool by_bytes = c.ceiling.kind == Ceiling::Kind::copy;
    Result result{c.name, 0, 0, by_bytes ? run.bytes() : run.flops(), by_bytes, {}};
    std::vector<std::function<void()>> runs{[&] { run.run(); }};
    std::optional<OpRun> dense;
    if (c.ceiling.m > 0) {
      dense.emplace(device_, product_case(c.ceiling.m, c.ceiling.n, c.ceiling.k, low_));
      runs.emplace_back([&] { dense->run(); });
    }
    const auto seconds = time_in_turns(device_, runs, rounds_);
    result.seconds = seconds[0];
    result.ceiling_seconds = dense ? seconds[1] : result.amount / (by_bytes ? copy_rate_ : product_rate_);
    if (c.op.starts_with("grouped_matmul")) result.error = worst_error_of_grouped(device_, c, run);
    return result;
  }

  double product_rate() const { return product_rate_; }
  double copy_rate() const { return copy_rate_; }

 private:
  Device& device_;
  DType low_;
  std::int64_t rounds_;
  double product_rate_ = 0, copy_rate_ = 0;
};

void print_result(const Result& r, bool json) {
  const double rate = r.amount / r.seconds * 1e-12;
  if (json) {
    nlohmann::ordered_json o{{"name", r.name},
                             {"seconds", r.seconds},
                             {r.by_bytes ? "terabytes_per_second" : "tflops", rate},
                             {"ceiling_seconds", r.ceiling_seconds},
                             {"of_ceiling", r.of_ceiling()}};
    if (r.error) o["worst_error"] = *r.error;
    return print_json(o);
  }
  fmt::print("{:52} {:9.3f} ms {:8.2f} {:7}  {:5.3f} of {}{}\n", r.name, 1e3 * r.seconds, rate,
             r.by_bytes ? "TB/s" : "TFLOP/s", r.of_ceiling(), r.by_bytes ? "copy" : "product",
             r.error ? fmt::format(", error {:.1e}", *r.error) : "");
}

ExitCode run_ops(const Options& options, const CommonOptions& common) {
  LoadedRun run =
      load_run(options.config, options.overrides, {.model = true, .data = false}, common.logger());
  if (!options.device.empty()) run.config.device = parse_choice(device_names, options.device, "--device");
  const std::shared_ptr<Device> device = open_device(run.config.device, run.config.precision);
  const DType low = compute_type(run.config.precision);
  OpBench bench(*device, low, options.rounds);
  bench.measure_ceilings();
  if (common.json)
    print_json({{"device", device->name()},
                {"product_tflops", bench.product_rate() * 1e-12},
                {"copy_terabytes_per_second", bench.copy_rate() * 1e-12}});
  else
    fmt::print("{}: product {:.1f} TFLOP/s, copy {:.2f} TB/s, medians of {}\n", device->name(),
               bench.product_rate() * 1e-12, bench.copy_rate() * 1e-12, options.rounds);
  const auto& t = run.config.train;
  bool right = true;
  for (const OpCase& c : op_cases(run.model, t.micro_batch * t.sequence_length, t.sequence_length, low)) {
    if (c.name.find(options.only) == std::string::npos) continue;
    const Result result = bench.measure(c);
    print_result(result, common.json);
    // One rounding of the result to bf16, and sums in f32.
    right = right && !(result.error && *result.error > 1.0 / 128);
  }
  if (!right) common.logger().error("a product is wrong");
  return right ? ExitCode::ok : ExitCode::internal;
}

}  // namespace

void add_bench_ops(Subcommand& bench) {
  auto o = std::make_shared<Options>();
  Subcommand ops = bench.add("ops", "Measure each op of one layer against a dense product or a copy");
  ops.positional("CONFIG", o->config,
                 "Run configuration (YAML): sizes of the model and of a micro-batch, precision");
  ops.overrides(o->overrides);
  ops.text("--device", o->device, "auto, cpu or cuda (default: the configuration's)");
  ops.text("--only", o->only, "Only ops whose name contains this text");
  ops.integer("--rounds", o->rounds, "Timed rounds of each op", 1, Subcommand::kMostRepetitions);
  ops.run([o](const CommonOptions& common) { return run_ops(*o, common); });
}

}  // namespace farskip
