// SPDX-License-Identifier: Apache-2.0
#include "base/failpoint.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <iterator>
#include <optional>
#include <string>
#include <utility>

#include "base/environment.h"
#include "farskip/base/error.h"
#include "farskip/base/file.h"

namespace farskip {
namespace {

constexpr std::string_view kNames[] = {"ckpt.begin",  "ckpt.shard",     "ckpt.manifest", "ckpt.rename",
                                       "ckpt.latest", "metrics.append", "convert.shard"};

bool is_known(std::string_view name) {
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

enum class Action { kill, stop, error, exit };
constexpr std::pair<std::string_view, Action> kActions[] = {
    {"kill", Action::kill}, {"stop", Action::stop}, {"error", Action::error}, {"exit", Action::exit}};
struct Fault {
  std::string name;
  std::optional<int> rank;
  Action action = Action::kill;
};

Fault parse_fault(const std::string& text) {
  const auto refuse = [&] {
    return UsageError(
        fmt::format("FARSKIP_FAULT=\"{}\": expected name[:rank][:kill|stop|error|exit]", printable(text)));
  };
  Fault fault;
  std::size_t begin = text.find(':');
  fault.name = text.substr(0, begin);
  if (fault.name.empty()) throw refuse();
  for (bool action_seen = false; begin != std::string::npos;) {
    const std::size_t end = text.find(':', begin + 1);
    const std::string part = text.substr(begin + 1, end == std::string::npos ? end : end - begin - 1);
    begin = end;
    if (action_seen) throw refuse();
    const auto action = std::find_if(std::begin(kActions), std::end(kActions),
                                     [&](const auto& known) { return known.first == part; });
    if (action != std::end(kActions)) {
      fault.action = action->second;
      action_seen = true;
      continue;
    }
    int rank = 0;
    const auto [stop, failure] = std::from_chars(part.data(), part.data() + part.size(), rank);
    if (failure != std::errc{} || stop != part.data() + part.size() || rank < 0 || fault.rank) throw refuse();
    fault.rank = rank;
  }
  return fault;
}

std::optional<Fault> asked_fault() {
  const std::optional<std::string> text = environment_variable("FARSKIP_FAULT");
  return text && !text->empty() ? std::optional(parse_fault(*text)) : std::nullopt;
}

}  // namespace

void check_failpoint() {
  const std::optional<Fault> fault = asked_fault();
  if (fault && !is_known(fault->name))
    throw UsageError(fmt::format("FARSKIP_FAULT: there is no failpoint {}; allowed: {}",
                                 printable(fault->name), fmt::join(kNames, ", ")));
}

void failpoint(std::string_view name, int rank) {
  FARSKIP_CHECK(is_known(name), "failpoint {} is not listed", name);
  const std::optional<Fault> fault = asked_fault();
  if (!fault || fault->name != name || fault->rank.value_or(rank) != rank) return;
  switch (fault->action) {
    case Action::kill:
      ::kill(::getpid(), SIGKILL);
      return;
    case Action::stop:
      ::kill(::getpid(), SIGSTOP);
      return;
    case Action::exit:
      ::_exit(static_cast<int>(ExitCode::resumable));
    case Action::error:
      throw IoError(fmt::format("rank {}: failure at {} asked for by FARSKIP_FAULT", rank, name));
  }
}

}  // namespace farskip
