#include "farskip/base/environment.h"

#include <stdlib.h>
#include <unistd.h>

#include <utility>
#include <vector>

#include "support/catch.h"

namespace farskip {
namespace {

const std::vector<const char*> launcher_variables{"OMPI_COMM_WORLD_RANK",
                                                  "OMPI_COMM_WORLD_SIZE",
                                                  "OMPI_COMM_WORLD_LOCAL_SIZE",
                                                  "PMI_RANK",
                                                  "PMI_SIZE",
                                                  "MPI_LOCALNRANKS",
                                                  "PMIX_RANK",
                                                  "SLURM_STEP_NUM_TASKS",
                                                  "SLURM_STEP_TASKS_PER_NODE"};

std::optional<LauncherPlace> place_under(const std::vector<std::pair<const char*, const char*>>& variables) {
  for (const char* const name : launcher_variables) ::unsetenv(name);
  for (const auto& [name, value] : variables) ::setenv(name, value, 1);
  const auto place = launcher_place();
  for (const char* const name : launcher_variables) ::unsetenv(name);
  return place;
}

void check_place(const std::optional<LauncherPlace>& place, int rank, int size, int local_size) {
  REQUIRE(place);
  CHECK(place->rank == rank);
  CHECK(place->size == size);
  CHECK(place->local_size == local_size);
}

TEST_CASE("each launcher's environment gives rank, size and local size") {
  check_place(place_under({{"OMPI_COMM_WORLD_RANK", "3"},
                           {"OMPI_COMM_WORLD_SIZE", "8"},
                           {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                           {"PMIX_RANK", "1"}}),
              3, 8, 4);
  check_place(place_under({{"PMI_RANK", "0"}, {"PMI_SIZE", "2"}, {"MPI_LOCALNRANKS", "2"}}), 0, 2, 2);
  check_place(
      place_under(
          {{"PMIX_RANK", "5"}, {"SLURM_STEP_NUM_TASKS", "6"}, {"SLURM_STEP_TASKS_PER_NODE", "2(x3)"}}),
      5, 6, 2);
}

TEST_CASE("what a launcher does not say is not invented") {
  CHECK_FALSE(place_under({}));
  CHECK_FALSE(place_under({{"SLURM_STEP_NUM_TASKS", "6"}}));  // a batch script
  CHECK_FALSE(place_under({{"PMI_RANK", "-1"}}));
  CHECK_FALSE(place_under({{"PMI_RANK", "first"}}));
  check_place(place_under({{"PMIX_RANK", "0"}}), 0, 0, 1);
  check_place(place_under({{"PMIX_RANK", "2"}}), 2, 3, 1);  // at least
  check_place(place_under({{"PMI_RANK", "1"}, {"PMI_SIZE", "99999999999"}, {"MPI_LOCALNRANKS", "0"}}), 1, 2,
              1);
}

TEST_CASE("cores are told of a living process only") {
  CHECK(usable_cores(0) >= 1);
  CHECK(usable_cores(::getpid()) == usable_cores(0));
  CHECK(usable_cores(1 << 30) == 0);
}

}  // namespace
}  // namespace farskip
