#pragma once
// The only place that reads the environment and the machine.

#include <cstdint>
#include <optional>
#include <string>

namespace farskip {

std::optional<std::string> environment_variable(const char* name);

/// Resident memory of this process, bytes: now, and the highest so far.
std::uint64_t resident_bytes();
std::uint64_t peak_resident_bytes();

struct MachineInfo {
  std::string hostname, processor, system;
  int cores = 0;
  std::uint64_t memory_bytes = 0;
};
MachineInfo machine_info();

}  // namespace farskip
