// SPDX-License-Identifier: Apache-2.0
#include "run/bad_numbers.h"

#include <algorithm>
#include <cmath>

#include "comm/collective_errors.h"
#include "state/state_names.h"

namespace farskip {
namespace {

/// Bad tensors so far, of which the first is named.
struct BadTensors {
  std::string first;
  int count = 0;

  void look_at(std::string_view what, const StateSpec& spec, const HubPiece& piece, const TensorRowsMap& rows,
               Device& device) {
    const std::string name = state_name(spec.kind, piece.name);
    const auto it = rows.find(name);
    if (it == rows.end() || all_finite(copy_to_host(device, it->second.view).view())) return;
    if (count++ == 0) first = fmt::format("{} {}", what, name);
  }
};

}  // namespace

std::string describe_bad_tensors(const States& states) {
  BadTensors bad;
  const auto look = [&](Role role, std::string_view what, auto begin, auto end) {
    const TensorRowsMap rows = held_rows(states, role);
    for (auto spec = begin; spec != end; ++spec)
      if (spec->role == role)
        for (const HubPiece& piece : spec->parameter->spec.pieces)
          bad.look_at(what, *spec, piece, rows, states.device());
  };
  const std::vector<StateSpec>& specs = states.specs();
  look(Role::weight, "parameter", specs.begin(), specs.end());
  look(Role::constant, "parameter", specs.begin(), specs.end());
  look(Role::optimizer, "moment", specs.begin(), specs.end());
  look(Role::gradient, "gradient of", specs.rbegin(), specs.rend());  // the backward's order
  if (bad.count <= 1) return bad.first;
  return fmt::format("{} (and {} more tensors)", bad.first, bad.count - 1);
}

namespace {

/// What else is wrong follows from bad parameters, and then from bad moments, on whichever rank they are.
int order_of(std::string_view text) {
  if (text.empty()) return 3;
  return text.starts_with("parameter ") ? 0 : text.starts_with("moment ") ? 1 : 2;
}

/// The text of the first rank among those whose text comes first, with its number; empty if there is none.
std::string first_of_ranks(const Communicator& world, const std::string& mine) {
  const std::vector<std::string> all = all_gather_text(world, mine);
  const auto first = std::min_element(all.begin(), all.end(),
                                      [](const auto& a, const auto& b) { return order_of(a) < order_of(b); });
  if (first->empty()) return {};
  return all.size() == 1 ? *first : fmt::format("{} of rank {}", *first, first - all.begin());
}

}  // namespace

std::string describe_bad_step(const Communicator& world, const BadStep& bad) {
  const std::string tensors = first_of_ranks(world, bad.tensors),
                    samples = first_of_ranks(world, bad.own_samples);
  return fmt::format(
      "step {}: the {} is not finite (samples {}); {}; {}; lower train.learning_rate.peak or look at "
      "these samples",
      bad.step, bad.loss_is_finite ? "gradient norm" : "loss", samples.empty() ? bad.samples : samples,
      tensors.empty() ? "parameters, moments and gradients are finite"
                      : "values that are not finite: " + tensors,
      bad.updated ? "its gradients were finite, and the update was made" : "no update was made");
}

DeadModelWatch::DeadModelWatch(std::int64_t vocab_size)
    : most_loss_(kTimes * std::log(std::max(2.0, static_cast<double>(vocab_size)))) {}

std::optional<std::string> DeadModelWatch::look(std::int64_t step, double loss, double grad_norm) {
  if (grad_norm != 0.0 && loss <= most_loss_) {
    dead_steps_ = 0;
    warn_at_ = kSteps;
    return std::nullopt;
  }
  if (++dead_steps_ < warn_at_) return std::nullopt;
  warn_at_ *= 10;
  return fmt::format(
      "step {}: for {} steps the gradient norm was 0 or the loss above {:.2f}, {} times that of a uniform "
      "guess "
      "(now {:.4g} and {:.4g}): the model learns nothing; look at train.learning_rate and the data, "
      "and go back to a checkpoint from before",
      step, dead_steps_, most_loss_, kTimes, grad_norm, loss);
}

}  // namespace farskip
