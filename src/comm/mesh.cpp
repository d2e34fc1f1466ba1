// SPDX-License-Identifier: Apache-2.0
#include "farskip/comm/mesh.h"

#include <utility>

namespace farskip {
namespace {

int check_divides(int expert_size, int world_size) {
  if (expert_size < 1 || world_size % expert_size != 0) {
    std::string allowed;
    for (int d = 1; d <= world_size; ++d)
      if (world_size % d == 0) allowed += fmt::format("{}{}", allowed.empty() ? "" : ", ", d);
    if (world_size == 1)
      throw UsageError(
          fmt::format("parallel.expert is {}, and this is one rank; start the program with mpirun -np {} (or "
                      "a multiple), "
                      "or set parallel.expert to 1",
                      expert_size, expert_size));
    throw UsageError(fmt::format(
        "parallel.expert is {}, which does not divide the {} ranks of the world; with {} ranks it may "
        "be {}",
        expert_size, world_size, world_size, allowed));
  }
  return expert_size;
}

}  // namespace

Mesh::Mesh(const Communicator& world, int expert_size)
    : world_(world),
      expert_(world.split(world.rank() / check_divides(expert_size, world.size()), world.rank(), "expert")),
      data_(world.split(world.rank() % expert_size, world.rank(), "data")) {}

Mesh::Mesh(Communicator world, Communicator expert, Communicator data)
    : world_(std::move(world)), expert_(std::move(expert)), data_(std::move(data)) {
  const MeshPosition p = position();
  for (const MeshAxis axis : {MeshAxis::expert, MeshAxis::data})
    FARSKIP_CHECK(world_.size() == expert_.size() * data_.size() && group(axis).size() == p.size(axis) &&
                      group(axis).rank() == p.rank(axis),
                  "{} is rank {} of {}, not {} of {}", group(axis).name(), group(axis).rank(),
                  group(axis).size(), p.rank(axis), p.size(axis));
}

void Mesh::forget_device_addresses() const {
  for (const auto& group : device_groups_)
    if (group) group->forget_addresses();
}

std::uint64_t Mesh::device_generation() const {
  std::uint64_t sum = 0;
  for (const auto& group : device_groups_) sum += group ? group->generation() : 0;
  return sum;
}

}  // namespace farskip
