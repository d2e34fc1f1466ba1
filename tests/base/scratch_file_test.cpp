// SPDX-License-Identifier: Apache-2.0
#include "base/scratch_file.h"

#include <vector>

#include "base/folder.h"
#include "farskip/base/error.h"
#include "support/catch.h"
#include "support/support.h"

namespace farskip {
namespace {

TEST_CASE("a scratch file gives back what was written, and its folder shows nothing of it") {
  const test::TemporaryFolder folder;
  ScratchFile file(folder.path());
  std::vector<std::byte> bytes(100'003);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 7 % 251);
  for (std::size_t at = 0, part = 1; at < bytes.size(); at += part, part = part * 3 % 4099 + 1)
    file.append(std::span(bytes).subspan(at, std::min(part, bytes.size() - at)));
  REQUIRE(file.size() == bytes.size());
  CHECK(list_entries(folder.path()).empty());
  std::vector<std::byte> read(5'000);
  for (const std::size_t from : {std::size_t{0}, std::size_t{41'999}, bytes.size() - read.size()}) {
    file.read_at(from, read);
    CHECK(std::equal(read.begin(), read.end(), bytes.begin() + static_cast<std::ptrdiff_t>(from)));
  }
  CHECK_THROWS_WITH(file.read_at(bytes.size() - 10, read), ContainsSubstring("it ends there"));
  CHECK_THROWS_AS(ScratchFile(folder / "none"), IoError);
  CHECK_THROWS_WITH(ScratchFile(folder / "none"), ContainsSubstring("none: cannot create a file"));
}

TEST_CASE("the nearest folder is the path itself, or the first above it that is there") {
  const test::TemporaryFolder folder;
  fs::create_directory(folder / "there");
  CHECK(nearest_folder(folder / "there") == folder / "there");
  CHECK(nearest_folder(folder / "there" / "a" / "b") == folder / "there");
  CHECK(nearest_folder("/none/of/these") == "/");
}

}  // namespace
}  // namespace farskip
