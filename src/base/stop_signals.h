// SPDX-License-Identifier: Apache-2.0
#pragma once
// Requests to stop, from the first moment of a run to its last.

#include <signal.h>

#include "farskip/base/error.h"

namespace farskip {

/// SIGUSR1, SIGTERM and SIGINT (Ctrl-C) ask a run to stop: while it trains, with a checkpoint at the end of
/// the step; before its first step, where nothing could be lost, at once. Either way it ends with
/// ExitCode::resumable. A second SIGTERM or a second SIGINT leaves without saving. SIGINT stays ignored where
/// the process was started so. Signal handlers are process-wide by nature: all instances of a process (its
/// ranks may be threads) hear of the same signal, from the first until the last of them has gone.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  bool requested() const;
  /// Whether leave_if_asked() may end the run. It may not at first.
  void allow_leaving(bool allowed) const;
};

/// While it lives, SIGTERM ends the process, whatever handlers are set: that is how a launcher ends the ranks
/// that wait for their turn to report an error.
class DieOnTerminate {
 public:
  DieOnTerminate();
  ~DieOnTerminate();
  DieOnTerminate(const DieOnTerminate&) = delete;
  DieOnTerminate& operator=(const DieOnTerminate&) = delete;

 private:
  struct sigaction before_ {};
};

/// What leave_if_asked() throws. Not a UserError: nobody may take it for a damaged file and go on.
class StopRequested : public Error {
 public:
  StopRequested();
};

/// Throws StopRequested if a stop has been asked for and the run may leave. Cheap: long work calls it for
/// each piece (reading files, tokenizing, waiting for other ranks).
void leave_if_asked();

}  // namespace farskip
