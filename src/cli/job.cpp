// SPDX-License-Identifier: Apache-2.0
#include "cli/job.h"

#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <thread>

#include "backend/cpu/machine.h"
#include "base/environment.h"
#include "base/stop_signals.h"
#include "base/version.h"
#include "cli/failure.h"
#include "comm/collective_errors.h"
#include "comm/mpi.h"
#include "run/run_config_file.h"
#include "tensor/hash.h"

namespace farskip {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

/// "rank 2, step 17: "
std::string place_of(int rank, const Heartbeat::Sign& sign) {
  return sign.step < 0 ? fmt::format("rank {}: ", rank) : fmt::format("rank {}, step {}: ", rank, sign.step);
}

/// How long a rank waits before it reports an error. Where several have it, the lowest one speaks and ends
/// the others before their turn comes, on a busy machine too.
std::chrono::milliseconds turn_of(int rank) {
  return rank == 0 ? 0ms : std::min(3000ms, 1000ms + 20ms * rank);
}

/// The same where the error is that the job was asked to stop: rank 0 writes that down before it speaks.
constexpr std::chrono::milliseconds kTurnOfStopped = 10s;

/// Ends the process when the heartbeat stops. A blocked MPI call cannot be ended in any other way.
class Watchdog {
 public:
  Watchdog(std::shared_ptr<Heartbeat> heartbeat, const JobRequest& request, int rank)
      : heartbeat_(std::move(heartbeat)),
        timeout_seconds_(request.timeout_seconds),
        cure_(request.cure),
        rank_(rank),
        thread_([this] { watch(); }) {}
  ~Watchdog() {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  void watch() {
    std::unique_lock lock(mutex_);
    Clock::time_point woke = Clock::now();
    while (!sleep(lock, 250ms)) {
      const Clock::time_point now = Clock::now();
      if (now - woke > 2s) heartbeat_->beat();  // this process was stopped, and its peers may have been too
      woke = now;
      if (!is_lifeless()) continue;
      const DieOnTerminate guard;
      if (sleep(lock, turn_of(rank_))) return;
      if (is_lifeless()) give_up();
    }
  }

  /// True once the job has ended.
  bool sleep(std::unique_lock<std::mutex>& lock, std::chrono::milliseconds duration) {
    return changed_.wait_for(lock, duration, [this] { return ended_; });
  }

  bool is_lifeless() const {
    const Heartbeat::Sign sign = heartbeat_->last_sign();
    const bool patient = sign.patient || sign.silence_seconds > 0;
    return sign.silence_seconds > timeout_seconds_ ||
           sign.age_seconds > timeout_seconds_ * (patient ? HeartbeatPatience::kPatience : 1);
  }

  [[noreturn]] void give_up() const {
    const Heartbeat::Sign sign = heartbeat_->last_sign();
    const std::string wait = sign.waits_in == nullptr
                                 ? std::string("outside of any wait for its peers")
                                 : fmt::format("waiting in {} (a peer is lost or stuck)", sign.waits_in);
    print_error(place_of(rank_, sign) + fmt::format("no progress for {:.0f} s, {}; {}",
                                                    std::max(sign.age_seconds, sign.silence_seconds), wait,
                                                    cure_));
    std::_Exit(static_cast<int>(ExitCode::resumable));
  }

  const std::shared_ptr<Heartbeat> heartbeat_;
  const double timeout_seconds_;
  const char* const cure_;
  const int rank_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ended_ = false;
  std::thread thread_;  // last: it uses the others
};

/// No rank outlives its launcher, which nothing else tells it of.
void die_with_parent() {
  const pid_t parent = ::getppid();
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) std::_Exit(static_cast<int>(ExitCode::resumable));  // it died in between
}

void share_cores(const LauncherPlace& place, const Logger& logger) {
  const int all = usable_cores(::getppid());  // the launcher's: what it may give to its ranks
  const int own = usable_cores(0), fair = all / place.local_size;
  const int threads = cpu::share_cores(place.local_size, all);
  if (place.rank == 0 && own < fair)
    logger.warning(
        "the launcher bound this rank to {} of {} cores, so {} threads compute; its share would be {} "
        "(mpirun "
        "--bind-to none)",
        own, all, threads, fair);
  if (place.rank == 0 && threads <= own && threads > std::max(1, fair))
    logger.warning(
        "OMP_NUM_THREADS is {}, so the {} ranks on this machine share {} cores in {} threads; use at most {}",
        threads, place.local_size, all, threads * place.local_size, std::max(1, fair));
}

/// A launcher of another MPI starts processes that each believe to be alone.
void check_world(const LauncherPlace& place, int size) {
  if (place.size > 0 && place.size != size)
    throw UsageError(fmt::format(
        "the launcher started {} processes, of which {} (this program's MPI) connected {}; use the "
        "mpirun that belongs to it",
        place.size, mpi_library(), size));
}

/// Whatever ranks are started with, they have to do the same; MPI itself would only notice when messages do
/// not fit, if at all.
void check_alike(const Communicator& world, const ConfigNode& request) {
  ConfigNode own;
  own.set("program", make_node(fmt::format("farskip {} ({})", version(), commit())));
  for (const ConfigNode& child : request.children) own.set(child.key, child);
  const std::string text = to_yaml(own);
  const std::vector<std::string> hashes = all_gather_text(world, hash_text(text));
  const auto other =
      std::find_if(hashes.begin(), hashes.end(), [&](const auto& h) { return h != hashes[0]; });
  if (other == hashes.end()) return;
  const std::vector<std::string> texts = all_gather_text(world, text);
  const auto rank = static_cast<std::size_t>(other - hashes.begin());
  const auto difference = first_difference(parse_yaml_text(texts[0], "rank 0"),
                                           parse_yaml_text(texts[rank], fmt::format("rank {}", rank)));
  FARSKIP_CHECK(difference, "requests of other hashes are equal");
  throw UsageError(
      fmt::format("the ranks of a job have to do the same, and {} is {} on rank 0 and {} on rank {}; start "
                  "all of them with the "
                  "same program, configuration and overrides",
                  difference->path, difference->left, difference->right, rank));
}

[[noreturn]] void end_job(const MpiSession& session, int rank, const Heartbeat::Sign& sign,
                          const Failure& failure) {
  const DieOnTerminate guard;
  std::this_thread::sleep_for(rank > 0 && failure.code == ExitCode::resumable ? kTurnOfStopped
                                                                              : turn_of(rank));
  std::string_view message = failure.message;
  const std::string own = fmt::format("rank {}: ", rank);  // where the ranks have agreed on an error
  if (message.starts_with(own)) message.remove_prefix(own.size());
  print_error(fmt::format("{}{}", place_of(rank, sign), message));
  session.abort(static_cast<int>(failure.code));
}

ExitCode run_rank(const MpiSession& session, const LauncherPlace& place, const CommonOptions& common,
                  const JobRequest& request, const std::shared_ptr<Heartbeat>& heartbeat,
                  const std::function<ExitCode(Job&)>& body) {
  try {
    const Communicator world = session.world();
    check_world(place, world.size());
    check_alike(world, request.alike);
    const Logger logger = world.rank() == 0
                              ? common.logger()
                              : Logger(LogLevel::warning, fmt::format("rank {}: ", world.rank()));
    share_cores(place, logger);
    Job job{world, heartbeat, logger};
    return body(job);
  } catch (const std::exception&) {
    const Failure failure = describe_current_exception();
    if (place.size != 1) end_job(session, place.rank, heartbeat->last_sign(), failure);
    print_error(failure.message);
    session.abort(static_cast<int>(failure.code));
  }
}

}  // namespace

JobRequest request_job(const std::string& command, const LoadedRun& run) {
  JobRequest request{.timeout_seconds = static_cast<double>(run.config.parallel.timeout)};
  request.alike.set("command", make_node(command));
  const ConfigNode config = run_config_tree(resolved_config(run.config, run.model));
  for (const ConfigNode& child : config.children) request.alike.set(child.key, child);
  // Also where folders give the models, which need not be the same on all hosts.
  request.alike.set("model", model_section(run.model));
  if (run.distill) request.alike.set("teacher", model_section(run.distill->teacher));
  return request;
}

JobRequest request_job(const char* command, std::initializer_list<std::pair<const char*, ConfigNode>> alike) {
  JobRequest request;
  request.alike.set("command", make_node(command));
  for (const auto& [option, value] : alike) request.alike.set(option, value);
  return request;
}

ExitCode run_job(const CommonOptions& common, const JobRequest& request,
                 const std::function<ExitCode(Job&)>& body) {
  const std::optional<LauncherPlace> place = launcher_place();
  const auto heartbeat = std::make_shared<Heartbeat>();
  if (place) die_with_parent();
  if (!place || (place->size == 1 && mpi_library().empty())) {
    Job job{make_self_communicator(), heartbeat, common.logger()};
    return body(job);
  }
  std::optional<Watchdog> watchdog;  // outlives MPI, whose beginning and end wait for all ranks
  if (request.timeout_seconds > 0 && place->size != 1) watchdog.emplace(heartbeat, request, place->rank);
  heartbeat->enter("MPI_Init");
  const MpiSession session(heartbeat.get());
  heartbeat->leave();
  const ExitCode code = run_rank(session, *place, common, request, heartbeat, body);
  heartbeat->enter("MPI_Finalize");
  return code;
}

}  // namespace farskip
