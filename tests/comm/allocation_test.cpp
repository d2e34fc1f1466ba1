// SPDX-License-Identifier: Apache-2.0
// A training step starts the same collectives again and again: after the first round they must not allocate.
#include <cstdlib>
#include <new>
#include <vector>

#include "comm/local.h"
#include "support/catch.h"

namespace {
thread_local int num_allocations = 0;
}

// All forms but the aligned ones: a sanitizer has its own of those that are left out, and compares.
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  ++num_allocations;
  return std::malloc(bytes == 0 ? 1 : bytes);
}
void* operator new(std::size_t bytes) {
  if (void* const memory = operator new(bytes, std::nothrow)) return memory;
  throw std::bad_alloc();
}
void* operator new[](std::size_t bytes) {
  return operator new(bytes);
}
void* operator new[](std::size_t bytes, const std::nothrow_t& tag) noexcept {
  return operator new(bytes, tag);
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, const std::nothrow_t&) noexcept {
  std::free(memory);
}
void operator delete[](void* memory) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, const std::nothrow_t&) noexcept {
  std::free(memory);
}

namespace farskip {
namespace {

/// One of each kind, some of them in flight together.
class Round {
 public:
  explicit Round(const Communicator& world)
      : world_(world),
        size_(static_cast<std::size_t>(world.size())),
        data_(size_ * 100),
        piece_(100),
        counts_(size_),
        rows_(size_ * 4),
        slabs_(size_ * 8),
        offsets_(size_ + 1),
        row_offsets_(size_ + 1) {
    for (std::size_t p = 0; p <= size_; ++p) {
      offsets_[p] = static_cast<std::int64_t>(p * 100);
      row_offsets_[p] = static_cast<std::int32_t>(p * 4);
    }
  }

  void run() {
    Pending rows = world_.start_all_to_all(RowExchange{rows_.data(), row_offsets_.data(), slabs_.data(),
                                                       counts_.data(), &overflow_, sizeof(float), 8, 1});
    world_.reduce_scatter(std::span<const float>(data_), offsets_, std::span(piece_));
    world_.all_gather(std::span<const float>(piece_), offsets_, std::span(data_));
    world_.all_reduce(std::span(data_));
    world_.broadcast(std::span(data_), 0);
    rows.wait();
    world_.all_to_all(
        RowReturn{slabs_.data(), counts_.data(), rows_.data(), row_offsets_.data(), sizeof(float), 8, 1});
    world_.barrier();
  }

 private:
  const Communicator world_;
  const std::size_t size_;
  std::vector<float> data_, piece_;
  std::vector<std::int32_t> counts_;
  std::vector<float> rows_, slabs_;
  std::vector<std::int64_t> offsets_;
  std::vector<std::int32_t> row_offsets_;
  std::int32_t overflow_ = 0;
};

TEST_CASE("collectives that have run before allocate nothing") {
  for (const int size : {1, 3}) {
    std::vector<int> counted(static_cast<std::size_t>(size), -1);
    run_local_ranks(size, [&](const Communicator& world) {
      Round round(world);
      for (int warm = 0; warm < 3; ++warm) round.run();
      const int before = num_allocations;
      round.run();
      counted[world.rank()] = num_allocations - before;
    });
    CHECK(counted == std::vector<int>(static_cast<std::size_t>(size), 0));
  }
}

}  // namespace
}  // namespace farskip
