// SPDX-License-Identifier: Apache-2.0
// A job that does nothing but steps with a sum over all ranks, for job_faults.py to break:
//   farskip_probe TAG STEPS TIMEOUT [RANK|all|together STEP]
// TAG is what the script finds the processes by. With RANK (or all), that rank throws at STEP; with together
// all agree on the error first.

#include <chrono>
#include <csignal>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "backend/cpu/machine.h"
#include "cli/failure.h"
#include "cli/job.h"
#include "comm/collective_errors.h"

namespace farskip {
namespace {

ExitCode run_steps(const std::vector<std::string>& arguments, const Job& job) {
  const int num_steps = std::stoi(arguments.at(1));
  const std::string failing = arguments.size() > 3 ? arguments[3] : "";
  const int failing_step = failing.empty() ? -1 : std::stoi(arguments.at(4));
  const int rank = job.world.rank();
  // As a trainer does, which means to save: the launcher cannot end this process by SIGTERM.
  std::signal(SIGTERM, [](int) {});
  std::printf("rank %d computes in %d threads\n", rank, cpu::share_cores(1, 0));
  std::fflush(stdout);
  job.logger.info("information");
  job.logger.warning("warning\nof two lines");
  for (int step = 1; step <= num_steps; ++step) {
    job.heartbeat->begin_step(step);
    if (step == failing_step && failing == "together")
      run_together(job.world, [] { throw DataError("broken on purpose"); });
    if (step == failing_step && (failing == "all" || std::stoi(failing) == rank))
      throw DataError("broken on purpose");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    float one = 1;
    job.heartbeat->enter("world.all_reduce");
    job.world.all_reduce(std::span(&one, 1));
    job.heartbeat->leave();
    if (one != static_cast<float>(job.world.size())) throw InternalError("the sum is wrong");
    if (rank == 0) {
      std::printf("step %d\n", step);
      std::fflush(stdout);
    }
  }
  return ExitCode::ok;
}

}  // namespace
}  // namespace farskip

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  try {
    return static_cast<int>(
        farskip::run_job({}, {.timeout_seconds = std::stod(arguments.at(2))},
                         [&](farskip::Job& job) { return farskip::run_steps(arguments, job); }));
  } catch (const std::exception&) {
    const farskip::Failure failure = farskip::describe_current_exception();
    farskip::print_error(failure.message);
    return static_cast<int>(failure.code);
  }
}
