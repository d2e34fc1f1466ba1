#include "reference/rounded.h"

#include <algorithm>
#include <array>
#include <utility>

#include "farskip/base/memory.h"

namespace farskip {
namespace {

// Kernels are plain functions: which op one stands for is part of its type.
constexpr std::array<std::string_view, 23> kOps{
    "embedding",     "embedding_grad",     "add",           "split_columns",
    "matmul",        "concat_columns",     "mla_key_value", "mla_key_value_grad",
    "rms_norm",      "rms_norm_grad",      "attention",     "attention_grad",
    "swiglu",        "swiglu_grad",        "dispatch_rows", "combine_rows",
    "gather_rows",   "scatter_rows",       "rope",          "grouped_matmul_wgrad",
    "grouped_matmul", "linear_cross_entropy", "linear_cross_entropy_grad"};

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

template <std::size_t kOp>
void run_rounded(const KernelCall& call) {
  const Kernel& kernel = cpu_kernel_table().at(kOps[kOp], DType::f32, DeviceKind::cpu);
  std::vector<Widened> inputs, outputs;
  std::vector<TensorView> in, out;
  for (const TensorView& v : call.inputs) in.push_back(inputs.emplace_back(widen(v)).view);
  for (const TensorView& v : call.outputs) out.push_back(outputs.emplace_back(widen(v)).view);

  std::vector<TensorType> in_types, out_types;
  for (const TensorView& v : in) in_types.push_back(type_of(v));
  for (const TensorView& v : out) out_types.push_back(type_of(v));
  std::vector<const TensorType*> pointers;
  for (std::size_t i = 0; i < in.size(); ++i) pointers.push_back(in[i] ? &in_types[i] : nullptr);
  const std::size_t bytes =
      kernel.workspace == nullptr ? 0 : kernel.workspace({call.attributes, pointers, out_types});
  const auto scratch = allocate_memory(bytes);
  kernel.run({call.attributes, in, out, {scratch.get(), bytes}});

  for (std::size_t o = 0; o < out.size(); ++o)
    if (call.outputs[o].dtype == DType::bf16)
      for (std::int64_t i = 0; i < out[o].num_elements(); ++i)
        call.outputs[o].as<std::uint16_t>()[i] = f32_to_bf16(out[o].as<float>()[i]);
}

/// The loss's gradient has an f32 input first, under which it is looked up whatever it computes in.
DType key_of(std::string_view op) {
  return op == "linear_cross_entropy_grad" ? DType::f32 : DType::bf16;
}

template <std::size_t... kOp>
void add_rounded(KernelTable& table, std::index_sequence<kOp...>) {
  (table.add(kOps[kOp], key_of(kOps[kOp]), DeviceKind::cpu, {.run = run_rounded<kOp>, .workspace = nullptr}),
   ...);
}

class RoundedDevice final : public Device {
 public:
  DeviceKind kind() const override { return DeviceKind::cpu; }
  std::string name() const override { return "cpu with rounded bf16"; }
  const KernelTable& kernels() const override { return rounded_kernel_table(); }
  bool shares_host_memory() const override { return false; }
  DeviceMemory memory() const override { return cpu_->memory(); }
  std::shared_ptr<std::byte[]> allocate(std::size_t bytes) override {
    auto memory = cpu_->allocate(bytes);
    std::fill_n(memory.get(), bytes, std::byte{0xff});  // NaN: what is read must have been written
    return memory;
  }
  void copy_in(void* device, const void* host, std::size_t bytes) override {
    cpu_->copy_in(device, host, bytes);
  }
  void copy_out(std::span<const CopyOut> parts) override { cpu_->copy_out(parts); }
  void copy_within(void* to, const void* from, std::size_t bytes) override {
    cpu_->copy_within(to, from, bytes);
  }
  void fill_zero(void* device, std::size_t bytes) override { cpu_->fill_zero(device, bytes); }
  void synchronize() override {}
  std::unique_ptr<TimeMarks> make_time_marks(std::size_t count) override {
    return cpu_->make_time_marks(count);
  }

 private:
  std::shared_ptr<Device> cpu_ = make_cpu_device();
};

}  // namespace

const KernelTable& rounded_kernel_table() {
  static const KernelTable table = [] {
    KernelTable t;
    add_rounded(t, std::make_index_sequence<kOps.size()>());
    for (const auto& [op, rules] : op_table().all())
      for (const DType dtype : {DType::f32, DType::bf16, DType::f64, DType::i32})
        if (cpu_kernel_table().contains(op, dtype, DeviceKind::cpu) &&
            !t.contains(op, dtype, DeviceKind::cpu))
          t.add(op, dtype, DeviceKind::cpu, cpu_kernel_table().at(op, dtype, DeviceKind::cpu));
    return t;
  }();
  return table;
}

std::shared_ptr<Device> make_rounded_device() {
  return std::make_shared<RoundedDevice>();
}

}  // namespace farskip
