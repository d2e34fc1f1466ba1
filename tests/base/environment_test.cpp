// SPDX-License-Identifier: Apache-2.0
#include "base/environment.h"

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
                                                  "SLURM_PROCID",
                                                  "SLURM_NTASKS",
                                                  "RANK",
                                                  "WORLD_SIZE",
                                                  "MV2_COMM_WORLD_RANK",
                                                  "MV2_COMM_WORLD_SIZE",
                                                  "SLURM_STEP_TASKS_PER_NODE"};

using Variables = std::vector<std::pair<const char*, const char*>>;

/// What `ask` answers where the environment has these variables and no other of a launcher.
template <class Answer>
Answer ask_under(const Variables& variables, Answer (*ask)()) {
  for (const char* const name : launcher_variables) ::unsetenv(name);
  for (const auto& [name, value] : variables) ::setenv(name, value, 1);
  Answer answer = ask();
  for (const char* const name : launcher_variables) ::unsetenv(name);
  return answer;
}

std::optional<LauncherPlace> place_under(const Variables& variables) {
  return ask_under(variables, launcher_place);
}
std::optional<ForeignLauncher> foreign_under(const Variables& variables) {
  return ask_under(variables, foreign_launcher);
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

TEST_CASE("a launcher that MPI does not know of is told from one that it knows, and from a batch script") {
  const auto srun =
      foreign_under({{"SLURM_PROCID", "2"}, {"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_NTASKS", "4"}});
  REQUIRE(srun);
  CHECK(srun->name == "srun");
  CHECK((srun->rank == 2 && srun->size == 4));
  CHECK_THAT(srun->instead, ContainsSubstring("srun --mpi="));
  CHECK(foreign_under({{"RANK", "0"}, {"WORLD_SIZE", "2"}})->name == "torchrun");
  CHECK(foreign_under({{"MV2_COMM_WORLD_RANK", "0"}, {"MV2_COMM_WORLD_SIZE", "2"}})->size == 2);
  // One task; a batch script with several, in which no step has begun; mpirun in such a script.
  CHECK_FALSE(foreign_under({}));
  CHECK_FALSE(foreign_under({{"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}, {"SLURM_NTASKS", "8"}}));
  CHECK_FALSE(foreign_under({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}}));
  CHECK_FALSE(foreign_under({{"SLURM_STEP_NUM_TASKS", "8"}}));
  CHECK_FALSE(foreign_under({{"RANK", "0"}, {"WORLD_SIZE", "1"}}));
  CHECK_FALSE(foreign_under({{"RANK", "0"}}));
  for (const char* mpi : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"})
    CHECK_FALSE(foreign_under({{"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "8"}, {mpi, "0"}}));
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
