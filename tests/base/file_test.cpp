// What files are called until they are whole, who may read them, and what a dead process leaves.
#include "farskip/base/file.h"

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <set>

#include "farskip/base/error.h"
#include "support/catch.h"
#include "support/support.h"

namespace farskip {
namespace {

using test::TemporaryFolder;

/// The number of a process that has ended.
pid_t dead_process() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ::waitpid(child, nullptr, 0);
  return child;
}

bool any(std::string_view) {
  return true;
}

mode_t mode_of(const fs::path& path) {
  struct stat info {};
  REQUIRE(::stat(path.c_str(), &info) == 0);
  return info.st_mode & 0777;
}

TEST_CASE("what dead processes have left is removed, and nothing else") {
  const TemporaryFolder folder;
  const std::string dead = std::to_string(dead_process()), living = std::to_string(::getppid());
  for (const std::string& name :
       {"latest.tmp-" + dead, "a.tmp-b.tmp-" + dead, "latest.tmp-" + living, "x.tmp-" + dead + "x",
        std::string("x.tmp-"), std::string("x.tmp--5"), "tmp-" + dead, std::string("latest")})
    std::ofstream(folder / name) << "text";
  fs::create_directories(folder / ("step-5.tmp-" + dead + "-00ff") / "inside");
  fs::create_directories(folder / "target" / "inside");
  fs::create_directory_symlink(folder / "target", folder / ("link.tmp-" + dead));
  OutputFile open(folder / "open");
  for (const std::string& name : {"another.tmp-" + dead, "another.tmp-" + dead + "-1"})
    std::ofstream(folder / name) << "of another program";
  remove_stale_temporaries(folder.path(), [](std::string_view name) { return name != "another"; });
  std::set<std::string> left;
  for (const auto& entry : fs::directory_iterator(folder.path()))
    left.insert(entry.path().filename().string());
  CHECK(left == std::set<std::string>{"latest", "latest.tmp-" + living, "x.tmp-" + dead + "x", "x.tmp-",
                                      "x.tmp--5", "tmp-" + dead, "target", "link.tmp-" + dead,
                                      "another.tmp-" + dead, "another.tmp-" + dead + "-1",
                                      "open.tmp-" + std::to_string(::getpid())});
  CHECK(fs::exists(folder / "target" / "inside"));
  CHECK_NOTHROW(remove_stale_temporaries(folder / "none", any));
}

TEST_CASE("what another machine's process holds is not stale, though no process here has its number") {
  const TemporaryFolder folder;
  const pid_t dead = dead_process();
  const fs::path file = folder / fmt::format("latest.tmp-{}", dead),
                 inner = folder / fmt::format("key.tmp-{}", dead);
  {
    OutputFile output(folder / "latest");
    OutputFolder output_folder(folder / "key");
    fs::rename(temporary_name(folder / "latest"), file);  // as it would be called there
    fs::rename(output_folder.temporary(), inner);
    remove_stale_temporaries(folder.path(), any);
    CHECK(fs::exists(file));
    CHECK(fs::exists(inner));
  }
  remove_stale_temporaries(folder.path(), any);
  CHECK_FALSE(fs::exists(file));
  CHECK_FALSE(fs::exists(inner));
}

TEST_CASE("the user's mask decides who may read and write") {
  const mode_t before = ::umask(0);
  for (const mode_t mask : {0002, 0022, 0077}) {
    ::umask(mask);
    const TemporaryFolder folder;
    write_text_file(folder / "file", "text");
    OutputFolder(folder / "folder").commit();
    CHECK(mode_of(folder / "file") == (0666 & ~mask));
    CHECK(mode_of(folder / "folder") == (0777 & ~mask));
  }
  ::umask(before);
}

TEST_CASE("a folder is there whole or not at all, and one that is there stands") {
  const TemporaryFolder folder;
  {
    const OutputFolder given_up(folder / "key");
    write_text_file(given_up.temporary() / "a", "1");
  }
  CHECK(fs::is_empty(folder.path()));
  OutputFolder first(folder / "key");
  write_text_file(first.temporary() / "a", "1");
  CHECK(first.commit());
  {
    OutputFolder second(folder / "key");
    write_text_file(second.temporary() / "a", "2");
    CHECK_FALSE(second.commit());
  }
  CHECK(read_text_file(folder / "key" / "a") == "1");
  CHECK(std::distance(fs::directory_iterator(folder.path()), {}) == 1);
}

}  // namespace
}  // namespace farskip
