#include "farskip/base/failpoint.h"

#include <signal.h>
#include <unistd.h>

#include <charconv>
#include <optional>
#include <string>

#include "farskip/base/environment.h"
#include "farskip/base/error.h"

namespace farskip {
namespace {

enum class Action { kill, error, exit };
struct Fault {
  std::string name;
  std::optional<int> rank;
  Action action = Action::kill;
};

Fault parse_fault(const std::string& text) {
  const auto refuse = [&] {
    return UsageError(fmt::format("FARSKIP_FAULT=\"{}\": expected name[:rank][:kill|error|exit]", text));
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
    if (part == "kill" || part == "error" || part == "exit") {
      fault.action = part == "kill" ? Action::kill : part == "error" ? Action::error : Action::exit;
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

}  // namespace

void failpoint(std::string_view name, int rank) {
  const std::optional<std::string> text = environment_variable("FARSKIP_FAULT");
  if (!text || text->empty()) return;
  const Fault fault = parse_fault(*text);
  if (fault.name != name || fault.rank.value_or(rank) != rank) return;
  switch (fault.action) {
    case Action::kill:
      ::kill(::getpid(), SIGKILL);
      return;
    case Action::exit:
      ::_exit(static_cast<int>(ExitCode::resumable));
    case Action::error:
      throw IoError(fmt::format("rank {}: failure at {} asked for by FARSKIP_FAULT", rank, name));
  }
}

}  // namespace farskip
