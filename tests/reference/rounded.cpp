// SPDX-License-Identifier: Apache-2.0
#include "reference/rounded.h"

#include <algorithm>
#include <array>
#include <functional>
#include <utility>

#include "backend/cuda/context.h"
#include "base/memory.h"

namespace farskip {
namespace {

// Kernels are plain functions: which op one stands for is part of its type, as its place in this list.
constexpr std::size_t kMostOps = 128;

/// All ops that a CPU computes and that need no other rank.
const std::vector<std::string>& computed_ops() {
  static const std::vector<std::string> ops = [] {
    std::vector<std::string> names;
    for (const auto& [key, kernel] : cpu_kernel_table().all())
      if (const std::string& op = std::get<0>(key);
          kernel.run != nullptr && (names.empty() || names.back() != op))
        names.push_back(op);
    FARSKIP_CHECK(names.size() <= kMostOps, "{} ops", names.size());
    return names;
  }();
  return ops;
}

struct Widened {
  HostTensor memory;
  TensorView view;
};

Widened widen(const TensorView& view) {
  if (view.data == nullptr || view.dtype != DType::bf16) return {{}, view};
  HostTensor wide(DType::f32, view.shape);
  for (std::int64_t i = 0; i < view.num_elements(); ++i)
    wide.view().as<float>()[i] = bf16_to_f32(view.as<std::uint16_t>()[i]);
  return {wide, wide.view()};
}

TensorType type_of(const TensorView& view) {
  return {view.dtype, view.shape, {}};
}

/// The kernel that the CPU has for an op when nothing is low.
const Kernel& wide_kernel(std::string_view op) {
  for (const DType dtype : {DType::f32, DType::f64, DType::i32})
    if (cpu_kernel_table().contains(op, dtype, DeviceKind::cpu))
      return cpu_kernel_table().at(op, dtype, DeviceKind::cpu);
  throw InternalError(fmt::format("the CPU has no kernel for {}", op));
}

using Views = std::vector<TensorView>;

void run_kernel(const Kernel& kernel, const Attributes& attributes, const Views& in, const Views& out) {
  std::vector<TensorType> in_types, out_types;
  for (const TensorView& v : in) in_types.push_back(type_of(v));
  for (const TensorView& v : out) out_types.push_back(type_of(v));
  std::vector<const TensorType*> pointers;
  for (std::size_t i = 0; i < in.size(); ++i) pointers.push_back(in[i] ? &in_types[i] : nullptr);
  const std::size_t bytes =
      kernel.workspace == nullptr ? 0 : kernel.workspace({attributes, pointers, out_types});
  const auto scratch = allocate_memory(bytes);
  kernel.run({attributes, in, out, {scratch.get(), bytes}});
}

void run_widened(std::string_view op, const Attributes& attributes, const Views& given_in,
                 const Views& given_out) {
  std::vector<Widened> inputs, outputs;
  Views in, out;
  for (const TensorView& v : given_in) in.push_back(inputs.emplace_back(widen(v)).view);
  for (const TensorView& v : given_out) out.push_back(outputs.emplace_back(widen(v)).view);
  run_kernel(wide_kernel(op), attributes, in, out);

  for (std::size_t o = 0; o < out.size(); ++o)
    if (given_out[o].dtype == DType::bf16)
      for (std::int64_t i = 0; i < out[o].num_elements(); ++i)
        given_out[o].as<std::uint16_t>()[i] = f32_to_bf16(out[o].as<float>()[i]);
}

void run_any(std::string_view op, const Attributes& attributes, const Views& in, const Views& out) {
  const bool optimises = op == "adamw" || op == "muon";
  const bool gives_low =
      op == "cast" || (optimises && (out.size() > in.size() - 3 || in[1].dtype == DType::bf16));
  if (gives_low)  // the CPU's own kernels give bf16
    run_kernel(cpu_kernel_table().at(op, in[0].dtype, DeviceKind::cpu), attributes, in, out);
  else
    run_widened(op, attributes, in, out);
}

/// What stands behind cudaStream_t here.
struct Stream {
  bool is_recording = false;
  std::vector<std::function<void()>> recorded;
};

/// Cuts views to the number of rows that lies in memory when the kernel runs.
Views with_rows(Views views, const std::vector<const std::int32_t*>& rows) {
  for (std::size_t i = 0; i < rows.size(); ++i)
    if (rows[i] != nullptr) views[i].shape.set_dim(0, *rows[i]);
  return views;
}

void launch_op(std::size_t op, const KernelCall& call) {
  const auto copy = []<class T>(std::span<T> values) {
    return std::vector<std::remove_const_t<T>>(values.begin(), values.end());
  };
  const auto work = [op, &attributes = call.attributes, in = copy(call.inputs), out = copy(call.outputs),
                     input_rows = copy(call.input_rows), output_rows = copy(call.output_rows)] {
    run_any(computed_ops()[op], attributes, with_rows(in, input_rows), with_rows(out, output_rows));
  };
  auto* stream = call.gpu == nullptr ? nullptr : reinterpret_cast<Stream*>(call.gpu->stream);
  if (stream != nullptr && stream->is_recording)
    stream->recorded.emplace_back(work);
  else
    work();
}

template <std::size_t kOp>
void launch(const KernelCall& call) {
  launch_op(kOp, call);
}

template <std::size_t... kOp>
KernelTable make_table(DeviceKind kind, std::index_sequence<kOp...>) {
  KernelTable table;
  const auto add = [&](std::string_view op, void (*run)(const KernelCall&)) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f64, DType::i32})
      table.add(op, dtype, kind, {.run = run, .workspace = nullptr});
  };
  const std::array launches{launch<kOp>...};
  for (std::size_t op = 0; op < computed_ops().size(); ++op) add(computed_ops()[op], launches[op]);
  return table;
}

const KernelTable& table_of(DeviceKind kind) {
  static const KernelTable cpu = make_table(DeviceKind::cpu, std::make_index_sequence<kMostOps>());
  static const KernelTable gpu = make_table(DeviceKind::cuda, std::make_index_sequence<kMostOps>());
  return kind == DeviceKind::cpu ? cpu : gpu;
}

class StreamRecording final : public Recording {
 public:
  explicit StreamRecording(std::vector<std::function<void()>> work) : work_(std::move(work)) {}
  void replay() override {
    for (const auto& step : work_) step();
  }

 private:
  std::vector<std::function<void()>> work_;
};

class TestDevice final : public Device {
 public:
  explicit TestDevice(DeviceKind kind) : kind_(kind) {
    context_.stream = reinterpret_cast<CUstream_st*>(&stream_);
  }
  DeviceKind kind() const override { return kind_; }
  std::string name() const override { return kind_ == DeviceKind::cpu ? "rounding cpu" : "pretended gpu"; }
  const KernelTable& kernels() const override { return table_of(kind_); }
  bool shares_host_memory() const override { return false; }
  DeviceMemory memory() const override { return cpu_->memory(); }
  std::shared_ptr<std::byte[]> allocate(std::size_t bytes) override {
    check_not_recording();
    auto memory = cpu_->allocate(bytes);
    std::fill_n(memory.get(), bytes, std::byte{0xff});  // NaN: what is read must have been written
    return memory;
  }
  void copy_in(void* device, const void* host, std::size_t bytes) override {
    check_not_recording();
    cpu_->copy_in(device, host, bytes);
  }
  void copy_out(std::span<const CopyOut> parts) override {
    check_not_recording();
    cpu_->copy_out(parts);
  }
  void copy_within(void* to, const void* from, std::size_t bytes) override {
    check_not_recording();
    cpu_->copy_within(to, from, bytes);
  }
  void fill_zero(void* device, std::size_t bytes) override { cpu_->fill_zero(device, bytes); }
  void fill_normal(const TensorView& to, const NormalNumbers& numbers) override {
    check_not_recording();
    cpu_->fill_normal(to, numbers);
  }
  void synchronize() override { check_not_recording(); }
  const cuda::LaunchContext* compute_context() const override {
    return kind_ == DeviceKind::cpu ? nullptr : &context_;
  }
  bool can_record() const override { return kind_ != DeviceKind::cpu; }
  void begin_recording() override {
    check_not_recording();
    stream_.is_recording = true;
  }
  std::unique_ptr<Recording> end_recording() override {
    FARSKIP_CHECK(stream_.is_recording, "nothing is being recorded");
    stream_.is_recording = false;
    return std::make_unique<StreamRecording>(std::exchange(stream_.recorded, {}));
  }
  void abandon_recording() noexcept override {
    stream_.is_recording = false;
    stream_.recorded.clear();
  }
  std::unique_ptr<TimeMarks> make_time_marks(std::size_t count) override {
    return cpu_->make_time_marks(count);
  }

 private:
  void check_not_recording() const { FARSKIP_CHECK(!stream_.is_recording, "only kernels may be recorded"); }

  DeviceKind kind_;
  std::shared_ptr<Device> cpu_ = make_cpu_device();
  Stream stream_;
  cuda::LaunchContext context_;
};

}  // namespace

std::shared_ptr<Device> make_rounded_device() {
  return std::make_shared<TestDevice>(DeviceKind::cpu);
}

std::shared_ptr<Device> make_pretended_gpu() {
  return std::make_shared<TestDevice>(DeviceKind::cuda);
}

}  // namespace farskip
