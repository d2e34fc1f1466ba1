// SPDX-License-Identifier: Apache-2.0
#pragma once
// XXH3-128: finds accidental damage (a flipped bit, a truncated or swapped file). Not a defence against
// an author who means harm and can rewrite the hash as well.

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "farskip/base/file.h"

namespace farskip {

/// Streaming XXH3-128. The pieces in which the bytes arrive do not matter.
class Hasher {
 public:
  Hasher();
  Hasher(Hasher&&) noexcept;
  Hasher& operator=(Hasher&&) noexcept;
  ~Hasher();

  void update(std::span<const std::byte> bytes);
  void update(std::string_view text);
  /// 32 lower-case hex digits, big-endian, as `xxhsum -H2` prints them. May be followed by more updates.
  std::string hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string hash_text(std::string_view text);
std::string hash_bytes(std::span<const std::byte> bytes);
/// Hash of a whole file; errors as InputFile's.
std::string hash_file(const InputFile& file);
std::string hash_file(const fs::path& path);
/// Hash of a file's size and of 64 MiB of its bytes: the whole file if it is no larger, else 1,024 pieces of
/// 64 KiB, spread evenly. Tells two files apart at the same cost for any size; it does not find damage.
std::string fingerprint_file(const InputFile& file);

}  // namespace farskip
