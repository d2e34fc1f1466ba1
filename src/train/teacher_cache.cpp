#include "farskip/train/teacher_cache.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "farskip/base/error.h"
#include "farskip/tensor/hash.h"
#include "farskip/train/checkpoint_files.h"

namespace farskip {
namespace {

constexpr float kSteps = 2048.0F;  // levels a nat
constexpr std::size_t kHashBytes = 32;
constexpr std::string_view kPrefix = "records-", kIdentity = "teacher.txt";

template <class T>
std::span<const std::byte> as_bytes(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

std::string hash_record(const std::string& key, const TeacherRecord& r) {
  Hasher hasher;
  hasher.update(key);
  hasher.update(as_bytes(r.indices));
  hasher.update(as_bytes(r.levels));
  hasher.update(as_bytes(r.log_tail));
  hasher.update(as_bytes(r.target_log_prob));
  return hasher.hex();
}

}  // namespace

std::string TeacherCacheIdentity::text() const {
  return fmt::format(
      "format: 1\nteacher: {}\nvocab_size: {}\nsequence_length: {}\ntop_k: {}\ntemperature: {}\n", teacher,
      vocab_size, sequence_length, top_k, temperature);
}

std::vector<std::uint16_t> TeacherRecord::round(std::span<const float> log_probs) {
  std::vector<std::uint16_t> levels;
  for (const float x : log_probs)
    levels.push_back(static_cast<std::uint16_t>(std::clamp(std::round(-x * kSteps), 0.0F, 65535.0F)));
  return levels;
}

void TeacherRecord::distributions(std::span<float> log_probs, std::span<float> tail) const {
  const std::size_t top_k = levels.size() / log_tail.size();
  for (std::size_t t = 0; t < log_tail.size(); ++t) {
    double sum = std::exp(static_cast<double>(log_tail[t]));
    for (std::size_t k = t * top_k; k < (t + 1) * top_k; ++k)
      sum += std::exp(-static_cast<double>(levels[k]) / static_cast<double>(kSteps));
    const double log_sum = std::log(sum);
    for (std::size_t k = t * top_k; k < (t + 1) * top_k; ++k)
      log_probs[k] =
          static_cast<float>(-static_cast<double>(levels[k]) / static_cast<double>(kSteps) - log_sum);
    tail[t] = static_cast<float>(static_cast<double>(log_tail[t]) - log_sum);
  }
}

TeacherCache::TeacherCache(fs::path folder, TeacherCacheIdentity identity, int rank)
    : folder_(std::move(folder)), identity_(std::move(identity)) {
  check_identity(rank);
  refresh();
  own_path_ = folder_ / fmt::format("{}{}-{}.bin", kPrefix, make_run_id(), rank);
  descriptor_ = ::open(own_path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_EXCL, 0666);
  if (descriptor_ < 0)
    throw IoError(fmt::format("{}: cannot create: {}", own_path_.string(), std::strerror(errno)));
}

TeacherCache::~TeacherCache() {
  if (descriptor_ < 0) return;
  const bool empty = ::lseek(descriptor_, 0, SEEK_END) == 0;
  ::close(descriptor_);
  std::error_code ignored;
  if (empty) fs::remove(own_path_, ignored);
}

void TeacherCache::check_identity(int rank) const {
  const fs::path path = folder_ / kIdentity;
  if (!fs::exists(path)) {
    if (rank != 0) throw IoError(fmt::format("{}: not visible from rank {}", path.string(), rank));
    std::error_code failure;
    fs::create_directories(folder_, failure);
    if (failure)
      throw IoError(fmt::format("{}: cannot create folder: {}", folder_.string(), failure.message()));
    write_text_file(path, identity_.text());
    return;
  }
  const std::string kept = read_text_file(path), wanted = identity_.text();
  if (kept != wanted)
    throw UsageError(fmt::format(
        "distill.cache.path {} holds what another teacher said, or in another form. It has\n{}this run "
        "needs\n{}use another folder, or the configuration that made it",
        folder_.string(), printable(kept, 1000), wanted));
}

std::size_t TeacherCache::record_bytes() const {
  const auto tokens = static_cast<std::size_t>(identity_.sequence_length);
  const auto kept = tokens * static_cast<std::size_t>(identity_.top_k);
  return 2 * kHashBytes + kept * (sizeof(std::int32_t) + sizeof(std::uint16_t)) + 2 * tokens * sizeof(float);
}

void TeacherCache::refresh() {
  const std::uint64_t size = record_bytes();
  for (const auto& entry : fs::directory_iterator(folder_)) {
    if (!entry.path().filename().string().starts_with(kPrefix) || entry.path() == own_path_) continue;
    auto& [path, known] = *known_bytes_.try_emplace(entry.path(), 0).first;
    std::error_code gone;  // another run removes its file if it stayed empty
    const std::uint64_t bytes = entry.file_size(gone);
    if (gone || known + size > bytes) continue;
    const InputFile file(path);
    for (; known + size <= bytes; known += size) {
      std::string key(kHashBytes, '\0');
      file.read_at(known, std::as_writable_bytes(std::span(key)));
      places_.emplace(std::move(key), Place{&path, known});
    }
  }
}

std::string TeacherCache::key_of(std::span<const std::int32_t> tokens, std::span<const std::int32_t> targets,
                                 std::span<const std::int32_t> document_start) {
  Hasher hasher;
  for (const auto part : {tokens, targets, document_start}) {
    hasher.update(fmt::format("{} ", part.size()));
    hasher.update(std::as_bytes(part));
  }
  return hasher.hex();
}

std::optional<TeacherRecord> TeacherCache::find(const std::string& key) const {
  const auto it = places_.find(key);
  if (it == places_.end()) return std::nullopt;
  const auto tokens = static_cast<std::size_t>(identity_.sequence_length);
  const std::size_t kept = tokens * static_cast<std::size_t>(identity_.top_k);
  TeacherRecord r{std::vector<std::int32_t>(kept), std::vector<std::uint16_t>(kept),
                  std::vector<float>(tokens), std::vector<float>(tokens)};
  std::string hash(kHashBytes, '\0');
  const InputFile file(*it->second.file);
  std::uint64_t offset = it->second.offset + kHashBytes;
  const auto read = [&](std::span<std::byte> into) {
    file.read_at(offset, into);
    offset += into.size();
  };
  read(std::as_writable_bytes(std::span(r.indices)));
  read(std::as_writable_bytes(std::span(r.levels)));
  read(std::as_writable_bytes(std::span(r.log_tail)));
  read(std::as_writable_bytes(std::span(r.target_log_prob)));
  read(std::as_writable_bytes(std::span(hash)));
  if (hash != hash_record(key, r))
    throw DataError(
        fmt::format("{}: the record at byte {} is damaged; remove this file (the teacher is asked "
                    "again for what it held)",
                    file.path().string(), it->second.offset));
  return r;
}

void TeacherCache::add(const std::string& key, const TeacherRecord& r) {
  if (places_.contains(key)) return;
  std::string bytes = key;
  const auto append = [&](std::span<const std::byte> part) {
    bytes.append(reinterpret_cast<const char*>(part.data()), part.size());
  };
  append(as_bytes(r.indices));
  append(as_bytes(r.levels));
  append(as_bytes(r.log_tail));
  append(as_bytes(r.target_log_prob));
  bytes += hash_record(key, r);
  FARSKIP_CHECK(bytes.size() == record_bytes(), "a record of {} bytes, not {}", bytes.size(), record_bytes());
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t n = ::write(descriptor_, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) throw IoError(fmt::format("{}: write failed: {}", own_path_.string(), std::strerror(errno)));
    done += static_cast<std::size_t>(n);
  }
  places_.emplace(key, Place{&own_path_, own_bytes_});
  own_bytes_ += bytes.size();
}

}  // namespace farskip
