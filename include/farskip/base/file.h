// SPDX-License-Identifier: Apache-2.0
#pragma once
// Files with every return value checked. Errors are MissingInputError (no such file), IoError (the
// system refused; message carries path and reason).

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace farskip {

namespace fs = std::filesystem;

/// What to do when the last component of a path is a symbolic link. Paths that a user typed follow
/// links; names that came out of a file refuse them, so that no file can point outside its folder.
enum class Links { follow, refuse };

/// A regular file open for reading by offset. Never maps: a truncated mapping is SIGBUS. Fifos, devices
/// and folders are IoError, without waiting on them.
class InputFile {
 public:
  explicit InputFile(const fs::path& path, Links links = Links::follow);
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&&) = delete;
  ~InputFile();

  std::uint64_t size() const { return size_; }
  const fs::path& path() const { return path_; }
  /// Reads exactly buffer.size() bytes from `offset`, else throws IoError (DataError past the end), or
  /// StopRequested (stop_signals.h).
  void read_at(std::uint64_t offset, std::span<std::byte> buffer) const;

 private:
  fs::path path_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
};

/// NAME.tmp-PID: what NAME is called until it is whole. The process that makes it holds a lock on it, which
/// the system frees with the process.
fs::path temporary_name(const fs::path& path);
/// Removes the files and folders of `folder` with such names (more may follow the PID) that a process has
/// left which is not there any more: no process here has that number, and none, also of another machine or
/// container, holds the lock. Only where `is_ours(NAME)`, since other programs name their files so as well;
/// what cannot be looked at stays.
void remove_stale_temporaries(const fs::path& folder, const std::function<bool(std::string_view)>& is_ours);

/// Writes a file under a temporary name beside its place; commit() fsyncs and renames it there. Without
/// commit() the temporary file is removed: a reader never sees a half-written file.
class OutputFile {
 public:
  explicit OutputFile(const fs::path& path);
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile();

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  std::uint64_t bytes_written() const { return written_; }
  void commit();

 private:
  fs::path path_, temporary_;
  int descriptor_ = -1;
  std::uint64_t written_ = 0;
};

/// A file that grows line by line and is whole up to its last line end at any time; a link is refused. Throws
/// IoError naming the path.
class AppendFile {
 public:
  explicit AppendFile(const fs::path& path);
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;
  ~AppendFile();
  void append(std::string_view text);

 private:
  fs::path path_;
  int descriptor_ = -1;
};

/// The same as OutputFile for a folder of files: it is made under a temporary name, and commit() renames it.
class OutputFolder {
 public:
  explicit OutputFolder(const fs::path& path);
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;
  ~OutputFolder();

  const fs::path& temporary() const { return temporary_; }
  /// False where a folder of this name has come about meanwhile: it stands, and this one is removed.
  bool commit();

 private:
  fs::path path_, temporary_;
  int descriptor_ = -1;
};

/// Whole file as text; refuses files larger than `limit` bytes (DataError).
std::string read_text_file(const fs::path& path, std::uint64_t limit = std::uint64_t{1} << 30,
                           Links links = Links::follow);
/// Atomic: old content or new content, never a mixture.
void write_text_file(const fs::path& path, std::string_view text);
/// fsyncs a directory, so that a rename inside it survives a power cut.
void sync_directory(const fs::path& path);
/// Throws DataError unless `name`, which was read from `where`, is one plain path component: not empty,
/// no '/' and no NUL, not "." or "..", at most 255 bytes.
void check_file_name(std::string_view name, std::string_view where);
/// `text` as messages show what an untrusted file says: control bytes as \xNN, cut after `limit` bytes.
std::string printable(std::string_view text, std::size_t limit = 120);

}  // namespace farskip
