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
                                                  "OMPI_COMM_WORLD_LOCAL_RANK",
                                                  "MPI_LOCALRANKID",
                                                  "SLURM_LOCALID",
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

TEST_CASE("each launcher's environment gives the rank on this machine") {
  for (const char* const name : {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"})
    CHECK(place_under({{"PMIX_RANK", "5"}, {name, "1"}})->local_rank == 1);
  CHECK(place_under({{"PMIX_RANK", "5"}})->local_rank == 0);
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

TEST_CASE("the cache folder is that of the environment where it is an absolute path") {
  const auto folder_under = [](const char* cache, const char* home) {
    ::setenv("XDG_CACHE_HOME", cache, 1);
    ::setenv("HOME", home, 1);
    return user_cache_folder();
  };
  const auto home = environment_variable("HOME"), cache = environment_variable("XDG_CACHE_HOME");
  CHECK(folder_under("/c", "/h") == "/c");
  CHECK(folder_under("", "/h") == "/h/.cache");
  CHECK(folder_under("relative", "/h") == "/h/.cache");
  CHECK(folder_under("", "").empty());
  ::unsetenv("XDG_CACHE_HOME");
  ::unsetenv("HOME");
  CHECK(user_cache_folder().empty());
  if (home) ::setenv("HOME", home->c_str(), 1);
  if (cache) ::setenv("XDG_CACHE_HOME", cache->c_str(), 1);
}

}  // namespace
}  // namespace farskip
