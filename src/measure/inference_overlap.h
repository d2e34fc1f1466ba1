// SPDX-License-Identifier: Apache-2.0
#pragma once
// How much of the communication of a run over a cache runs under computation, measured: the same run blocking
// and overlapped, in turns, in one process.

#include "measure/inference_bench.h"
#include "plan/inference_plan.h"

namespace farskip {

/// Seconds of the slowest rank, from tokens in the host's memory to the next ones. Transports and bounds as
/// DirectionOverlap (measure/overlap.h) has them: blocking runs are aligned, and their skew does not count.
struct InferenceOverlap {
  double blocking_seconds = 0, blocking_p99 = 0;
  double overlapped_seconds = 0, overlapped_p99 = 0;
  double transport_seconds = 0;  // C: all transports when they block
  double hideable_seconds = 0;   // H: what any order could hide
  double exposed_seconds = 0;    // of the overlapped run: in which the compute stream stood still
  std::int64_t tokens = 0;       // of a run, on all ranks
  bool identical = true;         // all logits of both, to the bit
  /// Logits of a run in parts differ from those of the same run in one by at most this, over the largest
  /// logit. Kernels of a CPU compute a row the same whatever others there are, those of a GPU may not.
  double difference = 0;

  double hidden_fraction() const {
    return transport_seconds > 0 ? 1 - exposed_seconds / transport_seconds : 0;
  }
  double eta() const {
    return hideable_seconds > 0 ? (blocking_seconds - overlapped_seconds) / hideable_seconds : 0;
  }
};

/// The overlapped order is planned by what a blocking run has measured. Collective over the mesh; the same
/// figures on every rank.
InferenceOverlap measure_inference_overlap(const Model& model, const Context& context,
                                           const std::shared_ptr<const States>& weights,
                                           const InferenceCase& run, int repetitions);

}  // namespace farskip
