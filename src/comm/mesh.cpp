// SPDX-License-Identifier: Apache-2.0
#include "farskip/comm/mesh.h"

#include <utility>

namespace farskip {
namespace {

void check_divides(const char* key, int size, int world_size) {
  if (size >= 1 && world_size % size == 0) return;
  if (world_size == 1)
    throw UsageError(fmt::format(
        "{} is {}, and this is one rank; start the program with mpirun -np {} (or a multiple), or "
        "set {} to 1",
        key, size, size, key));
  std::string allowed;
  for (int d = 1; d <= world_size; ++d)
    if (world_size % d == 0) allowed += fmt::format("{}{}", allowed.empty() ? "" : ", ", d);
  throw UsageError(
      fmt::format("{} is {}, which does not divide the {} ranks of the world; with {} ranks it may be {}",
                  key, size, world_size, world_size, allowed));
}

Mesh::Groups split_world(const Communicator& world, int expert, int tensor) {
  check_mesh_sizes(world.size(), expert, tensor);
  const auto inner = [&](int size, const char* name) {
    return world.split(world.rank() / size, world.rank(), name);
  };
  const Communicator experts = inner(expert, "expert");
  const Communicator data = world.split(world.rank() % std::max(expert, tensor), world.rank(), "data");
  if (tensor == 1) return {world, experts, data, make_self_communicator(), world};
  return {world, experts, data, tensor == expert ? experts : inner(tensor, "tensor"), data};
}

}  // namespace

void check_mesh_sizes(int world_size, int expert_size, int tensor_size) {
  check_divides("parallel.expert", expert_size, world_size);
  check_divides("parallel.tensor", tensor_size, world_size);
  if (tensor_size == 1 || expert_size == 1 || expert_size == tensor_size) return;
  throw UsageError(fmt::format(
      "parallel.expert is {} and parallel.tensor {}: the ranks that share matrices share whole experts "
      "(parallel.expert: {}) or cut every expert (parallel.expert: 1)",
      expert_size, tensor_size, tensor_size));
}

Mesh::Mesh(const Communicator& world, int expert_size, int tensor_size)
    : Mesh(split_world(world, expert_size, tensor_size)) {}

Mesh::Mesh(Groups groups) : groups_(std::move(groups)) {
  const MeshPosition p = position();
  for (const MeshAxis axis : mesh_axes)
    FARSKIP_CHECK(group(axis).size() == p.size(axis) && group(axis).rank() == p.rank(axis),
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
