#include "farskip/base/environment.h"
#include "farskip/comm/mpi.h"

namespace farskip {

bool started_by_mpi_launcher() {
  for (const char* const variable : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"})
    if (environment_variable(variable)) return true;
  return false;
}

}  // namespace farskip
