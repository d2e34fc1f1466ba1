// SPDX-License-Identifier: Apache-2.0
#pragma once
// What the fuzz targets share. Each of them reads hostile bytes; CONTRIBUTING.md says how they are run.

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "farskip/base/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size);

namespace farskip::fuzz {

inline std::string_view as_text(const std::uint8_t* bytes, std::size_t size) {
  return {reinterpret_cast<const char*>(bytes), size};
}

/// Hostile bytes are read, or refused as the user's mistake. Whatever else `read` throws ends the program.
template <class F>
void read_or_refuse(const F& read) {
  try {
    read();
  } catch (const UserError&) {
  }
}

/// Ends the program, as a finding.
inline void require(bool holds) {
  if (!holds) std::abort();
}

/// A folder of this process for readers that take files by name, removed at its end.
class Folder {
 public:
  Folder() : path_(std::filesystem::temp_directory_path() / ("farskip-fuzz-" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(path_);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }
  void write(const char* name, std::string_view bytes) const {
    std::ofstream(path_ / name, std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

 private:
  std::filesystem::path path_;
};

}  // namespace farskip::fuzz
