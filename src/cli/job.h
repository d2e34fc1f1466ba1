// SPDX-License-Identifier: Apache-2.0
#pragma once
// A command as a job of ranks: mpirun -np N farskip train CONFIG. The job fails as a whole and fast: an error
// on any rank, a rank that is killed, a launcher that is killed, a peer that hangs each end all ranks, with
// one message and the documented exit code, and the run goes on from its last checkpoint when it is started
// again.

#include <functional>
#include <initializer_list>
#include <memory>

#include "cli/command.h"
#include "cli/command_inputs.h"
#include "farskip/base/error.h"
#include "farskip/base/heartbeat.h"
#include "farskip/base/log.h"
#include "farskip/comm/communicator.h"

namespace farskip {

/// What a command that runs on many ranks gets.
struct Job {
  Communicator world;
  /// Must be told of every step and wait, or the watchdog takes this rank for stuck.
  std::shared_ptr<Heartbeat> heartbeat;
  Logger logger;  // rank 0: as the options say; other ranks: warnings and errors, as lines "rank N: …"

  /// Makes the context of this rank in a mesh that is connected on `device`.
  Context context(Mesh mesh, std::shared_ptr<Device> device) const {
    return {std::move(mesh), std::make_shared<Arena>(std::move(device)), heartbeat.get(), logger};
  }
};

struct JobRequest {
  double timeout_seconds = 0;
  ConfigNode alike{};  // what has to be the same on all ranks, beside the program
  /// The message of a lost rank ends with this advice.
  const char* cure = "the run can be resumed from its last checkpoint";
};
/// A command on a configuration; options that all ranks must have alike are added under their names.
JobRequest request_job(const std::string& command, const LoadedRun& run);
/// A command on a model folder.
JobRequest request_job(const char* command, std::initializer_list<std::pair<const char*, ConfigNode>> alike);

/// Runs `body` on this rank: under a launcher of MPI one of its ranks, otherwise the only one.
///
/// An exception of `body` on a rank of several ends the job: one message that names rank and step, and the
/// exit code of the error. (Rank 0 speaks at once and ends the others, each of which first waits whether rank
/// 0 has the same error.) With one rank it is thrown on.
///
/// With several ranks, UsageError before anything else where they are asked for different things: the first
/// key that differs, both values, both ranks.
///
/// With several ranks, and unless `timeout_seconds` is 0, a rank whose heartbeat shows no sign of life for so
/// long says what it waits in and ends with ExitCode::resumable. Time in which this process was stopped as a
/// whole (a suspended job) does not count.
///
/// Ranks that share a machine share its cores (cpu::share_cores). Under a launcher this process is killed
/// when its parent dies.
ExitCode run_job(const CommonOptions& common, const JobRequest& request,
                 const std::function<ExitCode(Job&)>& body);

}  // namespace farskip
