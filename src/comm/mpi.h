// SPDX-License-Identifier: Apache-2.0
#pragma once
// Ranks as processes started by mpirun. This header needs no MPI; a build without MPI links an implementation
// that says so.

#include <memory>
#include <string>

#include "farskip/comm/communicator.h"

namespace farskip {

/// Whether a launcher of MPI (mpirun, srun with PMI) started this process, as its environment says.
bool started_by_mpi_launcher();

/// "Open MPI v4.1.4"; empty in a build without MPI. May be called before MPI starts.
std::string mpi_library();

struct MpiState;

/// MPI from construction to destruction, once per process, on the thread that constructs it (which is the
/// only one that calls MPI). Communicators must not be used after it.
class MpiSession {
 public:
  /// Throws UsageError if this build has no MPI, CommunicationError if MPI does not start. `heartbeat`, which
  /// may be absent, hears of every wait for other ranks and must outlive the session.
  explicit MpiSession(Heartbeat* heartbeat = nullptr);
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;
  /// Ends MPI; where an exception passes through or a collective failed or was given up, ends the whole job
  /// (exit code 70), because an orderly end would wait for ranks that wait for this one.
  ~MpiSession();

  Communicator world() const;
  /// Ends all ranks of the job now. Report the error first: nothing is printed after this.
  [[noreturn]] void abort(int exit_code) const;

 private:
  std::shared_ptr<MpiState> state_;
};

}  // namespace farskip
