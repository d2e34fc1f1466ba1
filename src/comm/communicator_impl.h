// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a transport implements. Callers use Communicator; its arguments have been checked there.

#include <cstdint>
#include <memory>
#include <string>

#include "farskip/comm/communicator.h"

namespace farskip {

enum class ElementType { byte, i32, f32, f64 };

/// One collective as a value. What it sends and receives stays valid until it is finished; offsets and counts
/// that it reads, until it has started.
struct Collective {
  enum class Kind { all_reduce, reduce_scatter, all_gather, broadcast, barrier, exchange_rows, return_rows };
  Kind kind = Kind::barrier;
  ElementType element = ElementType::byte;
  Reduction reduction = Reduction::sum;
  const void* send = nullptr;
  void* receive = nullptr;
  std::int64_t count = 0;                 // elements: all_reduce, broadcast
  const std::int64_t* offsets = nullptr;  // [size + 1], elements: reduce_scatter, all_gather
  std::int64_t element_bytes = 1;         // of what `offsets` counts
  int root = 0;
  RowExchange exchange;
  RowReturn row_return;
};

/// Owned by its communicator, which uses it again.
class CollectiveOperation {
 public:
  virtual ~CollectiveOperation() = default;
};

class CommunicatorImpl {
 public:
  virtual ~CommunicatorImpl() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string name() const = 0;
  virtual Heartbeat* heartbeat() const { return nullptr; }

  virtual CollectiveOperation* start(const Collective& collective) = 0;
  /// True: finished, and `operation` is no longer the caller's.
  virtual bool test(CollectiveOperation* operation) = 0;
  virtual void wait(CollectiveOperation* operation) = 0;
  /// The caller gives up an unfinished operation.
  virtual void drop(CollectiveOperation* operation) noexcept = 0;
  virtual void poll() noexcept = 0;
  virtual std::shared_ptr<CommunicatorImpl> split(int color, int key, const std::string& name) = 0;
};

}  // namespace farskip
