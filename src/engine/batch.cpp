// SPDX-License-Identifier: Apache-2.0
#include "farskip/engine/batch.h"

#include <algorithm>

#include "ops/distill_ops.h"
#include "passes/join_micro_batches.h"

namespace farskip {
namespace {

constexpr std::string_view kOffsets = "expert_offsets.", kOverflow = "row_overflow.", kSum = "sum.",
                           kStats = "distill_stats";

double first_element(const TensorView& view) {
  return view.dtype == DType::i32 ? *view.as<std::int32_t>() : static_cast<double>(*view.as<float>());
}

std::vector<double> rows_by_expert(const TensorView& offsets) {
  const auto* at = offsets.as<std::int32_t>();
  std::vector<double> rows;
  for (std::int64_t e = 0; e + 1 < offsets.num_elements(); ++e) rows.push_back(at[e + 1] - at[e]);
  return rows;
}

}  // namespace

DeviceBuffer allocate_on(Device& device, std::size_t bytes) {
  return {device.allocate(bytes), bytes};
}

double BatchLoss::load_max_over_mean() const {
  double load = 0;
  for (const auto& [layer, rows] : expert_rows) {
    double sum = 0, busiest = 0;
    for (const double r : rows) {
      sum += r;
      busiest = std::max(busiest, r);
    }
    if (sum > 0) load = std::max(load, busiest * static_cast<double>(rows.size()) / sum);
  }
  return load;
}

BatchLoss& BatchLoss::operator+=(const BatchLoss& other) {
  loss_sum += other.loss_sum;
  num_correct += other.num_correct;
  balance_loss += other.balance_loss;
  num_overflows += other.num_overflows;
  for (const auto& [layer, rows] : other.expert_rows) {
    std::vector<double>& sum = expert_rows[layer];
    sum.resize(rows.size());
    for (std::size_t e = 0; e < rows.size(); ++e) sum[e] += rows[e];
  }
  for (const auto& [name, value] : other.sums) sums[name] += value;
  return *this;
}

namespace {

bool is_loss(std::string_view name) {
  return name == "loss_sum" || name == "num_correct" || name == "balance_loss" || name == kStats ||
         name.starts_with(kSum) || name.starts_with(kOverflow) || name.starts_with(kOffsets);
}

/// `view`: in host memory.
BatchLoss loss_of(std::string_view name, const TensorView& view) {
  BatchLoss loss;
  if (name == "loss_sum") loss.loss_sum = *view.as<float>();
  if (name == "num_correct") loss.num_correct = *view.as<std::int32_t>();
  if (name == "balance_loss") loss.balance_loss = *view.as<float>();
  if (name.starts_with(kSum)) loss.sums[std::string(name.substr(kSum.size()))] = first_element(view);
  if (name == kStats)
    for (std::size_t i = 0; i < ops::kDistillStats.size(); ++i) {
      loss.sums[std::string(ops::kDistillStats[i])] = view.as<double>()[i];
      if (ops::kDistillStats[i] == "correct") loss.num_correct = view.as<double>()[i];
    }
  if (name.starts_with(kOverflow)) loss.num_overflows = *view.as<std::int32_t>();
  if (name.starts_with(kOffsets))
    loss.expert_rows[std::stoi(std::string(name.substr(kOffsets.size())))] = rows_by_expert(view);
  return loss;
}

}  // namespace

void KeptLosses::keep(const Executor& executor) {
  constexpr std::size_t alignment = 16;
  if (num_kept_ == runs_.size()) runs_.emplace_back();
  Run& run = runs_[num_kept_++];
  run.parts.clear();
  run.bytes = 0;
  std::vector<const std::byte*> from;
  for (const Output& o : executor.graph().outputs()) {
    const std::string_view name = base_name(o.name);
    if (!is_loss(name)) continue;
    const TensorView output = executor.output(o.name);
    from.push_back(output.as<std::byte>());
    run.parts.push_back({std::string(name), output.dtype, output.shape, run.bytes});
    run.bytes += (output.num_bytes() + alignment - 1) / alignment * alignment;
  }
  if (run.buffer.bytes < run.bytes) run.buffer = allocate_on(*device_, run.bytes);
  for (std::size_t i = 0; i < run.parts.size(); ++i) {
    const Part& part = run.parts[i];
    device_->copy_within(run.buffer.memory.get() + part.offset, from[i],
                         TensorView{nullptr, part.dtype, part.shape}.num_bytes());
  }
}

BatchLoss KeptLosses::read() {
  // One copy a run: a scalar takes as long as all of them.
  std::vector<HostTensor> values;
  std::vector<CopyOut> copies;
  for (std::size_t i = 0; i < num_kept_; ++i) {
    const Run& run = runs_[i];
    values.emplace_back(DType::f64, Shape{static_cast<std::int64_t>(run.bytes / sizeof(double))});
    copies.push_back({values.back().view().data, run.buffer.memory.get(), run.bytes});
  }
  device_->copy_out(copies);
  BatchLoss sum;
  for (std::size_t i = 0; i < num_kept_; ++i)
    for (const Part& part : runs_[i].parts)
      sum += loss_of(part.name, {values[i].view().as<std::byte>() + part.offset, part.dtype, part.shape});
  num_kept_ = 0;
  return sum;
}

}  // namespace farskip
