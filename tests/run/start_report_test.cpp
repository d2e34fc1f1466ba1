// SPDX-License-Identifier: Apache-2.0
// What a run finds missing before its first step.
#include "run/start_report.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/environment.h"
#include "farskip/base/error.h"
#include "support/catch.h"

namespace farskip {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

/// In this process: allows it `free` bytes beside what it has. True if the system agrees.
bool limit_address_space(std::uint64_t free) {
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_AS, &limit) != 0) return false;
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, rlim_t{1} << 47);
  if (::setrlimit(RLIMIT_AS, &limit) != 0) return false;
  const auto left = free_address_space();
  if (!left || *left < free) return false;
  limit.rlim_cur -= *left - free;
  return ::setrlimit(RLIMIT_AS, &limit) == 0;
}

/// What the check says in a process with that much left; "enough" where it says nothing.
std::string check_with(std::uint64_t free, std::uint64_t snapshot) {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    std::string answer = "no limit can be set";
    if (limit_address_space(free)) try {
        check_free_memory({.snapshot = snapshot});
        answer = "enough";
      } catch (const IoError& error) {
        answer = error.what();
      }
    const ssize_t written = ::write(ends[1], answer.data(), answer.size());
    ::_exit(written > 0 ? 0 : 1);
  }
  ::close(ends[1]);
  std::string answer(1000, ' ');
  const ssize_t size = ::read(ends[0], answer.data(), answer.size());
  ::close(ends[0]);
  ::waitpid(child, nullptr, 0);
  answer.resize(static_cast<std::size_t>(std::max<ssize_t>(size, 0)));
  return answer;
}

TEST_CASE("a limit of memory that leaves too little for first steps and saves is said before them") {
  CHECK_THAT(check_with(40 * kMiB, 100 * kMiB),
             ContainsSubstring("(ulimit -v) leaves ") && ContainsSubstring("which need 164; raise it by at "
                                                                           "least 12"));
  CHECK_THAT(check_with(150 * kMiB, 100 * kMiB), ContainsSubstring("raise it by at least 1"));
  CHECK(check_with(200 * kMiB, 100 * kMiB) == "enough");
  if (struct rlimit limit{}; ::getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur == RLIM_INFINITY) {
    CHECK_FALSE(free_address_space());
    CHECK_NOTHROW(check_free_memory({.snapshot = std::size_t{1} << 60}));
  }
}

}  // namespace
}  // namespace farskip
