// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a process writes down to read it again, where memory may not hold it.

#include <cstddef>
#include <cstdint>
#include <span>

#include "farskip/base/file.h"

namespace farskip {

/// The folder that a path is in or would be made in: the first on the way to it that is there, or itself.
fs::path nearest_folder(fs::path path);

/// A file without a name, which goes with the process.
class ScratchFile {
 public:
  /// On the disk of `folder`. IoError where nothing can be written there.
  explicit ScratchFile(const fs::path& folder);
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;
  ~ScratchFile();

  std::uint64_t size() const { return size_; }
  /// Behind what is there. IoError, also where the disk is full.
  void append(std::span<const std::byte> bytes);
  /// Exactly so many bytes, which are there. IoError.
  void read_at(std::uint64_t offset, std::span<std::byte> buffer) const;

 private:
  fs::path folder_;  // for messages
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
};

}  // namespace farskip
