// SPDX-License-Identifier: Apache-2.0
#include <numeric>
#include <vector>

#include "farskip/comm/mesh.h"
#include "suite.h"

namespace farskip::test {
namespace {

/// Who is in a group, in its order, as ranks of the world.
std::vector<std::int32_t> members(const Communicator& group, int world_rank) {
  const auto size = static_cast<std::size_t>(group.size());
  std::vector<std::int64_t> offsets(size + 1);
  std::iota(offsets.begin(), offsets.end(), 0);
  const std::int32_t own = world_rank;
  std::vector<std::int32_t> all(size);
  group.all_gather(std::span(&own, 1), offsets, std::span(all));
  return all;
}

void expect_members(const Communicator& group, int world_rank, const std::vector<std::int32_t>& wanted) {
  expect(members(group, world_rank) == wanted, "{}: wrong members on rank {}", group.name(), world_rank);
  expect(wanted[group.rank()] == world_rank, "{}: wrong rank {}", group.name(), group.rank());
}

}  // namespace

void check_split(const Communicator& world) {
  const int rank = world.rank(), size = world.size();
  const Communicator reversed = world.split(0, -rank, "reversed");
  std::vector<std::int32_t> wanted;
  for (int r = size - 1; r >= 0; --r) wanted.push_back(r);
  expect_members(reversed, rank, wanted);

  const Communicator parity = world.split(rank % 2, 0, "parity");  // equal keys: by rank
  wanted.clear();
  for (int r = rank % 2; r < size; r += 2) wanted.push_back(r);
  expect_members(parity, rank, wanted);
  expect(parity.name().starts_with("parity"), "name {}", parity.name());

  const Communicator pair = parity.split(parity.rank() / 2, 0, "pair");  // a group of a group
  const std::int32_t first = rank % 2 + parity.rank() / 2 * 4;
  wanted = {first};
  if (first + 2 < size) wanted.push_back(first + 2);
  expect_members(pair, rank, wanted);

  const Communicator alone = world.split(rank, 0, "alone");
  expect_members(alone, rank, {rank});
}

void check_groups_serve_each_other(const Communicator& world) {
  const Communicator reversed = world.split(0, -world.rank(), "reversed");
  std::vector<float> a(1000, 1), b(1000, 2);
  for (int repetition = 0; repetition < 10; ++repetition) {
    // Even ranks finish the one first, odd ranks the other: each needs the other's second half.
    Pending first = world.start_all_reduce(std::span(a), Reduction::max);
    Pending second = reversed.start_all_reduce(std::span(b), Reduction::max);
    (world.rank() % 2 == 0 ? first : second).wait();
    (world.rank() % 2 == 0 ? second : first).wait();
  }
  expect(a == std::vector<float>(1000, 1) && b == std::vector<float>(1000, 2), "values");
}

void check_mesh(const Communicator& world) {
  const int rank = world.rank(), size = world.size();
  for (int expert = 1; expert <= size + 1; ++expert) {
    if (size % expert == 0) {
      const Mesh mesh(world, expert);
      std::vector<std::int32_t> row, column;
      for (int i = 0; i < expert; ++i) row.push_back(rank / expert * expert + i);
      for (int r = rank % expert; r < size; r += expert) column.push_back(r);
      expect_members(mesh.expert(), rank, row);
      expect_members(mesh.data(), rank, column);
      expect(mesh.world().size() == size, "world of the mesh");
      continue;
    }
    std::string message;
    try {
      const Mesh mesh(world, expert);
    } catch (const UsageError& error) {
      message = error.what();
    }
    const auto says = [&](const std::string& text) { return message.find(text) != std::string::npos; };
    expect(size == 1 ? says(fmt::format("mpirun -np {}", expert))
                     : says(fmt::format("is {}, which", expert)) && says(fmt::format("the {} ranks", size)),
           "expert {} of {} ranks: '{}'", expert, size, message);
  }
}

}  // namespace farskip::test
