#include "farskip/base/stop_signals.h"

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
  for (const int signal : {SIGUSR1, SIGTERM}) {
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
    const StopSignals signals;
    act();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

TEST_CASE("a second SIGTERM leaves at once, and so does the first while a rank waits for its turn") {
  CHECK(status_of([] { ::raise(SIGTERM); }) == 0);
  CHECK(status_of([] {
          ::raise(SIGTERM);
          ::raise(SIGTERM);
        }) == 128 + SIGTERM);
  CHECK(status_of([] {
          const DieOnTerminate guard;
          ::raise(SIGTERM);
        }) == 128 + SIGTERM);
}

}  // namespace
}  // namespace farskip
