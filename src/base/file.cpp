// SPDX-License-Identifier: Apache-2.0
#include "farskip/base/file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <optional>
#include <random>

#include "base/stop_signals.h"
#include "farskip/base/error.h"

namespace farskip {
namespace {

std::string reason() {
  return std::strerror(errno);
}

}  // namespace

InputFile::InputFile(const fs::path& path, Links links) : path_(path) {
  // O_NONBLOCK: opening a fifo for reading would otherwise wait for its writer; regular files ignore it.
  const int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | (links == Links::refuse ? O_NOFOLLOW : 0);
  descriptor_ = ::open(path.c_str(), flags);
  if (descriptor_ < 0) {
    if (errno == ELOOP && links == Links::refuse)
      throw IoError(fmt::format("{}: is a symbolic link; put the file itself there (cp -L)", path.string()));
    if (errno == ENOENT || errno == ENOTDIR)
      throw MissingInputError(fmt::format("{}: no such file", path.string()));
    throw IoError(fmt::format("{}: cannot open: {}", path.string(), reason()));
  }
  struct stat info {};
  if (::fstat(descriptor_, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(descriptor_);
    throw IoError(fmt::format("{}: not a regular file{}; name one", path.string(),
                              S_ISDIR(info.st_mode) ? " but a folder" : ""));
  }
  size_ = static_cast<std::uint64_t>(info.st_size);
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(other.descriptor_), size_(other.size_) {
  other.descriptor_ = -1;
}

InputFile::~InputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void InputFile::read_at(std::uint64_t offset, std::span<std::byte> buffer) const {
  constexpr std::size_t most = std::size_t{64} << 20;  // at once, so that a request to stop is seen soon
  std::size_t done = 0;
  while (done < buffer.size()) {
    leave_if_asked();
    const ssize_t n = ::pread(descriptor_, buffer.data() + done, std::min(buffer.size() - done, most),
                              static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw IoError(fmt::format("{}: read failed: {}", path_.string(), reason()));
    if (n == 0)
      throw DataError(fmt::format("{}: ends at byte {}, {} more expected", path_.string(), offset + done,
                                  buffer.size() - done));
    done += static_cast<std::size_t>(n);
  }
}

namespace {

/// What the name of a temporary file says; nothing for any other name.
struct TemporaryName {
  std::string_view of;
  pid_t maker = 0;
};
std::optional<TemporaryName> parse_temporary_name(std::string_view name) {
  constexpr std::string_view mark = ".tmp-";
  const std::size_t at = name.rfind(mark);
  if (at == std::string_view::npos) return std::nullopt;
  const char* const begin = name.data() + at + mark.size();
  const char* const end = name.data() + name.size();
  TemporaryName parsed{name.substr(0, at)};
  const auto [rest, failure] = std::from_chars(begin, end, parsed.maker);
  if (failure != std::errc{} || parsed.maker <= 0 || (rest != end && *rest != '-')) return std::nullopt;
  return parsed;
}

/// Files are locked by a writer. A folder is open for reading only, and so locked as by a reader: some
/// network file systems allow no more.
bool is_locked(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (descriptor < 0) return true;
  struct stat info {};
  const bool is_folder = ::fstat(descriptor, &info) == 0 && S_ISDIR(info.st_mode);
  const bool free = ::flock(descriptor, (is_folder ? LOCK_EX : LOCK_SH) | LOCK_NB) == 0;
  ::close(descriptor);
  return !free;
}

}  // namespace

fs::path temporary_name(const fs::path& path) {
  return path.string() + fmt::format(".tmp-{}", ::getpid());
}

void remove_stale_temporaries(const fs::path& folder, const std::function<bool(std::string_view)>& is_ours) {
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    const std::optional<TemporaryName> temporary = parse_temporary_name(name);
    if (!temporary || !is_ours(temporary->of)) continue;
    const bool gone = ::kill(temporary->maker, 0) != 0 && errno == ESRCH;
    std::error_code ignored;
    if (gone && !is_locked(it->path())) fs::remove_all(it->path(), ignored);
  }
}

namespace {

/// What a new file may take the place of: nothing, or a file, also one that a link points at.
fs::path replaceable(const fs::path& path) {
  constexpr int most_links = 40;
  std::error_code error;
  fs::path target = path;
  for (int links = 0; links < most_links && fs::is_symlink(target, error); ++links)
    target = target.parent_path() / fs::read_symlink(target, error);  // as it stands, if that is absolute
  const fs::file_status status = fs::status(target, error);
  if (fs::is_directory(status))
    throw IoError(fmt::format("{}: is a folder, which a file cannot replace; name a file", path.string()));
  if (fs::exists(status) && !fs::is_regular_file(status))
    throw IoError(
        fmt::format("{}: is a device or pipe, which a file cannot replace; name a file", path.string()));
  return target;
}

}  // namespace

OutputFile::OutputFile(const fs::path& path) : path_(replaceable(path)), temporary_(temporary_name(path_)) {
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor_ < 0) throw IoError(fmt::format("{}: cannot create: {}", path_.string(), reason()));
  ::flock(descriptor_, LOCK_EX | LOCK_NB);  // for remove_stale_temporaries; some file systems have no locks
}

OutputFile::~OutputFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}

void OutputFile::write(std::span<const std::byte> bytes) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::write(descriptor_, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      throw IoError(
          fmt::format("{}: write failed after {} bytes: {}", path_.string(), written_ + done, reason()));
    done += static_cast<std::size_t>(n);
  }
  // The disk begins with each part of a large file as soon as that is whole, so that commit() has little left
  // to wait for. A hint, which some file systems refuse.
  constexpr std::uint64_t part = std::uint64_t{32} << 20;
  const std::uint64_t begin = written_ / part * part, end = (written_ + done) / part * part;
  if (begin < end)
    ::sync_file_range(descriptor_, static_cast<off_t>(begin), static_cast<off_t>(end - begin),
                      SYNC_FILE_RANGE_WRITE);
  written_ += done;
}

void OutputFile::write(std::string_view text) {
  write(std::as_bytes(std::span(text.data(), text.size())));
}

void OutputFile::commit() {
  if (::fsync(descriptor_) != 0) throw IoError(fmt::format("{}: fsync failed: {}", path_.string(), reason()));
  const int descriptor = descriptor_;
  descriptor_ = -1;
  if (::close(descriptor) != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const std::string why = reason();
    ::unlink(temporary_.c_str());
    throw IoError(fmt::format("{}: cannot finish writing: {}", path_.string(), why));
  }
}

AppendFile::AppendFile(const fs::path& path) : path_(path) {
  descriptor_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (descriptor_ < 0) throw IoError(fmt::format("{}: cannot open: {}", path.string(), std::strerror(errno)));
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK)
    return;  // not every file system locks
  ::close(descriptor_);
  throw IoError(fmt::format("{}: another process writes it", path.string()));
}

AppendFile::~AppendFile() {
  ::close(descriptor_);
}

void AppendFile::append(std::string_view text) {
  while (!text.empty()) {  // what is left of a line tells why it was cut
    const ssize_t n = ::write(descriptor_, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) throw IoError(fmt::format("{}: write failed: {}", path_.string(), std::strerror(errno)));
    text.remove_prefix(static_cast<std::size_t>(n));
  }
}

// Threads of one process may make the same folder at once.
OutputFolder::OutputFolder(const fs::path& path)
    : path_(path),
      temporary_(fmt::format("{}-{:08x}", temporary_name(path).string(), std::random_device()())) {
  std::error_code error;
  fs::create_directory(temporary_, error);
  if (error) throw IoError(fmt::format("{}: cannot create: {}", path_.string(), error.message()));
  descriptor_ = ::open(temporary_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor_ >= 0) ::flock(descriptor_, LOCK_SH | LOCK_NB);
}

OutputFolder::~OutputFolder() {
  if (descriptor_ >= 0) ::close(descriptor_);
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);
}

bool OutputFolder::commit() {
  std::error_code error;
  fs::rename(temporary_, path_, error);
  if (!error) return true;
  if (!fs::is_directory(path_))
    throw IoError(fmt::format("{}: cannot put it in place: {}", path_.string(), error.message()));
  return false;
}

std::string read_text_file(const fs::path& path, std::uint64_t limit, Links links) {
  const InputFile file(path, links);
  if (file.size() > limit)
    throw DataError(fmt::format("{}: {} bytes, at most {} allowed", path.string(), file.size(), limit));
  std::string text(file.size(), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text.data(), text.size())));
  return text;
}

void write_text_file(const fs::path& path, std::string_view text) {
  OutputFile file(path);
  file.write(text);
  file.commit();
}

void sync_directory(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0 || ::fsync(descriptor) != 0) {
    const std::string why = reason();
    if (descriptor >= 0) ::close(descriptor);
    throw IoError(fmt::format("{}: cannot sync directory: {}", path.string(), why));
  }
  ::close(descriptor);
}

void check_file_name(std::string_view name, std::string_view where) {
  const bool plain = !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
                     name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
  if (!plain)
    throw DataError(
        fmt::format("{}: \"{}\" is not allowed as a file name: one plain name inside the same folder "
                    "is expected, without '/' and not \"..\"",
                    where, printable(name)));
}

std::string printable(std::string_view text, std::size_t limit) {
  const bool cut = text.size() > limit;
  while (cut && limit > 0 && (text[limit] & 0xc0) == 0x80) --limit;  // not inside a UTF-8 character
  std::string out;
  for (const char c : text.substr(0, limit)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  if (cut) out += "...";
  return out;
}

}  // namespace farskip
