// SPDX-License-Identifier: Apache-2.0
#include "comm/mpi.h"

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <limits>
#include <thread>
#include <vector>

#include "../host/host_communicator.h"

namespace farskip {

/// Shared by the session and all groups.
struct MpiState {
  std::vector<MPI_Comm> groups;  // all that were made; freed at the end
  std::shared_ptr<CommunicatorImpl> world;
  bool open = true;
  bool failed = false;
  const int exceptions = std::uncaught_exceptions();  // passing through when the session began
};

namespace {

void check(int code, const char* call, const std::string& where) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "unknown error";
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw CommunicationError(fmt::format("{}: {}: {}", where, call, text));
}

/// A message travels in pieces below the limit up to which Open MPI's TCP sends at once. A larger one would
/// first be announced and asked for, and on a link that is busy both ways the answer stands in the queue
/// behind the other direction's data: half of the rate was measured. Both sides know the capacity and so the
/// number of pieces; where less is sent, the last ones are empty.
struct Pieces {
  explicit Pieces(std::int64_t capacity) {
    constexpr std::int64_t least = 60'000, most_pieces = 4096;
    size = std::max(least, (capacity + most_pieces - 1) / most_pieces);
    if (size > std::numeric_limits<int>::max())
      throw CommunicationError(fmt::format("a message of {} bytes is more than MPI can send", capacity));
    count = std::max<std::int64_t>(1, (capacity + size - 1) / size);
  }
  std::int64_t size = 0, count = 0;
  /// Bytes of piece i of a message of `bytes`.
  int length(std::int64_t bytes, std::int64_t i) const {
    return static_cast<int>(std::clamp<std::int64_t>(bytes - i * size, 0, size));
  }
};

class MpiExchange final : public Exchange {
 public:
  MpiExchange(MPI_Comm group, int rank, int size, std::string name, std::shared_ptr<const MpiState> state)
      : group_(group), rank_(rank), size_(size), name_(std::move(name)), state_(std::move(state)) {}

  /// Receives first: what has a place waiting need not be kept by MPI. Rank r begins with rank r + 1, so that
  /// not everyone sends to the same rank at once.
  void post(int tag, std::span<const Outgoing> out, std::span<Incoming> in) override {
    FARSKIP_CHECK(state_->open, "{}: used after MPI has ended", name_);
    in_ = in;
    requests_.clear();
    sources_.clear();
    for (int step = 1; step < size_; ++step) {
      const int source = (rank_ + size_ - step) % size_;
      const Incoming& from = in[source];
      if (from.capacity == kNoMessage) continue;
      const Pieces pieces(from.capacity);
      for (std::int64_t i = 0; i < pieces.count; ++i) {
        sources_.push_back(source);
        check(MPI_Irecv(static_cast<std::byte*>(from.data) + i * pieces.size, pieces.length(from.capacity, i),
                        MPI_BYTE, source, tag, group_, &requests_.emplace_back()),
              "MPI_Irecv", name_);
      }
    }
    for (int step = 1; step < size_; ++step) {
      const int target = (rank_ + step) % size_;
      const Outgoing& to = out[target];
      if (to.bytes == kNoMessage) continue;
      const Pieces pieces(to.capacity);
      for (std::int64_t i = 0; i < pieces.count; ++i)
        check(MPI_Isend(static_cast<const std::byte*>(to.data) + i * pieces.size, pieces.length(to.bytes, i),
                        MPI_BYTE, target, tag, group_, &requests_.emplace_back()),
              "MPI_Isend", name_);
    }
    statuses_.resize(std::max(statuses_.size(), requests_.size()));
  }

  bool test() override {
    int done = 0;
    const int num_requests = static_cast<int>(requests_.size());
    const int code = MPI_Testall(num_requests, requests_.data(), &done, statuses_.data());
    if (code == MPI_ERR_IN_STATUS)
      for (int i = 0; i < num_requests; ++i)
        if (statuses_[i].MPI_ERROR != MPI_ERR_PENDING) check(statuses_[i].MPI_ERROR, "MPI_Testall", name_);
    check(code, "MPI_Testall", name_);
    if (!done) return false;
    for (const int source : sources_) in_[source].bytes = 0;
    for (std::size_t i = 0; i < sources_.size(); ++i) {
      int bytes = 0;
      check(MPI_Get_count(&statuses_[i], MPI_BYTE, &bytes), "MPI_Get_count", name_);
      in_[sources_[i]].bytes += bytes;
    }
    return true;
  }

  /// Sends cannot be taken back; nothing touches the buffers unless this process calls MPI again, and a
  /// session that has failed calls only MPI_Abort.
  void abandon() noexcept override {
    for (std::size_t i = 0; i < sources_.size() && i < requests_.size(); ++i)
      if (state_->open && requests_[i] != MPI_REQUEST_NULL) MPI_Cancel(&requests_[i]);
  }

 private:
  const MPI_Comm group_;
  const int rank_, size_;
  const std::string name_;
  const std::shared_ptr<const MpiState> state_;
  std::vector<MPI_Request> requests_;  // receives, then sends
  std::vector<MPI_Status> statuses_;
  std::vector<int> sources_;  // of the receives
  std::span<Incoming> in_;
};

class MpiEndpoint final : public Endpoint {
 public:
  MpiEndpoint(MPI_Comm group, std::string name, std::shared_ptr<MpiState> state)
      : group_(group), name_(std::move(name)), state_(std::move(state)) {
    check(MPI_Comm_set_errhandler(group_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", name_);
    check(MPI_Comm_rank(group_, &rank_), "MPI_Comm_rank", name_);
    check(MPI_Comm_size(group_, &size_), "MPI_Comm_size", name_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string name() const override { return name_; }
  std::unique_ptr<Exchange> make_exchange() override {
    return std::make_unique<MpiExchange>(group_, rank_, size_, name_, state_);
  }
  std::unique_ptr<Endpoint> split(const SplitPlan& plan) override {
    MPI_Comm part = MPI_COMM_NULL;
    check(MPI_Comm_split(group_, plan.color, plan.position, &part), "MPI_Comm_split", name_);
    state_->groups.push_back(part);
    return std::make_unique<MpiEndpoint>(part, plan.name + " (mpi)", state_);
  }
  /// Every test() lets MPI work, and there is nothing to sleep on. A wait that lasts gives the core away
  /// between tests: to a rank that shares it, or to the other thread of a core whose ranks compute.
  std::uint64_t changes() override { return 0; }
  void wait_for_change(std::uint64_t, std::chrono::steady_clock::time_point since) override {
    using namespace std::chrono_literals;
    if (std::chrono::steady_clock::now() - since > 200us) std::this_thread::sleep_for(20us);
  }
  void fail(const std::string&) noexcept override { state_->failed = true; }

 private:
  MPI_Comm group_;
  int rank_ = 0, size_ = 0;
  std::string name_;
  std::shared_ptr<MpiState> state_;
};

}  // namespace

std::string mpi_library() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string all(text);  // "Open MPI v4.1.4, package: …", "MPICH Version: 4.0.2\nMPICH Release …"
  return all.substr(0, all.find_first_of(",\n"));
}

MpiSession::MpiSession(Heartbeat* heartbeat) : state_(std::make_shared<MpiState>()) {
  int initialized = 0;
  MPI_Initialized(&initialized);
  FARSKIP_CHECK(!initialized, "MPI has been started before in this process");
  int provided = MPI_THREAD_SINGLE;
  check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread", "mpi");
  if (provided < MPI_THREAD_FUNNELED)
    throw CommunicationError("mpi: this MPI allows no threads at all (MPI_THREAD_FUNNELED is needed)");
  check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", "mpi");
  MPI_Comm world = MPI_COMM_NULL;  // messages of our own, apart from any other user of MPI
  check(MPI_Comm_dup(MPI_COMM_WORLD, &world), "MPI_Comm_dup", "mpi");
  state_->groups.push_back(world);
  state_->world = std::make_shared<HostCommunicator>(
      std::make_unique<MpiEndpoint>(world, "world (mpi)", state_), std::make_shared<Progress>(heartbeat));
}

MpiSession::~MpiSession() {
  if (state_->failed || std::uncaught_exceptions() > state_->exceptions)
    abort(static_cast<int>(ExitCode::internal));
  state_->open = false;
  state_->world.reset();
  for (MPI_Comm& group : state_->groups) MPI_Comm_free(&group);
  MPI_Finalize();
}

Communicator MpiSession::world() const {
  return Communicator(state_->world);
}

void MpiSession::abort(int exit_code) const {
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

}  // namespace farskip
