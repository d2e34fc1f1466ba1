// SPDX-License-Identifier: Apache-2.0
#include "job.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "autograd/gradient.h"
#include "farskip/ops/ops.h"
#include "farskip/runtime/executor.h"
#include "ops/distill_ops.h"

namespace farskip::test {
namespace {

constexpr std::size_t kAlignment = 256, kGuard = 256;
constexpr std::byte kPoison{0xff}, kGuardByte{0xa5};

std::vector<TensorView> views(const std::vector<HostTensor>& tensors) {
  std::vector<TensorView> out;
  for (const HostTensor& tensor : tensors) out.push_back(tensor.view());
  return out;
}

HostTensor copy_of(const TensorView& view) {
  if (!view) return {};
  HostTensor tensor(view.dtype, view.shape);
  std::copy(view.bytes().begin(), view.bytes().end(), tensor.bytes().begin());
  return tensor;
}

/// Types of inputs as rules want them: nullptr where one is absent. The rows of those listed in `bounded` are
/// bounded by some value of the graph.
struct InputTypes {
  explicit InputTypes(const std::vector<HostTensor>& inputs, const std::vector<std::size_t>& bounded = {}) {
    for (const HostTensor& input : inputs) types.push_back({input.dtype(), input.shape(), {}});
    for (const std::size_t i : bounded)
      if (i < types.size()) types[i].count = ValueId(0);
    for (std::size_t i = 0; i < inputs.size(); ++i)
      pointers.push_back(inputs[i].view() ? &types[i] : nullptr);
  }
  std::vector<TensorType> types;
  std::vector<const TensorType*> pointers;
};

DType kernel_dtype_of(const Attributes& attributes, const std::vector<HostTensor>& inputs,
                      const std::vector<TensorType>& outputs) {
  const InputTypes types(inputs);
  return farskip::kernel_dtype({attributes, types.pointers, outputs});
}

std::vector<HostTensor> run_on_cpu(const OpDef& op, const Attributes& attributes,
                                   const std::vector<HostTensor>& inputs) {
  const OpRun run{op, attributes, views(inputs)};
  const auto types = run.output_types();
  std::vector<HostTensor> outputs;
  for (const Buffer& buffer :
       run.execute(cpu_kernel_table(), kernel_dtype_of(attributes, inputs, types), types))
    outputs.push_back(copy_of(buffer.view()));
  return outputs;
}

std::vector<TensorType> infer_outputs(const OpDef& op, const Attributes& attributes,
                                      const std::vector<HostTensor>& inputs) {
  return OpRun{op, attributes, views(inputs)}.output_types();
}

/// Rounds the inputs that a bf16 graph has in bf16. An accumulator is of its output's type.
void lower_inputs(const OpDef& op, const Attributes& attributes, std::vector<HostTensor>& inputs) {
  std::vector<HostTensor> others = inputs;
  for (const InPlace& sum : op.accumulates)
    if (sum.input < inputs.size()) others[sum.input] = HostTensor();
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const InputType type = op.input_type(i);
    if (others[i].view() && others[i].dtype() == DType::f32 &&
        (type == InputType::compute || type == InputType::any))
      inputs[i] = others[i] = convert_dtype(inputs[i], DType::bf16);
  }
  const std::vector<TensorType> outputs = infer_outputs(op, attributes, others);
  for (const InPlace& sum : op.accumulates)
    if (sum.input < inputs.size() && inputs[sum.input].view())
      inputs[sum.input] = convert_dtype(inputs[sum.input], outputs[sum.output].dtype);
}

/// Nodes of the case and its gradient; outputs of the case are differentiated together.
std::vector<Job> graph_jobs(const OpCase& c) {
  Graph graph;
  std::vector<TensorView> externals;
  std::vector<HostTensor> douts;
  std::vector<ValueId> inputs, wanted;
  for (std::size_t i = 0; i < c.inputs.size(); ++i) {
    inputs.emplace_back();
    if (!c.inputs[i].view()) continue;
    inputs.back() = graph.add_external(ExternalKind::input, fmt::format("in{}", i),
                                       {c.inputs[i].dtype(), c.inputs[i].shape(), {}});
    externals.push_back(c.inputs[i].view());
    const bool constant = std::find(c.constants.begin(), c.constants.end(), i) != c.constants.end();
    if (c.inputs[i].dtype() == DType::f32 && !constant) wanted.push_back(inputs.back());
  }
  const auto types = infer_outputs(op_table().at(c.op), c.attributes, c.inputs);
  std::vector<ValueId> seeds;
  for (const std::size_t output : c.differentiated) {
    seeds.push_back(graph.add_external(ExternalKind::input, fmt::format("dout{}", output), types[output]));
    douts.push_back(random_tensor(types[output].shape, 900 + output));
    externals.push_back(douts.back().view());
  }
  const auto results = graph.add_node(op_table().at(c.op), c.attributes, inputs, Scope{});
  std::vector<Objective> objectives;
  for (std::size_t o = 0; o < c.differentiated.size(); ++o)
    objectives.push_back({results[c.differentiated[o]], seeds[o]});
  differentiate(graph, objectives, wanted);

  const auto values = run_graph(graph, externals);
  std::vector<Job> jobs;
  for (const Node& node : graph.nodes()) {
    Job job{fmt::format("{} {{{}}}: {}", node.op->name, node.attributes.text(), c.name),
            node.op,
            node.attributes,
            {}};
    for (const ValueId input : node.inputs)
      job.inputs.push_back(input ? copy_of(values[input.index()].view()) : HostTensor());
    jobs.push_back(std::move(job));
  }
  return jobs;
}

/// Rows appended to a tensor, all bytes poison.
HostTensor with_rows(const HostTensor& tensor, std::int64_t extra) {
  Shape shape = tensor.shape();
  shape.set_dim(0, shape[0] + extra);
  HostTensor longer(tensor.dtype(), shape);
  std::fill(longer.bytes().begin(), longer.bytes().end(), kPoison);
  std::copy(tensor.bytes().begin(), tensor.bytes().end(), longer.bytes().begin());
  return longer;
}

/// Places in one piece of memory, each followed by a guard.
class Layout {
 public:
  std::size_t add(std::size_t bytes) {
    const std::size_t begin = size_;
    ends_.push_back(begin + bytes);
    size_ = (begin + bytes + kGuard + kAlignment - 1) / kAlignment * kAlignment;
    begins_.push_back(size_);
    return begin;
  }
  std::size_t size() const { return size_; }
  std::size_t num_places() const { return ends_.size(); }
  void set_guards(std::span<std::byte> image) const {
    for (std::size_t i = 0; i < ends_.size(); ++i)
      std::fill(image.begin() + ends_[i], image.begin() + begins_[i], kGuardByte);
  }
  bool intact(std::span<const std::byte> image, std::size_t i) const {
    return std::all_of(image.begin() + ends_[i], image.begin() + begins_[i],
                       [](std::byte b) { return b == kGuardByte; });
  }

 private:
  std::size_t size_ = 0;
  std::vector<std::size_t> ends_, begins_;  // of place i; of what comes after its guard
};

}  // namespace

std::vector<Job> jobs_of(const OpCase& c) {
  std::vector<Job> jobs;
  if (c.differentiated.empty() || op_table().at(c.op).gradient == nullptr) {
    jobs.push_back({c.text(), &op_table().at(c.op), c.attributes, c.inputs});
  } else {
    jobs = graph_jobs(c);
  }
  const std::size_t plain = jobs.size();
  for (std::size_t j = 0; j < plain; ++j)
    for (const InPlace& pair : jobs[j].op->accumulates) {
      if (pair.input < jobs[j].inputs.size()) continue;  // the case itself accumulates
      Job job = jobs[j];
      job.text += ", accumulating";
      const auto types = infer_outputs(*job.op, job.attributes, job.inputs);
      job.inputs.resize(pair.input);
      job.inputs.push_back(random_tensor(types[pair.output].shape, 950));
      if (job.op->name == "matmul") {  // to both types of products of low matrices
        Job wide = job;
        auto a = job.attributes.get<ops::Matmul>();
        a.wide = true;
        wide.attributes = Attributes::of(a);
        wide.text += " in f32";
        jobs.push_back(std::move(wide));
      }
      jobs.push_back(std::move(job));
    }
  return jobs;
}

DType Prepared::kernel_dtype() const {
  return kernel_dtype_of(attributes, inputs, outputs);
}

Prepared on_the_gpu(const Job& job, bool low) {
  Prepared p{job.attributes, job.inputs, {}, {}};
  if (low) lower_inputs(*job.op, job.attributes, p.inputs);
  p.outputs = infer_outputs(*job.op, p.attributes, p.inputs);
  return p;
}

Prepared prepare(const Job& job, bool low) {
  Prepared p = on_the_gpu(job, low);
  std::vector<HostTensor> rounded = p.inputs;
  for (HostTensor& input : rounded)
    if (low && input.view() && is_low(input.dtype())) input = convert_dtype(input, DType::f32);
  p.expected = run_on_cpu(*job.op, job.attributes, rounded);
  return p;
}

Prepared with_unused_rows(const Job& job, bool low) {
  const auto& bounded = job.op->bounded;
  // Where the bound is that of all slots, rows past it cannot be added.
  for (const std::string_view of_slots : {"dispatch_rows", "combine_rows", "permute_values"})
    if (job.op->name == of_slots) return {};
  if (bounded.empty() || job.inputs[bounded[0]].shape().rank() == 0) return {};
  Prepared p = prepare(job, low);
  for (const std::size_t i : bounded)
    if (i < p.inputs.size() && p.inputs[i].view()) p.inputs[i] = with_rows(p.inputs[i], 5);
  p.outputs = infer_outputs(*job.op, p.attributes, p.inputs);
  return p;
}

GpuRun run_on_gpu(Device& device, const OpDef& op, const Prepared& prepared,
                  const std::vector<InPlace>& in_place, std::int64_t count) {
  const InputTypes types(prepared.inputs);
  const DType dtype = prepared.kernel_dtype();
  const Kernel& kernel = device.kernels().at(op.name, dtype, DeviceKind::cuda);
  const std::size_t workspace_bytes =
      kernel.workspace == nullptr ? 0
                                  : kernel.workspace({prepared.attributes, types.pointers, prepared.outputs});

  Layout layout;
  std::vector<std::size_t> in_places, out_places;
  for (const HostTensor& input : prepared.inputs)
    in_places.push_back(layout.add(input.view() ? input.view().num_bytes() : 0));
  for (std::size_t o = 0; o < prepared.outputs.size(); ++o) {
    out_places.push_back(layout.add(prepared.outputs[o].num_bytes()));
    for (const InPlace& pair : in_place)
      if (pair.output == o) out_places.back() = in_places[pair.input];
  }
  const std::size_t workspace_place = layout.add(workspace_bytes),
                    count_place = layout.add(sizeof(std::int32_t));
  std::vector<std::byte> image(layout.size(), kPoison);
  layout.set_guards(image);
  for (std::size_t i = 0; i < prepared.inputs.size(); ++i)
    if (prepared.inputs[i].view())
      std::copy(prepared.inputs[i].bytes().begin(), prepared.inputs[i].bytes().end(),
                image.begin() + static_cast<std::ptrdiff_t>(in_places[i]));
  const auto narrow = static_cast<std::int32_t>(count);
  std::memcpy(image.data() + count_place, &narrow, sizeof(narrow));

  const auto memory = device.allocate(layout.size());
  device.copy_in(memory.get(), image.data(), image.size());
  std::vector<TensorView> inputs, outputs;
  for (std::size_t i = 0; i < prepared.inputs.size(); ++i) {
    TensorView view = prepared.inputs[i].view();
    if (view) view.data = memory.get() + in_places[i];
    inputs.push_back(view);
  }
  for (std::size_t o = 0; o < prepared.outputs.size(); ++o)
    outputs.push_back({memory.get() + out_places[o], prepared.outputs[o].dtype, prepared.outputs[o].shape});
  std::vector<const std::int32_t*> input_rows(inputs.size(), nullptr), output_rows(outputs.size(), nullptr);
  if (count >= 0) {
    const auto* on_device = reinterpret_cast<const std::int32_t*>(memory.get() + count_place);
    for (const std::size_t i : op.bounded)
      if (i < inputs.size()) input_rows[i] = on_device;
    const InputTypes bounded(prepared.inputs, op.bounded);
    const auto bounded_outputs = farskip::infer_outputs(op, {prepared.attributes, bounded.pointers});
    for (std::size_t o = 0; o < outputs.size(); ++o)
      if (bounded_outputs[o].count) output_rows[o] = on_device;
  }
  kernel.run({prepared.attributes,
              inputs,
              outputs,
              {memory.get() + workspace_place, workspace_bytes},
              device.compute_context(),
              input_rows,
              output_rows});
  device.synchronize();
  device.copy_out(image.data(), memory.get(), image.size());

  GpuRun run;
  for (std::size_t i = 0; i < layout.num_places(); ++i)
    if (!layout.intact(image, i))
      run.broken = i < inputs.size()                    ? fmt::format("input {}", i)
                   : i < inputs.size() + outputs.size() ? fmt::format("output {}", i - inputs.size())
                                                        : std::string("the workspace");
  const auto take = [&](std::size_t place, const TensorType& type) {
    HostTensor tensor(type.dtype, type.shape);
    std::memcpy(tensor.bytes().data(), image.data() + place, tensor.bytes().size());
    return tensor;
  };
  for (std::size_t o = 0; o < outputs.size(); ++o)
    run.outputs.push_back(take(out_places[o], prepared.outputs[o]));
  for (std::size_t i = 0; i < inputs.size(); ++i)
    run.inputs.push_back(prepared.inputs[i].view() ? take(in_places[i], types.types[i]) : HostTensor());
  return run;
}

std::string difference(const HostTensor& actual, const HostTensor& expected, double bound, double floor) {
  const HostTensor wide = actual.dtype() == DType::bf16 ? convert_dtype(actual, DType::f32) : actual;
  const TensorView &a = wide.view(), &b = expected.view();
  const std::int64_t n = b.num_elements();
  if (a.num_elements() < n) return fmt::format("{} elements instead of {}", a.num_elements(), n);
  double square = 0.0;
  for (std::int64_t i = 0; i < n; ++i)
    if (std::isfinite(element(b, i))) square += element(b, i) * element(b, i);
  const double scale = std::sqrt(square / static_cast<double>(std::max<std::int64_t>(n, 1))) + floor +
                       std::numeric_limits<double>::min();
  const double allowed = b.dtype == DType::i32 ? 0.0 : bound;
  double worst = allowed;
  std::int64_t at = -1, wrong = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const double x = element(a, i), y = element(b, i);
    if (x == y || (std::isnan(x) && std::isnan(y))) continue;
    double error = std::fabs(x - y) / (std::fabs(y) + scale);
    if (!std::isfinite(error)) error = std::numeric_limits<double>::infinity();
    if (error <= allowed) continue;
    ++wrong;
    if (at < 0 || error > worst) {
      worst = error;
      at = i;
    }
  }
  if (at < 0) return {};
  return fmt::format(
      "element {} of {}{} is {:.8g}, expected {:.8g} (error {:.2g}, bound {:.2g}; {} of {} wrong)", at,
      dtype_name(actual.dtype()), b.shape.text(), element(a, at), element(b, at), worst, allowed, wrong, n);
}

double error_bound(const Job& job, DType output, bool low) {
  const std::string& op = job.op->name;
  if ((op.ends_with("distill_loss_grad") || op == "distill_stats_grad") && low && output != DType::f64)
    return 1.0 / 32;  // as below
  // The kept log-probabilities are f32: 2^-23 in each, against differences of logits of 0.03 over the
  // temperature.
  if (op == "cached_distill_loss_grad" && output != DType::f64)
    return 3e-4 + 1e-5 * job.attributes.get<ops::DistillLoss>().temperature;
  // Exponentials of logits of 60 whose products were summed in another order.
  if (op.ends_with("distill_loss_grad") || op.ends_with("distill_loss") || op == "teacher_top_k") return 3e-4;
  if (op == "router_divergence" || op == "router_divergence_grad") return 3e-5;
  // Five steps of Newton-Schulz in bf16 (2^-9 a number and product) against f32, beside parameters of size 1:
  // a twentieth to a seventh of the move of large_cases.cpp's matrices.
  if (op == "muon") return 2e-2;
  // Moments are rounded up or down at random: a unit in the last of 8 bits, 2^-7 of the value at most.
  if (op == "adamw" && output == DType::bf16) return 1.0 / 128;
  // Squares are summed in f64 on both.
  if (output == DType::f64) return 1e-12;
  // The probabilities and their gradients, too, are rounded to bf16 (2^-9 each) before they are multiplied;
  // the worst of half a million sums of hundreds of such products, in rows up to several times as large as
  // the root mean square, is off by a few times that.
  if (low && op == "attention_grad") return 1.0 / 16;
  if (low && (op == "linear_cross_entropy_grad" || op == "head_stats_grad")) return 1.0 / 32;
  if (output == DType::bf16) {
    // Probabilities are rounded to bf16 as well; the worst of millions of sums of 2,048 products.
    if (op == "attention" || op == "cached_attention") return 1.0 / 48;
    // One rounding of the result: half a unit in the last of 8 bits, 2^-9 of the value at most.
    return 1.0 / 256;
  }
  // Exact products of bf16 numbers, summed by tensor cores, which cut off where f32 arithmetic rounds.
  if (low && (op == "matmul" || op == "grouped_matmul_wgrad" || op == "linear_cross_entropy" ||
              op == "token_losses" || op == "head_stats" || op == "attention"))
    return 1e-4;
  if (op == "grouped_matmul_wgrad") return 5e-5;  // one f32 sum over all rows of an expert, thousands of them
  return 1e-5;
}

double error_floor(const std::string& op) {
  return op == "rms_norm_grad" || op == "attention_grad" ? 0.02 : 0.0;
}

}  // namespace farskip::test
