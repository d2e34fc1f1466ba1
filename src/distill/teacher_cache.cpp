// SPDX-License-Identifier: Apache-2.0
#include "distill/teacher_cache.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <sstream>

#include "base/folder.h"
#include "checkpoint/checkpoint_files.h"
#include "farskip/base/error.h"
#include "tensor/hash.h"

namespace farskip {
namespace {

constexpr double kSteps = 2048.0;  // levels a nat of a logit
constexpr std::size_t kHashBytes = 32;
constexpr std::string_view kPrefix = "records-", kIdentity = "teacher.txt";
constexpr std::uint64_t kMostIdentity = 1 << 16;

template <class T>
std::span<const std::byte> as_bytes(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

/// Of whose records they are, too: a file that strays into another folder has none.
std::string hash_record(const TeacherCacheIdentity& identity, const std::string& key,
                        const TeacherRecord& r) {
  Hasher hasher;
  hasher.update(identity.text());
  hasher.update(key);
  hasher.update(as_bytes(r.indices));
  hasher.update(as_bytes(r.levels));
  hasher.update(as_bytes(r.log_tail));
  hasher.update(as_bytes(r.target_log_prob));
  return hasher.hex();
}

/// Lines "name: value".
std::map<std::string, std::string> fields_of(const std::string& text) {
  std::map<std::string, std::string> fields;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);)
    if (const std::size_t colon = line.find(": "); colon != std::string::npos)
      fields[line.substr(0, colon)] = line.substr(colon + 2);
  return fields;
}

}  // namespace

std::string TeacherCacheIdentity::text() const {
  return fmt::format(
      "format: 3\nteacher: {}\nvocab_size: {}\nsequence_length: {}\ntop_k: {}\ntemperature: {}\n", teacher,
      vocab_size, sequence_length, top_k, temperature);
}

std::vector<std::uint16_t> TeacherRecord::round(std::span<const float> log_probs, std::size_t top_k,
                                                double temperature) {
  std::vector<std::uint16_t> levels;
  for (std::size_t i = 0; i < log_probs.size(); ++i) {
    const double below =
        static_cast<double>(log_probs[i / top_k * top_k]) - static_cast<double>(log_probs[i]);
    levels.push_back(
        static_cast<std::uint16_t>(std::clamp(std::round(below * temperature * kSteps), 0.0, 65535.0)));
  }
  return levels;
}

void TeacherRecord::distributions(double temperature, std::span<float> log_probs,
                                  std::span<float> tail) const {
  const std::size_t top_k = levels.size() / log_tail.size();
  const auto below = [&](std::size_t i) { return static_cast<double>(levels[i]) / (kSteps * temperature); };
  for (std::size_t t = 0; t < log_tail.size(); ++t) {
    double sum = 0.0;
    for (std::size_t i = t * top_k; i < (t + 1) * top_k; ++i) sum += std::exp(-below(i));
    const double log_kept = std::log(-std::expm1(static_cast<double>(log_tail[t])) / sum);
    for (std::size_t i = t * top_k; i < (t + 1) * top_k; ++i)
      log_probs[i] = static_cast<float>(log_kept - below(i));
    tail[t] = log_tail[t];
  }
}

TeacherCache::TeacherCache(fs::path folder, TeacherCacheIdentity identity, int rank, Logger logger)
    : folder_(std::move(folder)), identity_(std::move(identity)), logger_(std::move(logger)) {
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

/// Records without the file that says whose they are.
void TeacherCache::refuse_orphans() const {
  if (!fs::is_directory(folder_)) return;
  for (const std::string& name : list_entries(folder_))
    if (name.starts_with(kPrefix))
      throw DataError(
          fmt::format("distill.cache.path {}: holds {} and no {}, so whose outputs they are is not known. "
                      "Move the folder away: "
                      "the teacher is asked again",
                      folder_.string(), name, kIdentity));
}

void TeacherCache::check_identity(int rank) const {
  const fs::path path = folder_ / kIdentity;
  if (!has_entry(folder_, kIdentity)) {
    if (rank != 0) throw IoError(fmt::format("{}: not visible from rank {}", path.string(), rank));
    refuse_orphans();
    std::error_code failure;
    fs::create_directories(folder_, failure);
    if (failure)
      throw IoError(fmt::format("{}: cannot create folder: {}", folder_.string(), failure.message()));
    write_text_file(path, identity_.text());
    return;
  }
  const std::string kept = read_inside(folder_, kIdentity, kMostIdentity), wanted = identity_.text();
  if (kept == wanted) return;
  const std::map<std::string, std::string> before = fields_of(kept), now = fields_of(wanted);
  std::string text;
  for (const auto& [name, value] : now) {
    const auto it = before.find(name);
    if (it == before.end())
      throw DataError(fmt::format(
          "{}: has no line \"{}: …\"; it is damaged. Move the folder away: the teacher is asked again",
          path.string(), name));
    if (it->second != value)
      text += fmt::format("\n  {}: folder {}, this run {}", name, printable(it->second), value);
  }
  if (text.empty()) text = "\n  lines that this program does not know";
  throw UsageError(fmt::format(
      "distill.cache.path {} holds outputs of another teacher, or in another form:{}\nuse another "
      "folder, or the configuration that made it",
      folder_.string(), text));
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
    const InputFile file(path, Links::refuse);
    for (; known + size <= bytes; known += size) {
      std::string key(kHashBytes, '\0');
      file.read_at(known, std::as_writable_bytes(std::span(key)));
      places_[std::move(key)].push_back({&path, known});
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

std::optional<TeacherRecord> TeacherCache::find(const std::string& key) {
  const auto it = places_.find(key);
  if (it == places_.end()) return std::nullopt;
  for (std::vector<Place>& places = it->second; !places.empty(); places.pop_back()) try {
      return read(key, places.back());
    } catch (const UserError& error) {
      logger_.warning("{}; it is passed over", error.what());
    }
  places_.erase(it);
  return std::nullopt;
}

TeacherRecord TeacherCache::read(const std::string& key, const Place& place) const {
  const auto tokens = static_cast<std::size_t>(identity_.sequence_length);
  const std::size_t kept = tokens * static_cast<std::size_t>(identity_.top_k);
  TeacherRecord r{std::vector<std::int32_t>(kept), std::vector<std::uint16_t>(kept),
                  std::vector<float>(tokens), std::vector<float>(tokens)};
  std::string hash(kHashBytes, '\0');
  const InputFile file(*place.file, Links::refuse);
  std::uint64_t offset = place.offset + kHashBytes;
  const auto read_next = [&](std::span<std::byte> into) {
    file.read_at(offset, into);
    offset += into.size();
  };
  read_next(std::as_writable_bytes(std::span(r.indices)));
  read_next(std::as_writable_bytes(std::span(r.levels)));
  read_next(std::as_writable_bytes(std::span(r.log_tail)));
  read_next(std::as_writable_bytes(std::span(r.target_log_prob)));
  read_next(std::as_writable_bytes(std::span(hash)));
  const auto is_token = [&](std::int32_t id) { return id >= 0 && id < identity_.vocab_size; };
  if (hash != hash_record(identity_, key, r) || !std::all_of(r.indices.begin(), r.indices.end(), is_token))
    throw DataError(fmt::format("{}: the record at byte {} is damaged", file.path().string(), place.offset));
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
  bytes += hash_record(identity_, key, r);
  FARSKIP_CHECK(bytes.size() == record_bytes(), "a record of {} bytes, not {}", bytes.size(), record_bytes());
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t n = ::write(descriptor_, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) throw IoError(fmt::format("{}: write failed: {}", own_path_.string(), std::strerror(errno)));
    done += static_cast<std::size_t>(n);
  }
  places_[key] = {{&own_path_, own_bytes_}};
  own_bytes_ += bytes.size();
}

}  // namespace farskip
