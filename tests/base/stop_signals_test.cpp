// SPDX-License-Identifier: Apache-2.0
#include "base/stop_signals.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "farskip/base/file.h"
#include "support/catch.h"
#include "support/support.h"

namespace farskip {
namespace {

TEST_CASE("a request to stop is kept until it may end the run, and then ends any read") {
  const test::TemporaryFolder folder;
  write_text_file(folder / "file", "text");
  ::signal(SIGINT, SIG_DFL);  // whatever started the test may ignore it
  for (const int signal : {SIGUSR1, SIGTERM, SIGINT}) {
    const StopSignals signals;
    CHECK_FALSE(signals.requested());
    ::raise(signal);
    CHECK(signals.requested());
    CHECK_NOTHROW(leave_if_asked());
    {
      const StopSignals of_another_rank;
      CHECK(of_another_rank.requested());
    }
    signals.allow_leaving(true);
    CHECK_THROWS_AS(leave_if_asked(), StopRequested);
    CHECK_THROWS_AS(read_text_file(folder / "file"), StopRequested);
    signals.allow_leaving(false);
    CHECK(read_text_file(folder / "file") == "text");
  }
  CHECK_NOTHROW(leave_if_asked());
}

TEST_CASE("a stop is none of the errors after which a run would go on with something else") {
  try {
    throw StopRequested();
  } catch (const UserError&) {
    FAIL("taken for a damaged file");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::resumable);
  }
}

/// How a process ends in which `act` is done: its exit code, or 128 + signal.
int status_of(void (*act)()) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGINT, SIG_DFL);
    const StopSignals signals;
    act();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

TEST_CASE(
    "a second SIGTERM or Ctrl-C leaves at once, and so does the first while a rank waits for its turn") {
  for (const auto& act : {+[] { ::raise(SIGTERM); }, +[] { ::raise(SIGINT); }}) CHECK(status_of(act) == 0);
  CHECK(status_of([] {
          ::raise(SIGUSR1);
          ::raise(SIGINT);
          ::raise(SIGUSR1);
        }) == 0);
  CHECK(status_of([] {
          ::raise(SIGINT);
          ::raise(SIGINT);
        }) == 128 + SIGINT);
  CHECK(status_of([] {
          ::raise(SIGINT);
          ::raise(SIGTERM);  // a launcher's, for the same Ctrl-C
        }) == 0);
  CHECK(status_of([] {
          ::raise(SIGTERM);
          ::raise(SIGTERM);
        }) == 128 + SIGTERM);
  CHECK(status_of([] {
          const DieOnTerminate guard;
          ::raise(SIGTERM);
        }) == 128 + SIGTERM);
}

TEST_CASE(
    "Ctrl-C is no request where the process was started to ignore it, and is its own again afterwards") {
  const auto before = ::signal(SIGINT, SIG_IGN);
  {
    const StopSignals signals;
    ::raise(SIGINT);
    CHECK_FALSE(signals.requested());
  }
  CHECK((::signal(SIGINT, SIG_DFL) == SIG_IGN));
  { const StopSignals signals; }
  CHECK((::signal(SIGINT, before) == SIG_DFL));
}

}  // namespace
}  // namespace farskip
