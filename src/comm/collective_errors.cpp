// SPDX-License-Identifier: Apache-2.0
#include "comm/collective_errors.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <thread>

#include "base/folder.h"
#include "farskip/base/heartbeat.h"

namespace farskip {
namespace {

// An error as it travels: kind, exit code, message. No error is no text at all.
enum class Kind : char { error = 'e', user = 'u', internal = 'i' };
constexpr std::size_t kHeadBytes = 2;

std::string pack(Kind kind, ExitCode code, const char* message) {
  return std::string{static_cast<char>(kind), static_cast<char>(code)} + message;
}

std::string pack(const std::exception_ptr& error) {
  if (!error) return {};
  try {
    try {
      std::rethrow_exception(error);
    } catch (...) {
      rethrow_as_error();
    }
  } catch (const InternalError& e) {
    return pack(Kind::internal, e.code(), e.what());
  } catch (const UserError& e) {
    return pack(Kind::user, e.code(), e.what());
  } catch (const Error& e) {
    return pack(Kind::error, e.code(), e.what());
  }
}

[[noreturn]] void throw_packed(std::size_t rank, const std::string& packed) {
  FARSKIP_CHECK(packed.size() >= kHeadBytes, "error of {} bytes from rank {}", packed.size(), rank);
  const std::string message = fmt::format("rank {}: {}", rank, packed.substr(kHeadBytes));
  const auto code = static_cast<ExitCode>(packed[1]);
  switch (static_cast<Kind>(packed[0])) {
    case Kind::internal:
      throw InternalError(message);
    case Kind::user:
      throw UserError(code, message);
    case Kind::error:
      break;
  }
  throw Error(code, message);
}

}  // namespace

std::vector<std::string> all_gather_text(const Communicator& group, std::string_view mine) {
  const auto size = static_cast<std::size_t>(group.size());
  std::vector<std::int64_t> one_each(size + 1), lengths(size), offsets(size + 1, 0);
  std::iota(one_each.begin(), one_each.end(), 0);
  const auto length = static_cast<std::int64_t>(mine.size());
  group.all_gather(std::span(&length, 1), one_each, std::span(lengths));
  std::partial_sum(lengths.begin(), lengths.end(), offsets.begin() + 1);
  std::string all(static_cast<std::size_t>(offsets.back()), '\0');
  group.all_gather(std::span<const char>(mine), offsets, std::span<char>(all));
  std::vector<std::string> texts;
  for (std::size_t r = 0; r < size; ++r)
    texts.push_back(all.substr(static_cast<std::size_t>(offsets[r]), static_cast<std::size_t>(lengths[r])));
  return texts;
}

std::string read_on_first_rank(const Communicator& group, const fs::path& path, const Logger& logger) {
  constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 30;
  std::string text;
  try {
    if (group.rank() == 0)
      text = read_if_inside(path.parent_path(), path.filename().string(), kMostBytes).value_or("");
  } catch (const UserError& error) {
    logger.warning("{}; it is passed over", error.what());
  }
  return all_gather_text(group, text)[0];
}

void throw_together(const Communicator& group, const std::exception_ptr& mine) {
  if (group.size() == 1) {
    if (mine) std::rethrow_exception(mine);
    return;
  }
  const std::vector<std::string> errors = all_gather_text(group, pack(mine));
  const auto first = std::find_if(errors.begin(), errors.end(), [](const auto& e) { return !e.empty(); });
  if (first != errors.end()) throw_packed(static_cast<std::size_t>(first - errors.begin()), *first);
}

void wait_for_all(const Communicator& group, const char* what, const std::function<bool()>& done) {
  using namespace std::chrono_literals;
  Heartbeat* const heartbeat = group.heartbeat();
  const HeartbeatWait wait(heartbeat, what);
  for (auto pause = 1ms;; pause = std::min(2 * pause, 64ms)) {
    std::int32_t open = done() ? 0 : 1;
    group.all_reduce(std::span(&open, 1), Reduction::max);
    if (open == 0) return;
    if (heartbeat != nullptr) heartbeat->hear_from_peers();
    std::this_thread::sleep_for(pause);
  }
}

void run_together(const Communicator& group, const std::function<void()>& body) {
  std::exception_ptr failure;
  try {
    body();
  } catch (...) {
    failure = std::current_exception();
  }
  throw_together(group, failure);
}

void work_together(const Communicator& group, const char* what, const std::function<void()>& work) {
  std::exception_ptr failure;
  const auto run = [&] {
    try {
      if (work) work();
    } catch (...) {
      failure = std::current_exception();
    }
  };
  if (group.size() == 1) {
    run();
  } else {
    std::atomic<bool> done = false;
    const std::jthread thread([&] {
      run();
      done = true;
    });
    wait_for_all(group, what, [&] { return done.load(); });
  }
  throw_together(group, failure);
}

}  // namespace farskip
