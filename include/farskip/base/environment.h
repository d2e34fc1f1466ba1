#pragma once
// The only place that reads the environment and the machine.

#include <cstdint>
#include <optional>
#include <string>

namespace farskip {

std::optional<std::string> environment_variable(const char* name);

/// Where this user's programs keep what can be made again: $XDG_CACHE_HOME, else $HOME/.cache; empty where
/// neither is an absolute path.
std::string user_cache_folder();

/// Where a launcher of MPI (mpirun, srun) has put this process, as its environment says.
struct LauncherPlace {
  int rank = 0;
  int size = 0;        // 0: it does not say
  int local_size = 1;  // ranks on this machine, as far as it says
  int local_rank = 0;  // among them
};
/// nullopt: no launcher started this process.
std::optional<LauncherPlace> launcher_place();

/// As many open files as the system allows this process: a checkpoint has files of every rank.
void raise_open_file_limit();

/// Resident memory of this process, bytes: now, and the highest so far.
std::uint64_t resident_bytes();
std::uint64_t peak_resident_bytes();

struct MachineInfo {
  std::string hostname, processor, system;
  int cores = 0;
  std::uint64_t memory_bytes = 0;
};
MachineInfo machine_info();

/// Cores that process `pid` may run on (0: this one); 0 if there is no such process.
int usable_cores(int pid);

}  // namespace farskip
