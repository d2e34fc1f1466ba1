// SPDX-License-Identifier: Apache-2.0
#include "suite.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

namespace farskip::test {
namespace {

using Limits = std::numeric_limits<float>;

/// What rank r holds at i: reproducible, of very different sizes, so that the order of a sum shows in its
/// bits.
template <class T>
T value_of(int rank, std::size_t i, int salt = 0) {
  const std::uint32_t mixed =
      (static_cast<std::uint32_t>(rank) * 7919u + static_cast<std::uint32_t>(i) * 104729u +
       static_cast<std::uint32_t>(salt) * 31u + 17u) *
      2654435761u;
  const int small = static_cast<int>(mixed >> 12) % 1000 - 500;
  if constexpr (std::is_integral_v<T>)
    return static_cast<T>(small);
  else
    return std::ldexp(static_cast<T>(small) / T{3}, static_cast<int>(mixed % 41) - 20);
}

template <class T>
std::vector<T> values_of(int rank, std::size_t count, int salt = 0) {
  std::vector<T> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = value_of<T>(rank, i, salt);
  return values;
}

template <class T>
T reduced(int size, std::size_t i, Reduction reduction, int salt = 0) {
  T result = value_of<T>(0, i, salt);
  for (int r = 1; r < size; ++r) {
    const T next = value_of<T>(r, i, salt);
    if (reduction == Reduction::sum) result += next;
    if (reduction == Reduction::max) result = std::max(result, next);
    if (reduction == Reduction::min) result = std::min(result, next);
  }
  return result;
}

/// Piece p has 3 * (p % 3) + shift elements: uneven, and for shift 0 some are empty.
std::vector<std::int64_t> uneven_offsets(int size, int shift) {
  std::vector<std::int64_t> offsets{0};
  for (int p = 0; p < size; ++p) offsets.push_back(offsets.back() + 3 * (p % 3) + shift);
  return offsets;
}

template <class T>
void check_all_reduce_of(const Communicator& world) {
  for (const std::size_t count : {0u, 1u, 2u, 5u, 17u, 1000u, 20011u, 200003u}) {
    for (const Reduction reduction : {Reduction::sum, Reduction::max, Reduction::min}) {
      std::vector<T> data = values_of<T>(world.rank(), count);
      world.all_reduce(std::span(data), reduction);
      for (std::size_t i = 0; i < count; ++i)
        expect(data[i] == reduced<T>(world.size(), i, reduction), "element {} of {}: {} instead of {}", i,
               count, data[i], reduced<T>(world.size(), i, reduction));
    }
  }
}

template <class T>
void check_reduce_scatter_of(const Communicator& world, int shift, bool in_place) {
  const std::vector<std::int64_t> offsets = uneven_offsets(world.size(), shift);
  std::vector<T> send = values_of<T>(world.rank(), static_cast<std::size_t>(offsets.back()));
  const auto begin = static_cast<std::size_t>(offsets[world.rank()]);
  const std::size_t count = static_cast<std::size_t>(offsets[world.rank() + 1]) - begin;
  std::vector<T> apart(count);
  const std::span<T> receive = in_place ? std::span(send).subspan(begin, count) : std::span(apart);
  world.reduce_scatter(std::span<const T>(send), offsets, receive);
  for (std::size_t i = 0; i < count; ++i)
    expect(receive[i] == reduced<T>(world.size(), begin + i, Reduction::sum), "element {}: {}", i,
           receive[i]);
}

}  // namespace

void check_all_reduce(const Communicator& world) {
  check_all_reduce_of<float>(world);
  check_all_reduce_of<double>(world);
  check_all_reduce_of<std::int32_t>(world);
  std::int32_t large = std::numeric_limits<std::int32_t>::max();
  world.all_reduce(std::span(&large, 1));
  const auto wrapped = static_cast<std::int32_t>(0x7fffffffu * static_cast<std::uint32_t>(world.size()));
  expect(large == wrapped, "{} instead of {}", large, wrapped);
}

void check_fixed_order(const Communicator& world) {
  for (int repetition = 0; repetition < 20; ++repetition) {
    // Ranks come at different times, another one last each time.
    if (repetition % world.size() == world.rank()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::vector<float> data = values_of<float>(world.rank(), 257);
    world.all_reduce(std::span(data));
    for (std::size_t i = 0; i < data.size(); ++i) {
      const float wanted = reduced<float>(world.size(), i, Reduction::sum);
      expect(std::memcmp(&data[i], &wanted, sizeof wanted) == 0, "repetition {}, element {}", repetition, i);
    }
  }
}

void check_not_a_number(const Communicator& world) {
  for (int odd = 0; odd < world.size(); ++odd) {
    std::array<float, 3> data{1, world.rank() == odd ? Limits::quiet_NaN() : 1,
                              world.rank() == odd ? Limits::infinity() : 1};
    world.all_reduce(std::span<float>(data), Reduction::max);
    expect(data[0] == 1 && std::isnan(data[1]) && std::isinf(data[2]), "max of rank {}'s NaN: {}", odd,
           data[1]);
    data = {1, world.rank() == odd ? Limits::quiet_NaN() : 1, 1};
    world.all_reduce(std::span<float>(data), Reduction::min);
    expect(std::isnan(data[1]), "min of rank {}'s NaN: {}", odd, data[1]);
  }
}

void check_reduce_scatter(const Communicator& world) {
  for (const int shift : {0, 1, 500}) {
    for (const bool in_place : {false, true}) {
      check_reduce_scatter_of<float>(world, shift, in_place);
      check_reduce_scatter_of<double>(world, shift, in_place);
      check_reduce_scatter_of<std::int32_t>(world, shift, in_place);
    }
  }
}

void check_all_gather(const Communicator& world) {
  for (const int shift : {0, 1, 3000}) {
    const std::vector<std::int64_t> offsets = uneven_offsets(world.size(), shift);
    const auto own = static_cast<std::size_t>(offsets[world.rank() + 1] - offsets[world.rank()]);
    const std::vector<double> send = values_of<double>(world.rank(), own);
    std::vector<double> receive(static_cast<std::size_t>(offsets.back()), -1);
    world.all_gather(std::span<const double>(send), offsets, std::span(receive));
    for (int p = 0; p < world.size(); ++p)
      for (std::int64_t i = offsets[p]; i < offsets[p + 1]; ++i)
        expect(receive[i] == value_of<double>(p, static_cast<std::size_t>(i - offsets[p])),
               "piece {}, element {}", p, i - offsets[p]);
  }
}

void check_broadcast(const Communicator& world) {
  for (int root = 0; root < world.size(); ++root) {
    for (const std::size_t count : {0u, 1u, 100'000u}) {
      std::vector<float> data = values_of<float>(world.rank(), count, root);
      world.broadcast(std::span(data), root);
      expect(data == values_of<float>(root, count, root), "{} elements from {}", count, root);
    }
  }
}

void check_many_in_flight(const Communicator& world) {
  constexpr int kNum = 40;
  std::vector<std::vector<float>> sums;
  std::vector<Pending> pending;
  for (int k = 0; k < kNum; ++k) {
    sums.push_back(values_of<float>(world.rank(), static_cast<std::size_t>(k * 37), k));
    pending.push_back(world.start_all_reduce(std::span(sums.back())));
    if (k % 7 == 0) pending.push_back(world.start_barrier());
  }
  // Some ranks finish them in the order of their start, some from the other end.
  for (std::size_t i = 0; i < pending.size(); ++i)
    pending[world.rank() % 2 == 0 ? i : pending.size() - 1 - i].wait();
  for (int k = 0; k < kNum; ++k)
    for (std::size_t i = 0; i < sums[k].size(); ++i)
      expect(sums[k][i] == reduced<float>(world.size(), i, Reduction::sum, k), "sum {}, element {}", k, i);
}

void check_poll(const Communicator& world) {
  std::vector<float> data = values_of<float>(world.rank(), 5000);
  Pending sum = world.start_all_reduce(std::span(data));
  std::thread([&] { world.poll(); }).join();  // of no effect, and harmless
  while (!sum.test()) {
    world.poll();
    std::this_thread::yield();
  }
  expect(sum.finished() && sum.test(), "a finished collective stays finished");
  sum.wait();
  world.poll();
  for (std::size_t i = 0; i < data.size(); ++i)
    expect(data[i] == reduced<float>(world.size(), i, Reduction::sum), "element {}", i);
}

std::span<const CommunicatorCase> communicator_cases() {
  static constexpr CommunicatorCase kCases[] = {
      {"all-reduce: sum, max and min of f32, f64 and i32, any length", check_all_reduce},
      {"sums have the bits of rank order, whoever comes last", check_fixed_order},
      {"NaN of any rank survives max and min", check_not_a_number},
      {"reduce-scatter: uneven and empty pieces, in place too", check_reduce_scatter},
      {"all-gather: uneven and empty pieces", check_all_gather},
      {"broadcast from every rank", check_broadcast},
      {"many in flight, waited for in different orders", check_many_in_flight},
      {"poll and test finish a collective without wait", check_poll},
      {"split: colors, keys, groups of groups", check_split},
      {"a rank that waits in one group serves the others", check_groups_serve_each_other},
      {"mesh: expert innermost, sizes that do not divide are refused", check_mesh},
      {"routed rows arrive in slabs with counts, and return", check_row_exchange},
      {"routed rows: none at all, one rank without, all to one", check_row_extremes},
      {"of too many routed rows those that fit go, the flag is set and zeros come back", check_row_overflow},
      {"texts of all ranks: empty, binary, long", check_gather_text},
      {"an error of any rank is the same error on every rank", check_throw_together},
      {"ranks wait for slow work of one of them, and throw its error", check_work_together},
  };
  return kCases;
}

}  // namespace farskip::test
