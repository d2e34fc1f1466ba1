// SPDX-License-Identifier: Apache-2.0
#include "tensor/hash.h"

#include <xxhash.h>

#include <algorithm>
#include <new>
#include <vector>

#include "farskip/base/error.h"

namespace farskip {

struct Hasher::State {
  State() : handle(XXH3_createState()) {
    if (handle == nullptr) throw std::bad_alloc();
    XXH3_128bits_reset(handle);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() { XXH3_freeState(handle); }
  XXH3_state_t* handle;
};

Hasher::Hasher() : state_(std::make_unique<State>()) {}
Hasher::Hasher(Hasher&&) noexcept = default;
Hasher& Hasher::operator=(Hasher&&) noexcept = default;
Hasher::~Hasher() = default;

void Hasher::update(std::span<const std::byte> bytes) {
  if (!bytes.empty()) XXH3_128bits_update(state_->handle, bytes.data(), bytes.size());
}

void Hasher::update(std::string_view text) {
  update(std::as_bytes(std::span(text.data(), text.size())));
}

std::string Hasher::hex() const {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_->handle));
  return fmt::format("{:02x}", fmt::join(canonical.digest, canonical.digest + sizeof(canonical.digest), ""));
}

std::string hash_text(std::string_view text) {
  return hash_bytes(std::as_bytes(std::span(text.data(), text.size())));
}

std::string hash_bytes(std::span<const std::byte> bytes) {
  Hasher hasher;
  hasher.update(bytes);
  return hasher.hex();
}

std::string hash_file(const InputFile& file) {
  constexpr std::uint64_t kPiece = std::uint64_t{1} << 20;
  std::vector<std::byte> buffer(std::min(file.size(), kPiece));
  Hasher hasher;
  for (std::uint64_t offset = 0; offset < file.size(); offset += buffer.size()) {
    const std::span piece(buffer.data(), std::min<std::uint64_t>(buffer.size(), file.size() - offset));
    file.read_at(offset, piece);
    hasher.update(piece);
  }
  return hasher.hex();
}

std::string hash_file(const fs::path& path) {
  return hash_file(InputFile(path));
}

std::string fingerprint_file(const InputFile& file) {
  constexpr std::uint64_t num_pieces = 1024, piece_bytes = std::uint64_t{64} << 10;
  if (file.size() <= num_pieces * piece_bytes) return hash_file(file);
  Hasher hasher;
  hasher.update(fmt::format("{} ", file.size()));
  std::vector<std::byte> piece(piece_bytes);
  const std::uint64_t last = file.size() - piece_bytes;
  for (std::uint64_t i = 0; i < num_pieces; ++i) {
    file.read_at(last / (num_pieces - 1) * i + last % (num_pieces - 1) * i / (num_pieces - 1), piece);
    hasher.update(piece);
  }
  return hasher.hex();
}

}  // namespace farskip
