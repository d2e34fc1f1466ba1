// SPDX-License-Identifier: Apache-2.0
#include "interpreter.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>

#include "reference/reference.h"

namespace farskip::test {
namespace {

constexpr std::size_t kGuard = 64;
constexpr std::align_val_t kAlignment{64};
constexpr std::byte kPoison{0xff}, kGuardByte{0xa5};

TensorType type_of(const TensorView& view) {
  return {view.dtype, view.shape, {}};
}

const KernelTable& reference_table() {
  static const KernelTable table = [] {
    KernelTable t;
    register_reference_kernels(t);
    return t;
  }();
  return table;
}

}  // namespace

Buffer::Buffer(const TensorType& type) : view_{nullptr, type.dtype, type.shape} {
  const std::size_t size = view_.num_bytes();
  auto* memory = static_cast<std::byte*>(::operator new[](size + kGuard, kAlignment));
  std::memset(memory, static_cast<int>(kPoison), size);
  std::memset(memory + size, static_cast<int>(kGuardByte), kGuard);
  memory_ = std::shared_ptr<std::byte[]>(memory, [](std::byte* p) { ::operator delete[](p, kAlignment); });
  view_.data = memory;
}

Buffer Buffer::copy_of(const TensorView& view) {
  Buffer buffer(type_of(view));
  std::memcpy(buffer.view_.data, view.data, view.num_bytes());
  return buffer;
}

bool Buffer::intact() const {
  const std::byte* guard = memory_.get() + view_.num_bytes();
  return std::all_of(guard, guard + kGuard, [](std::byte b) { return b == kGuardByte; });
}

bool Buffer::same_bits(const Buffer& other) const {
  return view_.num_bytes() == other.view_.num_bytes() &&
         std::memcmp(view_.data, other.view_.data, view_.num_bytes()) == 0;
}

std::vector<TensorType> OpRun::output_types() const {
  std::vector<TensorType> types;
  for (const TensorView& input : inputs) types.push_back(type_of(input));
  std::vector<const TensorType*> pointers;
  for (std::size_t i = 0; i < inputs.size(); ++i) pointers.push_back(inputs[i] ? &types[i] : nullptr);
  return infer_outputs(op, {attributes, pointers, {}});
}

DType OpRun::dtype() const {
  for (const TensorView& input : inputs)
    if (input && is_float(input.dtype)) return input.dtype;
  return output_types()[0].dtype;
}

void OpRun::execute(const KernelTable& table, DType dtype, const std::vector<Buffer>& outputs) const {
  const Kernel& kernel = table.at(op.name, dtype, DeviceKind::cpu);
  std::vector<TensorType> in_types, out_types;
  for (const TensorView& input : inputs) in_types.push_back(type_of(input));
  std::vector<const TensorType*> pointers;
  for (std::size_t i = 0; i < inputs.size(); ++i) pointers.push_back(inputs[i] ? &in_types[i] : nullptr);
  std::vector<TensorView> views;
  for (const Buffer& output : outputs) {
    views.push_back(output.view());
    out_types.push_back(type_of(output.view()));
  }
  const auto workspace_bytes =
      kernel.workspace == nullptr ? std::size_t{0} : kernel.workspace({attributes, pointers, out_types});
  const Buffer workspace({DType::u8, {static_cast<std::int64_t>(workspace_bytes)}, {}});
  kernel.run({attributes, inputs, views, workspace.view().bytes()});
  FARSKIP_CHECK(workspace.intact(), "{} wrote past its workspace of {} bytes", op.name, workspace_bytes);
  for (const Buffer& output : outputs)
    FARSKIP_CHECK(output.intact(), "{} wrote past an output of shape {}", op.name,
                  output.view().shape.text());
}

std::vector<Buffer> OpRun::execute(const KernelTable& table, DType dtype,
                                   const std::vector<TensorType>& types) const {
  std::vector<Buffer> outputs;
  for (const TensorType& type : types) outputs.emplace_back(type);
  execute(table, dtype, outputs);
  return outputs;
}

std::vector<Buffer> run_reference(const OpDef& op, const Attributes& attributes,
                                  const std::vector<TensorView>& inputs) {
  // The shape rules want one floating-point type throughout; only the graph's, f32, is in their contract.
  auto narrow = inputs;
  for (TensorView& input : narrow)
    if (input.dtype == DType::f64) input.dtype = DType::f32;
  auto types = OpRun{op, attributes, narrow}.output_types();
  for (TensorType& type : types)
    if (type.dtype == DType::f32) type.dtype = DType::f64;
  std::vector<Buffer> wide;
  std::vector<TensorView> views;
  for (const TensorView& input : inputs) {
    if (!input || input.dtype != DType::f32) {
      views.push_back(input);
      continue;
    }
    wide.emplace_back(TensorType{DType::f64, input.shape, {}});
    for (std::int64_t i = 0; i < input.num_elements(); ++i)
      wide.back().view().as<double>()[i] = static_cast<double>(input.as<float>()[i]);
    views.push_back(wide.back().view());
  }
  return OpRun{op, attributes, views}.execute(reference_table(), DType::f64, types);
}

std::vector<Buffer> run_graph(const Graph& graph, const std::vector<TensorView>& externals) {
  std::vector<Buffer> values(graph.num_values());
  for (std::size_t i = 0; i < externals.size(); ++i)
    values[graph.externals()[i].value.index()] = Buffer::copy_of(externals[i]);
  for (const Node& node : graph.nodes()) {
    OpRun run{*node.op, node.attributes, {}};
    for (const ValueId input : node.inputs)
      run.inputs.push_back(input ? values[input.index()].view() : TensorView{});
    std::vector<Buffer> outputs;
    for (const ValueId output : node.outputs) outputs.emplace_back(graph.type(output));
    run.execute(cpu_kernel_table(), run.dtype(), outputs);
    for (std::size_t i = 0; i < outputs.size(); ++i) values[node.outputs[i].index()] = outputs[i];
  }
  return values;
}

double element(const TensorView& view, std::int64_t i) {
  switch (view.dtype) {
    case DType::f64:
      return view.as<double>()[i];
    case DType::f32:
      return static_cast<double>(view.as<float>()[i]);
    default:
      return static_cast<double>(view.as<std::int32_t>()[i]);
  }
}

double relative_error(const TensorView& a, const TensorView& b) {
  const std::int64_t n = b.num_elements();
  if (a.num_elements() != n) return std::numeric_limits<double>::infinity();
  double mean_square = 0.0;
  for (std::int64_t i = 0; i < n; ++i)
    if (!std::isinf(element(b, i))) mean_square += element(b, i) * element(b, i) / static_cast<double>(n);
  const double scale = std::sqrt(mean_square) + std::numeric_limits<double>::min();
  double worst = 0.0;
  for (std::int64_t i = 0; i < n; ++i) {
    const double x = element(a, i), y = element(b, i);
    if (x == y) continue;  // infinite ones too
    const double error = std::fabs(x - y) / (std::fabs(y) + scale);
    worst = std::isfinite(error) ? std::max(worst, error) : std::numeric_limits<double>::infinity();
  }
  return worst;
}

}  // namespace farskip::test
