// SPDX-License-Identifier: Apache-2.0
#pragma once
// Helpers shared by the tests.

#include <filesystem>
#include <string>

namespace farskip::test {

/// tests/fixtures of the source tree.
std::filesystem::path fixtures();

/// A fresh folder under the system's temporary folder, removed with its content at the end of scope.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

struct CommandResult {
  int status = 0;  // exit code, or 128 + signal
  std::string out, err;
};
/// Runs a shell command line and captures both streams.
CommandResult run_command(const std::string& command);

}  // namespace farskip::test
