// SPDX-License-Identifier: Apache-2.0
#include "base/environment.h"

#include <execinfo.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <initializer_list>

namespace farskip {
namespace {

/// The number that the first of `names` to hold one begins with ("4(x2),3": 4 tasks on each of 2 nodes, …).
std::optional<int> leading_number(std::initializer_list<const char*> names) {
  for (const char* const name : names)
    if (const char* const text = std::getenv(name)) {
      int number = 0;
      const auto [end, failure] = std::from_chars(text, text + std::strlen(text), number);
      if (failure == std::errc{} && number >= 0) return number;
    }
  return std::nullopt;
}

// Reads "Key:   123 kB" from a /proc status file.
std::uint64_t proc_kilobytes(const char* file, const std::string& key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);)
    if (line.compare(0, key.size(), key) == 0)
      return std::strtoull(line.c_str() + key.size(), nullptr, 10) * 1024;
  return 0;
}

}  // namespace

std::optional<std::string> environment_variable(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr) return std::nullopt;
  return std::string(value);
}

namespace {

std::string absolute_path_variable(const char* name) {
  const auto path = environment_variable(name);
  return path && path->starts_with('/') ? *path : std::string();
}

}  // namespace

std::string user_home_folder() {
  return absolute_path_variable("HOME");
}

std::string user_cache_folder() {
  if (std::string cache = absolute_path_variable("XDG_CACHE_HOME"); !cache.empty()) return cache;
  const std::string home = user_home_folder();
  return home.empty() ? home : home + "/.cache";
}

std::optional<LauncherPlace> launcher_place() {
  // In turn: Open MPI's mpirun, launchers with PMI (Hydra, srun), srun with PMIx. What SLURM says of tasks
  // counts only beside a rank: a batch script has it too.
  const std::optional<int> rank = leading_number({"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"});
  if (!rank) return std::nullopt;
  LauncherPlace place;
  place.rank = *rank;
  place.size = leading_number({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"}).value_or(0);
  if (place.size <= place.rank) place.size = place.rank > 0 ? place.rank + 1 : 0;
  place.local_size = std::max(
      1, leading_number({"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_TASKS_PER_NODE"})
             .value_or(1));
  place.local_rank =
      leading_number({"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"}).value_or(0);
  return place;
}

std::optional<ForeignLauncher> foreign_launcher() {
  struct Variables {
    const char *name, *rank, *size, *instead;
  };
  // SLURM_STEP_NUM_TASKS is set in a job step alone: a batch script, whatever its tasks, is one process.
  constexpr Variables known[] = {
      {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS",
       "srun --mpi=pmix (srun --mpi=list shows what there is), or mpirun inside the allocation"},
      {"torchrun", "RANK", "WORLD_SIZE", "mpirun -np N"},
      {"MVAPICH", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "the mpirun of this program's MPI"}};
  if (launcher_place()) return std::nullopt;
  for (const Variables& v : known) {
    const std::optional<int> rank = leading_number({v.rank}), size = leading_number({v.size});
    if (rank && size && *size > 1) return ForeignLauncher{v.name, *rank, *size, v.instead, v.size};
  }
  return std::nullopt;
}

void prepare_process() {
  std::signal(SIGXFSZ, SIG_IGN);
  // The C library loads what it unwinds by at the first use, and aborts where there is no memory left for it.
  void* frame = nullptr;
  ::backtrace(&frame, 1);
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);  // where that is refused, the limit stays as it was
}

std::uint64_t resident_bytes() {
  return proc_kilobytes("/proc/self/status", "VmRSS:");
}

std::uint64_t peak_resident_bytes() {
  return proc_kilobytes("/proc/self/status", "VmHWM:");
}

std::optional<std::uint64_t> free_address_space() {
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return std::nullopt;
  const std::uint64_t used = proc_kilobytes("/proc/self/status", "VmSize:");
  return limit.rlim_cur > used ? limit.rlim_cur - used : 0;
}

MachineInfo machine_info() {
  MachineInfo info;
  char host[256] = {};
  if (::gethostname(host, sizeof(host) - 1) == 0) info.hostname = host;
  struct utsname names {};
  if (::uname(&names) == 0) info.system = std::string(names.sysname) + " " + names.release;
  std::ifstream cpu("/proc/cpuinfo");
  for (std::string line; std::getline(cpu, line);)
    if (line.compare(0, 10, "model name") == 0) {
      info.processor = line.substr(line.find(':') + 2);
      break;
    }
  info.cores = usable_cores(0);
  if (info.cores == 0) info.cores = static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN));
  info.memory_bytes = proc_kilobytes("/proc/meminfo", "MemTotal:");
  return info;
}

int usable_cores(int pid) {
  cpu_set_t set;
  CPU_ZERO(&set);
  return ::sched_getaffinity(pid, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 0;
}

}  // namespace farskip
