// SPDX-License-Identifier: Apache-2.0
#pragma once
// How much of the communication of a training step runs under computation, measured: the same step blocking
// and overlapped, in turns, in one process.

#include "measure/measure.h"
#include "schedule/hideable.h"

namespace farskip {

/// Of the forward or the backward of a step's first micro-batch (which reduces no gradients, unless it is the
/// only one), or of the whole step with reduction and update. Seconds; medians over the repetitions of the
/// slowest rank's.
///
/// In the blocking run all ranks meet before each collective, and that waiting is `skew_seconds`, no part of
/// blocking_seconds: a transport is timed from the arrival of its last rank, and hiding what is no transport
/// counts for nothing. The overlapped run bears its own skew.
///
/// On a GPU the two times of the whole step are those of recorded steps, without marks; the directions are
/// timed by marks around kernels that are launched one by one, which takes time of its own.
struct DirectionOverlap {
  double blocking_seconds = 0, overlapped_seconds = 0;
  double skew_seconds = 0;       // of the blocking run, mean of the ranks
  double transport_seconds = 0;  // C: all transports when they block
  double window_seconds = 0;     // W: computation that may legally run under at least one transport
  double hideable_seconds = 0;   // H: maximum flow from transports to computation, an upper bound
  double exposed_seconds = 0;    // of the overlapped run: in which the compute stream stood still
  double compute_blocking_seconds = 0, compute_overlapped_seconds = 0;
  double planned_seconds = 0;  // of the overlapped plan, by what the blocking run measured

  double ideal_seconds() const { return blocking_seconds - hideable_seconds; }
  double eta() const {
    return hideable_seconds > 0 ? (blocking_seconds - overlapped_seconds) / hideable_seconds : 0;
  }
  /// What eta would be if everything took just what it took in the blocking run: the part of the loss that is
  /// the order's (and the bound's), not the machine's.
  double planned_eta() const {
    return hideable_seconds > 0 ? (blocking_seconds - planned_seconds) / hideable_seconds : 0;
  }
  double hidden_fraction() const {
    return transport_seconds > 0 ? 1 - exposed_seconds / transport_seconds : 0;
  }
  /// More was saved than any order can hide (a tenth of that is the noise of a good measurement), or more
  /// time was lost than the transports took: what disturbed the runs is as large as what they compare.
  bool is_doubtful() const { return eta() > 1.1 || hidden_fraction() < 0; }
  /// How much computation slows down while transports run.
  double sigma() const {
    return compute_blocking_seconds > 0 ? compute_overlapped_seconds / compute_blocking_seconds : 0;
  }
};

struct CollectiveOverlap {
  std::string op;
  Scope scope;
  double bytes = 0, transport_seconds = 0, window_seconds = 0, exposed_seconds = 0;
};

struct OverlapReport {
  /// To the bit: losses and gradient norms in every pair of runs, then all gradients and the weights.
  bool identical = true;
  DirectionOverlap forward, backward, total;
  double predicted_blocking_seconds = 0, predicted_overlapped_seconds = 0;
  std::size_t blocking_arena_bytes = 0, overlapped_arena_bytes = 0;
  std::vector<CollectiveOverlap> collectives;  // of one micro-batch, in order of the graph
  std::string trace;  // of the last step of each on this rank, if asked for (measure/trace.h)
};

struct OverlapOptions {
  int repetitions = 5, warmup = 1;
  bool trace = false;
};

/// Collective over the mesh; the same report on every rank.
OverlapReport measure_overlap(const Model& model, const TrainEngineOptions& options, const Context& context,
                              const OverlapOptions& overlap);

}  // namespace farskip
