// SPDX-License-Identifier: Apache-2.0
#pragma once
// The overlap timeline of a trace: what computes, what waits, and which part of each transport runs under
// computation.

#include <string>
#include <vector>

namespace farskip {

enum class SpanKind { forward, backward, update, waiting, transport };
struct TraceSpan {
  double begin = 0, end = 0;  // seconds
  SpanKind kind = SpanKind::forward;
  std::string name, scope;
};
/// Computation and transports of one process (a rank, or a run of a step), as measured or as predicted.
struct TraceLane {
  std::vector<TraceSpan> computation, transports;  // by begin
};
struct TraceProcess {
  std::string name;
  TraceLane measured, predicted;
};

struct LaneTotals {
  double seconds = 0;      // from the first begin to the last end
  double computation = 0;  // busy with something else than waiting
  double waiting = 0;      // starting collectives and waiting for them
  double in_flight = 0;    // at least one transport is under way
  double hidden = 0;       // of in_flight: computing at the same time
};
LaneTotals measure_lane(const TraceLane& lane);

/// Reads a Chrome/Perfetto trace as measure/trace.h writes it. DataError for anything else.
std::vector<TraceProcess> read_trace(const std::string& text);

/// All processes on one axis of time, as fine as `most_bytes` allow; empty if there is no span.
std::string timeline_html(const std::string& title, std::vector<TraceProcess> processes,
                          std::size_t most_bytes);

}  // namespace farskip
