// SPDX-License-Identifier: Apache-2.0
// Files of a folder that someone else made.

#include "base/folder.h"

#include <sys/stat.h>
#include <unistd.h>

#include "farskip/base/error.h"
#include "support/catch.h"
#include "support/support.h"

namespace farskip {
namespace {

using test::TemporaryFolder;

TEST_CASE("of a folder regular files alone are read, and no link is followed") {
  const TemporaryFolder folder, outside;
  write_text_file(folder / "own", "own");
  write_text_file(outside / "secret", "secret");
  fs::create_symlink(outside / "secret", folder / "link");
  fs::create_symlink(folder / "own", folder / "link-inside");
  fs::create_symlink(outside / "gone", folder / "link-to-nothing");
  fs::create_symlink("/dev/zero", folder / "link-to-device");
  fs::create_directory(folder / "folder");
  REQUIRE(::mkfifo((folder / "fifo").c_str(), 0600) == 0);
  CHECK(read_inside(folder.path(), "own", 3) == "own");
  CHECK_THROWS_AS(read_inside(folder.path(), "own", 2), DataError);
  for (const char* name : {"link", "link-inside", "link-to-nothing", "link-to-device"}) {
    CAPTURE(name);
    CHECK(has_entry(folder.path(), name));
    CHECK_THROWS_WITH(read_inside(folder.path(), name, 100),
                      ContainsSubstring(name) && ContainsSubstring("is a symbolic link"));
    CHECK_THROWS_AS(read_if_inside(folder.path(), name, 100), IoError);
  }
  for (const char* name : {"folder", "fifo"}) {
    CAPTURE(name);
    CHECK_THROWS_WITH(read_if_inside(folder.path(), name, 100), ContainsSubstring("not a regular file"));
  }
  for (const char* name : {"../secret", "folder/x", "..", ""})
    CHECK_THROWS_WITH(read_inside(folder.path(), name, 100), ContainsSubstring("not allowed as a file name"));
  CHECK_FALSE(has_entry(folder.path(), "none"));
  CHECK_FALSE(read_if_inside(folder.path(), "none", 100).has_value());
  CHECK_THROWS_AS(read_inside(folder.path(), "none", 100), MissingInputError);
}

TEST_CASE("the folder itself may be named through a link") {
  const TemporaryFolder folder, elsewhere;
  write_text_file(folder / "own", "own");
  fs::create_directory_symlink(folder.path(), elsewhere / "link");
  CHECK(read_inside(elsewhere / "link", "own", 10) == "own");
  CHECK(list_entries(elsewhere / "link") == std::vector<std::string>{"own"});
}

TEST_CASE("a file that is read is not overwritten, under whatever name") {
  const TemporaryFolder folder;
  const fs::path input = folder / "input";
  write_text_file(input, "input");
  write_text_file(folder / "other", "other");
  fs::create_symlink(input, folder / "link");
  REQUIRE(::link(input.c_str(), (folder / "hard").c_str()) == 0);
  const fs::path detour = folder.path() / "." / "input";
  for (const fs::path& out : {input, folder / "link", folder / "hard", detour}) {
    CAPTURE(out);
    CHECK_THROWS_WITH(refuse_overwriting("--out", out, input),
                      ContainsSubstring("--out " + out.string()) && ContainsSubstring("would overwrite"));
    CHECK_THROWS_AS(refuse_overwriting("--out", out, folder.path()), UsageError);
  }
  for (const fs::path& out : {folder / "other", folder / "new"}) refuse_overwriting("--out", out, input);
  refuse_overwriting("--out", folder / "new", folder.path());
  refuse_overwriting("--out", input, folder / "absent");
}

}  // namespace
}  // namespace farskip
