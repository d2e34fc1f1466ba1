#include <algorithm>

#include "farskip/ops/distill_ops.h"
#include "farskip/passes/join_micro_batches.h"
#include "farskip/train/engine.h"

namespace farskip {
namespace {

constexpr std::string_view kOffsets = "expert_offsets.", kOverflow = "row_overflow.", kSum = "sum.";

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

BatchRunner::BatchRunner(std::unique_ptr<Executor> executor) : executor_(std::move(executor)) {}

void BatchRunner::set_batch(const Batch& batch, int number) {
  const auto set = [&](std::string_view input, const std::vector<std::int32_t>& values) {
    const std::string name = micro_batch_name(input, number);
    if (!executor_->has_external(name)) return;
    std::vector<std::int32_t>& buffer = inputs_[name];
    const bool is_new = buffer.size() != values.size();
    buffer = values;
    if (is_new)
      executor_->bind(name, {buffer.data(), DType::i32, Shape{static_cast<std::int64_t>(buffer.size())}});
  };
  set("tokens", batch.tokens);
  set("targets", batch.targets);
  set("document_start", batch.document_start);
  for (const auto& [input, tensor] : batch.more) {
    const std::string name = micro_batch_name(input, number);
    if (!executor_->has_external(name)) continue;
    HostTensor& buffer = more_[name];
    if (buffer.shape() != tensor.shape()) {
      buffer = HostTensor(tensor.dtype(), tensor.shape());
      executor_->bind(name, buffer.view());
    }
    std::copy(tensor.bytes().begin(), tensor.bytes().end(), buffer.bytes().begin());
  }
}

void BatchRunner::set_scales(float loss_scale, float balance_scale) {
  const auto set = [&](std::string_view name, float scale) {
    if (!executor_->has_external(name)) return;
    const auto [it, is_new] = scales_.try_emplace(std::string(name));
    it->second = scale;
    if (is_new) executor_->bind(name, {&it->second, DType::f32, Shape{1}});
  };
  set(kLossScale, loss_scale);
  set(kBalanceScale, balance_scale);
}

BatchLoss BatchRunner::read_loss() const {
  BatchLoss loss;
  for (const Output& o : executor_->graph().outputs()) {
    const TensorView view = executor_->output(o.name);
    const std::string_view name = base_name(o.name);
    if (name == "loss_sum") loss.loss_sum += *view.as<float>();
    if (name == "num_correct") loss.num_correct += *view.as<std::int32_t>();
    if (name.starts_with(kSum)) loss.sums[std::string(name.substr(kSum.size()))] += first_element(view);
    if (name == "distill_stats")
      for (std::size_t i = 0; i < ops::kDistillStats.size(); ++i) {
        if (ops::kDistillStats[i] == "correct") loss.num_correct += view.as<double>()[i];
        loss.sums[std::string(ops::kDistillStats[i])] += view.as<double>()[i];
      }
    if (name == "balance_loss") loss.balance_loss += *view.as<float>();
    if (name.starts_with(kOverflow)) loss.num_overflows += *view.as<std::int32_t>();
    if (name.starts_with(kOffsets)) {
      BatchLoss layer;
      layer.expert_rows[std::stoi(std::string(name.substr(kOffsets.size())))] = rows_by_expert(view);
      loss += layer;
    }
  }
  return loss;
}

}  // namespace farskip
