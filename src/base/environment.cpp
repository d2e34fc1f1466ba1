#include "farskip/base/environment.h"

#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

namespace farskip {
namespace {

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

std::uint64_t resident_bytes() {
  return proc_kilobytes("/proc/self/status", "VmRSS:");
}

std::uint64_t peak_resident_bytes() {
  return proc_kilobytes("/proc/self/status", "VmHWM:");
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
  cpu_set_t set;
  CPU_ZERO(&set);
  info.cores = ::sched_getaffinity(0, sizeof(set), &set) == 0
                   ? CPU_COUNT(&set)
                   : static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN));
  info.memory_bytes = proc_kilobytes("/proc/meminfo", "MemTotal:");
  return info;
}

}  // namespace farskip
