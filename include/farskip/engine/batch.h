// SPDX-License-Identifier: Apache-2.0
#pragma once
// Batches on their way into plans, and losses on their way out.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "farskip/runtime/executor.h"
#include "farskip/state/states.h"

namespace farskip {

/// Some memory of a device.
struct DeviceBuffer {
  std::shared_ptr<std::byte[]> memory;
  std::size_t bytes = 0;
};
DeviceBuffer allocate_on(Device& device, std::size_t bytes);

/// Tokens of some sequences of equal length, as the graphs want them.
struct Batch {
  std::vector<std::int32_t> tokens, targets;  // [B*S]; target -1: not counted
  std::vector<std::int32_t> document_start;   // [B*S] or empty
  /// What the objective's graph reads beside these, by external name (a teacher's kept outputs).
  std::map<std::string, HostTensor> objective_inputs{};
};

/// Sums over the batches that were run, on this rank or over all of them.
struct BatchLoss {
  double loss_sum = 0;       // Σ over counted tokens, nats
  double num_correct = 0;    // counted tokens whose target has the largest logit
  double balance_loss = 0;   // Σ over layers and sequences
  double num_overflows = 0;  // batches in which routed rows did not fit: all other numbers are then void
  std::map<int, std::vector<double>> expert_rows;  // by layer: rows routed to each expert
  std::map<std::string, double> sums;              // more sums of the objective (program/objective.h)

  /// Largest over layers: rows of the busiest expert over the mean.
  double load_max_over_mean() const;
  BatchLoss& operator+=(const BatchLoss& other);
};

/// Losses of several runs, set aside on the device and read together: one wait a step.
class KeptLosses {
 public:
  explicit KeptLosses(std::shared_ptr<Device> device) : device_(std::move(device)) {}
  /// Sets aside what the last run has put out, before another plan runs in its arena. Does not wait.
  void keep(const Executor& executor);
  /// Their sum, in order; waits. Nothing is kept afterwards.
  BatchLoss read();

 private:
  struct Part {
    std::string name;
    DType dtype;
    Shape shape;
    std::size_t offset;  // in the buffer of its run
  };
  struct Run {
    DeviceBuffer buffer;
    std::size_t bytes = 0;  // of it, in use
    std::vector<Part> parts;
  };
  std::shared_ptr<Device> device_;
  std::vector<Run> runs_;  // their buffers are used again in the next step
  std::size_t num_kept_ = 0;
};

}  // namespace farskip
