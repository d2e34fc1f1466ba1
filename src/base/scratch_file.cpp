// SPDX-License-Identifier: Apache-2.0
#include "base/scratch_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/stop_signals.h"
#include "farskip/base/error.h"

namespace farskip {
namespace {

constexpr std::size_t kMostAtOnce = std::size_t{64} << 20;  // so that a request to stop is seen soon

}  // namespace

fs::path nearest_folder(fs::path path) {
  std::error_code ignored;
  path = fs::absolute(path, ignored);
  while (path.has_parent_path() && path != path.parent_path() && !fs::exists(path, ignored))
    path = path.parent_path();
  return path;
}

ScratchFile::ScratchFile(const fs::path& folder) : folder_(folder) {
  std::string name = (folder / ".farskip-XXXXXX").string();  // for a moment: not all file systems do without
  descriptor_ = ::mkostemp(name.data(), O_CLOEXEC);
  if (descriptor_ < 0)
    throw IoError(fmt::format("{}: cannot create a file: {}", folder.string(), std::strerror(errno)));
  ::unlink(name.c_str());
}

ScratchFile::~ScratchFile() {
  ::close(descriptor_);
}

void ScratchFile::append(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    leave_if_asked();
    const ssize_t n =
        ::pwrite(descriptor_, bytes.data(), std::min(bytes.size(), kMostAtOnce), static_cast<off_t>(size_));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      throw IoError(
          fmt::format("{}: scratch file: write failed after {} bytes: {}; free some room on this disk",
                      folder_.string(), size_, std::strerror(errno)));
    bytes = bytes.subspan(static_cast<std::size_t>(n));
    size_ += static_cast<std::uint64_t>(n);
  }
}

void ScratchFile::read_at(std::uint64_t offset, std::span<std::byte> buffer) const {
  while (!buffer.empty()) {
    leave_if_asked();
    const ssize_t n =
        ::pread(descriptor_, buffer.data(), std::min(buffer.size(), kMostAtOnce), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      throw IoError(fmt::format("{}: scratch file: read failed at byte {}: {}", folder_.string(), offset,
                                n == 0 ? "it ends there" : std::strerror(errno)));
    buffer = buffer.subspan(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
}

}  // namespace farskip
