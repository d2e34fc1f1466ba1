// SPDX-License-Identifier: Apache-2.0
#pragma once
// The run directory: one live writer, the resolved configuration, and how the run ended.

#include <memory>
#include <string>

#include "farskip/base/file.h"
#include "farskip/base/log.h"
#include "farskip/config/run_config.h"
#include "farskip/model/model_config.h"

namespace farskip {

/// Creates the folder and holds its lock (file `lock`, flock) until destroyed; the system frees the lock of
/// a process that died. UsageError naming the holder when another process has it; IoError when the folder
/// cannot be written, or where one of the files that a run writes into it is a link (which would be followed
/// to a file elsewhere) or no file. A line in the log where the last holder has not given it back.
class RunFolder {
 public:
  RunFolder(const fs::path& path, const Logger& logger);
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;
  ~RunFolder();

  const fs::path& path() const { return path_; }
  fs::path checkpoints() const { return path_ / "checkpoints"; }
  fs::path best() const { return path_ / "best"; }
  /// Removes exit.json of an earlier start: this one has not ended.
  void forget_exit() const;
  /// Writes exit.json: {"reason", "step", "resumable"}. Batch scripts read it: mpirun's own status does not
  /// say whether a run was stopped on request.
  void write_exit(const std::string& reason, std::int64_t step, bool resumable) const;

 private:
  fs::path path_;
  int descriptor_ = -1;
};

/// The folder of a run that may begin there. UsageError where it holds another run; IoError where checkpoints
/// cannot be written.
std::unique_ptr<RunFolder> open_run_folder(const RunConfig& config, const ModelConfig& model,
                                           const Logger& logger);

}  // namespace farskip
