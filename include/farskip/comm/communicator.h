#pragma once
// Collectives between ranks. A Communicator is a cheap handle on one group of ranks; what carries the bytes
// (copies within the process, threads, MPI) is behind it. docs/decisions/003-communicators.md says why.
//
// Rules for callers:
// - All ranks of a group start the same collectives in the same order. Many may be in flight.
// - start_* only begins a collective. Until its handle has been waited for, what it sends must not change
//   and what it receives must not be read. Counts and offsets are read at start.
// - One thread of a rank, the one that made its first communicator, starts and waits.
// - Sums of floating-point numbers are taken in rank order, whatever arrives first: the result has the same
//   bits on every rank and in every run.
//
// Errors: CommunicationError (the transport failed, a rank has left); InternalError where ranks disagree
// about what they call. After either, every call of this rank, in any group, throws that error again. A rank
// that throws leaves its peers waiting until its job is ended (MpiSession does that).

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "farskip/base/error.h"

namespace farskip {

class CommunicationError : public Error {
 public:
  explicit CommunicationError(const std::string& message) : Error(ExitCode::io, message) {}
};

enum class Reduction { sum, max, min };  // of i32 sums wrap around; NaN in, NaN out

/// Routed rows to the ranks that own their experts. Rows of one peer are sorted by group (local expert of
/// that peer), and land in that peer's own slab. Zero rows, for a group, a peer or everyone, are fine.
///
/// More rows for a peer than max_rows_per_peer: the first max_rows_per_peer of them go, the counts of the
/// later groups are cut to match, and `overflow` says so on the rank that had too many, which is the only one
/// to know. What is computed from such an exchange is wrong: the ranks must agree about the flag (a max
/// reduction of the caller's) and repeat the step with a larger maximum.
struct RowExchange {
  const void* send = nullptr;
  /// [size * groups + 1]: rows [o[i], o[i + 1]) of `send` go to group i % groups of rank i / groups.
  const std::int32_t* send_offsets = nullptr;
  void* receive = nullptr;  // [size * max_rows_per_peer, row_bytes]: slab p holds the rows from rank p
  /// [size * groups], written at completion: rows from rank i / groups for the local group i % groups.
  std::int32_t* receive_counts = nullptr;
  std::int32_t* overflow = nullptr;  // written at start: 1 if rows of this rank did not fit, otherwise 0
  std::int64_t row_bytes = 0;
  std::int64_t max_rows_per_peer = 0;
  int groups = 1;
};

/// The way back, and the adjoint of RowExchange: rows in slabs return to where they came from. Both sides
/// know all counts: what an exchange gave as receive_counts and took as send_offsets, under the same
/// max_rows_per_peer. Rows that did not fit then were not sent and do not come back: their places in
/// `receive` are filled with zero bytes.
struct RowReturn {
  const void* send = nullptr;                     // [size * max_rows_per_peer, row_bytes], slabs
  const std::int32_t* send_counts = nullptr;      // [size * groups], receive_counts of the exchange
  void* receive = nullptr;                        // rows in the order that send_offsets describes
  const std::int32_t* receive_offsets = nullptr;  // [size * groups + 1], send_offsets of the exchange
  std::int64_t row_bytes = 0;
  std::int64_t max_rows_per_peer = 0;
  int groups = 1;
};

class CommunicatorImpl;
class Heartbeat;
class CollectiveOperation;

/// A collective in flight. Wait for it, or test() until true. Destroying an unfinished one is a mistake
/// of the caller and is safe to hit while an exception passes: nothing hangs, the buffers are let go as
/// far as the transport can, and every later call of this rank throws InternalError.
class [[nodiscard]] Pending {
 public:
  Pending() = default;  // finished
  Pending(std::shared_ptr<CommunicatorImpl> communicator, CollectiveOperation* operation);
  Pending(Pending&& other) noexcept;
  Pending& operator=(Pending&& other) noexcept;
  ~Pending();

  bool finished() const { return operation_ == nullptr; }
  /// Makes progress without blocking; true once finished.
  bool test();
  void wait();

 private:
  void drop() noexcept;
  std::shared_ptr<CommunicatorImpl> communicator_;
  CollectiveOperation* operation_ = nullptr;
};

class Communicator {
 public:
  explicit Communicator(std::shared_ptr<CommunicatorImpl> impl);

  int rank() const;
  int size() const;
  /// "expert (mpi)": the group and its transport, as messages show it.
  std::string name() const;
  /// What is told of every wait of this rank; absent in most tests.
  Heartbeat* heartbeat() const;

  /// data[i] of all ranks reduced into data[i] of every rank. Same length everywhere.
  Pending start_all_reduce(std::span<float> data, Reduction reduction = Reduction::sum) const;
  Pending start_all_reduce(std::span<double> data, Reduction reduction = Reduction::sum) const;
  Pending start_all_reduce(std::span<std::int32_t> data, Reduction reduction = Reduction::sum) const;
  template <class T>
  void all_reduce(std::span<T> data, Reduction reduction = Reduction::sum) const {
    start_all_reduce(data, reduction).wait();
  }

  /// Piece p is elements [offsets[p], offsets[p + 1]); offsets [size + 1] from 0, equal on all ranks, pieces
  /// may be empty. `receive` gets the own piece of the reduced `send`; it may be that very piece of `send`.
  Pending start_reduce_scatter(std::span<const float> send, std::span<const std::int64_t> offsets,
                               std::span<float> receive, Reduction reduction = Reduction::sum) const;
  Pending start_reduce_scatter(std::span<const double> send, std::span<const std::int64_t> offsets,
                               std::span<double> receive, Reduction reduction = Reduction::sum) const;
  Pending start_reduce_scatter(std::span<const std::int32_t> send, std::span<const std::int64_t> offsets,
                               std::span<std::int32_t> receive, Reduction reduction = Reduction::sum) const;
  template <class T>
  void reduce_scatter(std::span<const T> send, std::span<const std::int64_t> offsets, std::span<T> receive,
                      Reduction reduction = Reduction::sum) const {
    start_reduce_scatter(send, offsets, receive, reduction).wait();
  }

  /// The pieces of all ranks one after another; offsets as above, in elements of T. `send`, the own piece,
  /// may be that very piece of `receive`.
  template <class T>
  Pending start_all_gather(std::span<const T> send, std::span<const std::int64_t> offsets,
                           std::span<T> receive) const {
    return start_all_gather_bytes(std::as_bytes(send), offsets, sizeof(T), std::as_writable_bytes(receive));
  }
  template <class T>
  void all_gather(std::span<const T> send, std::span<const std::int64_t> offsets,
                  std::span<T> receive) const {
    start_all_gather(send, offsets, receive).wait();
  }

  template <class T>
  Pending start_broadcast(std::span<T> data, int root) const {
    return start_broadcast_bytes(std::as_writable_bytes(data), root);
  }
  template <class T>
  void broadcast(std::span<T> data, int root) const {
    start_broadcast(data, root).wait();
  }

  Pending start_barrier() const;
  void barrier() const { start_barrier().wait(); }

  Pending start_all_to_all(const RowExchange& rows) const;
  void all_to_all(const RowExchange& rows) const { start_all_to_all(rows).wait(); }
  Pending start_all_to_all(const RowReturn& rows) const;
  void all_to_all(const RowReturn& rows) const { start_all_to_all(rows).wait(); }

  /// Ranks of one `color` (>= 0) form a group, ordered by `key`, then by rank here. Collective, blocking, and
  /// only while this rank has nothing in flight.
  Communicator split(int color, int key, const std::string& name) const;

  /// Makes progress on everything this rank has in flight, in all groups. For kernels to call between tiles,
  /// from any thread: off the rank's own thread it does nothing. Keeps errors for the next call that may
  /// throw.
  void poll() const noexcept;

 private:
  Pending start_all_gather_bytes(std::span<const std::byte> send, std::span<const std::int64_t> offsets,
                                 std::size_t element_bytes, std::span<std::byte> receive) const;
  Pending start_broadcast_bytes(std::span<std::byte> data, int root) const;
  std::shared_ptr<CommunicatorImpl> impl_;
};

/// The group of one rank: the same path as any other, without a wire.
Communicator make_self_communicator();

}  // namespace farskip
