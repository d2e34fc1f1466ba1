// SPDX-License-Identifier: Apache-2.0
// The suite between processes: mpirun -np N test_comm_mpi
// With --fail-rank R, rank R fails while the others wait for it: the job must end. With --drop, every rank
// starts a collective and never waits for it.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../suite.h"
#include "comm/mpi.h"

namespace farskip::test {
namespace {

void run_suite(const Communicator& world) {
  for (const CommunicatorCase& each : communicator_cases()) {
    try {
      each.run(world);
    } catch (const std::exception& error) {
      throw std::runtime_error(fmt::format("{}: {}", each.name, error.what()));
    }
    world.barrier();
    if (world.rank() == 0) std::printf("ok: %s\n", each.name);
  }
}

void run_fault(const Communicator& world, const std::vector<std::string>& arguments) {
  if (arguments[0] == "--fail-rank" && std::stoi(arguments.at(1)) == world.rank())
    throw DataError("fails as it was told to");
  if (arguments[0] == "--drop") {
    std::vector<float> data(1'000'000);
    const Pending dropped = world.start_all_reduce(std::span(data));
  }
  if (arguments[0] == "--mismatch") {
    std::vector<float> data(world.rank() == 0 ? 80'000 : 40'000);
    world.all_reduce(std::span(data));
  }
  world.barrier();
}

void run(const std::vector<std::string>& arguments) {
  const MpiSession session;
  const Communicator world = session.world();
  try {
    arguments.empty() ? run_suite(world) : run_fault(world, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "rank %d of %d: %s\n", world.rank(), world.size(), error.what());
    throw;  // through the session, which ends the job
  }
}

}  // namespace
}  // namespace farskip::test

int main(int argc, char** argv) {
  try {
    farskip::test::run(std::vector<std::string>(argv + 1, argv + argc));
    return EXIT_SUCCESS;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());  // the session did not begin
    return EXIT_FAILURE;
  }
}
