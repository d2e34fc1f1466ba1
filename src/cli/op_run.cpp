// SPDX-License-Identifier: Apache-2.0
#include "cli/op_run.h"

#include <algorithm>

#include "base/statistics.h"
#include "farskip/base/random.h"
#include "farskip/runtime/executor.h"

namespace farskip {
namespace {

std::size_t round_up(std::size_t n) {
  return (n + 255) / 256 * 256;
}

std::vector<const TensorType*> input_types(const OpCase& c) {
  std::vector<const TensorType*> types;
  for (const auto& type : c.inputs) types.push_back(type ? &*type : nullptr);
  return types;
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

}  // namespace

OpRun::OpRun(Device& device, const OpCase& c) : device_(device), attributes_(c.attributes) {
  const OpDef& op = op_table().at(c.op);
  const std::vector<const TensorType*> inputs = input_types(c);
  const std::vector<TensorType> outputs = infer_outputs(op, OpTypes{attributes_, inputs});
  const OpTypes types{attributes_, inputs, outputs};
  flops_ = cost_of(op, types).flops;
  kernel_ = &device.kernels().at(c.op, kernel_dtype(types), device.kind());
  workspace_bytes_ = kernel_->workspace == nullptr ? 0 : kernel_->workspace(types);
  place(inputs, outputs);
  for (std::size_t i = 0; i < inputs_.size(); ++i) {
    const TensorView& input = inputs_[i];
    if (!input) continue;
    if (const auto given = c.values.find(i); given != c.values.end())
      device.copy_in(input.data, given->second.view().data, input.num_bytes());
    else
      fill_random(device, input);
  }
}

double OpRun::bytes() const {
  double sum = 0;
  for (const auto* views : {&inputs_, &outputs_})
    for (const TensorView& view : *views)
      if (view) sum += static_cast<double>(view.num_bytes());
  return sum;
}

void OpRun::run() const {
  kernel_->run({attributes_, inputs_, outputs_, {workspace_, workspace_bytes_}, device_.compute_context()});
}

HostTensor OpRun::read_output(std::size_t i) const {
  HostTensor tensor(outputs_[i].dtype, outputs_[i].shape);
  device_.copy_out(tensor.bytes().data(), outputs_[i].data, outputs_[i].num_bytes());
  return tensor;
}

void OpRun::place(const std::vector<const TensorType*>& inputs, const std::vector<TensorType>& outputs) {
  std::size_t bytes = round_up(workspace_bytes_);
  for (const TensorType* type : inputs) bytes += type == nullptr ? 0 : round_up(type->num_bytes());
  for (const TensorType& type : outputs) bytes += round_up(type.num_bytes());
  memory_ = device_.allocate(bytes);
  std::byte* at = memory_.get();
  const auto take = [&](const TensorType& type) {
    const TensorView view{at, type.dtype, type.shape};
    at += round_up(type.num_bytes());
    return view;
  };
  for (const TensorType* type : inputs) inputs_.push_back(type == nullptr ? TensorView{} : take(*type));
  for (const TensorType& type : outputs) outputs_.push_back(take(type));
  workspace_ = at;
}

std::size_t bytes_of(const OpCase& c) {
  const std::vector<const TensorType*> inputs = input_types(c);
  std::size_t bytes = 0;
  for (const TensorType* type : inputs) bytes += type == nullptr ? 0 : round_up(type->num_bytes());
  for (const TensorType& type : infer_outputs(op_table().at(c.op), OpTypes{c.attributes, inputs}))
    bytes += round_up(type.num_bytes());
  return bytes;
}

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

}  // namespace farskip
