// SPDX-License-Identifier: Apache-2.0
// Linked where the build found no MPI.
#include "comm/mpi.h"

namespace farskip {

std::string mpi_library() {
  return {};
}

struct MpiState {};

MpiSession::MpiSession(Heartbeat*) {
  throw UsageError(
      "this build of farskip has no MPI and runs on one rank only; start it without mpirun, or install Open "
      "MPI "
      "(Debian: libopenmpi-dev, openmpi-bin) and build again");
}
MpiSession::~MpiSession() = default;

Communicator MpiSession::world() const {
  throw InternalError("no MPI in this build");
}
void MpiSession::abort(int) const {
  throw InternalError("no MPI in this build");
}

}  // namespace farskip
