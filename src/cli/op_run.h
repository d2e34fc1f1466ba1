// SPDX-License-Identifier: Apache-2.0
#pragma once
// One op alone on a device, for timing it.

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "farskip/backend/device.h"

namespace farskip {

/// An op with the types of its inputs, and what they hold.
struct OpCase {
  std::string op;
  Attributes attributes;
  std::vector<std::optional<TensorType>> inputs;  // nothing: an optional one that is absent
  std::map<std::size_t, HostTensor> values{};     // by input; the others get random normal numbers
};

/// With its tensors on the device, ready to run as often as wanted. Nothing is computed in place.
class OpRun {
 public:
  OpRun(Device& device, const OpCase& c);

  double flops() const { return flops_; }
  /// Every input read once, every output written once.
  double bytes() const;
  const std::vector<TensorView>& inputs() const { return inputs_; }
  const std::vector<TensorView>& outputs() const { return outputs_; }
  void run() const;
  HostTensor read_output(std::size_t i) const;

 private:
  void place(const std::vector<const TensorType*>& inputs, const std::vector<TensorType>& outputs);

  Device& device_;
  Attributes attributes_;
  double flops_ = 0;
  const Kernel* kernel_ = nullptr;
  std::vector<TensorView> inputs_, outputs_;  // an absent input is a view without data
  std::byte* workspace_ = nullptr;
  std::size_t workspace_bytes_ = 0;
  std::shared_ptr<std::byte[]> memory_;
};

/// Of its inputs and outputs, as OpRun places them.
std::size_t bytes_of(const OpCase& c);

/// Median seconds of each, taken in turns. One run before each timed one keeps the device busy while the host
/// launches, so that no launch is timed.
std::vector<double> time_in_turns(Device& device, const std::vector<std::function<void()>>& runs,
                                  std::int64_t rounds);

}  // namespace farskip
