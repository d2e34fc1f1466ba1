// SPDX-License-Identifier: Apache-2.0
#pragma once
// The only place that reads the environment and the machine.

#include <cstdint>
#include <optional>
#include <string>

namespace farskip {

std::optional<std::string> environment_variable(const char* name);

/// $HOME where it is an absolute path, else empty.
std::string user_home_folder();
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

/// A launcher that has started this process as one of several, and that MPI does not know of: each of them
/// would believe to be alone.
struct ForeignLauncher {
  std::string name;
  int rank = 0, size = 0;
  std::string instead;   // how ranks are started
  std::string variable;  // that says so
};
std::optional<ForeignLauncher> foreign_launcher();

/// What this program sets for its process: as many open files as the system allows, since a checkpoint has
/// files of every rank; and so that limits end in errors, a file beyond the size limit is one of its write,
/// not a signal, and exceptions can be thrown when memory has run out.
void prepare_process();

/// Resident memory of this process, bytes: now, and the highest so far.
std::uint64_t resident_bytes();
std::uint64_t peak_resident_bytes();

/// Returns the bytes that a limit of the address space (ulimit -v) leaves to this process; nothing where
/// there is no limit.
std::optional<std::uint64_t> free_address_space();

struct MachineInfo {
  std::string hostname, processor, system;
  int cores = 0;
  std::uint64_t memory_bytes = 0;
};
MachineInfo machine_info();

/// Cores that process `pid` may run on (0: this one); 0 if there is no such process.
int usable_cores(int pid);

}  // namespace farskip
