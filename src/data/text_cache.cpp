// Tokens of raw text, kept by a hash of what they depend on.
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <random>

#include "farskip/base/error.h"
#include "farskip/data/text_source.h"
#include "farskip/tensor/hash.h"

namespace farskip {
namespace {

/// The lock of a folder that is being filled. It ends with the process, so a folder whose lock can be had was
/// left by a process that was killed.
class FolderLock {
 public:
  explicit FolderLock(const fs::path& folder)
      : descriptor_(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    if (descriptor_ >= 0 && ::flock(descriptor_, LOCK_EX | LOCK_NB) == 0)
      held_ = true;
    else
      busy_ = errno == EWOULDBLOCK;
  }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;
  ~FolderLock() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  bool held() const { return held_; }
  bool busy() const { return busy_; }  // another has it; neither where the file system knows no locks

 private:
  int descriptor_;
  bool held_ = false, busy_ = false;
};

/// A new folder beside its later place, removed unless it is put there.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const fs::path& place) {
    do {  // another process may take it for abandoned before it is locked
      path_ = make(place);
      lock_.emplace(path_);
    } while (lock_->busy() || !fs::exists(path_));
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }

  const fs::path& path() const { return path_; }
  /// False if something else is there already.
  bool put(const fs::path& place) {
    std::error_code error;
    fs::rename(path_, place, error);
    if (!error) path_.clear();
    return !error;
  }

  static void remove_abandoned(const fs::path& place) {
    std::error_code error;
    for (fs::directory_iterator entry(place.parent_path(), error), end; !error && entry != end;
         entry.increment(error)) {
      if (!entry->path().filename().string().starts_with(place.filename().string() + ".tmp-")) continue;
      std::error_code ignored;
      if (const FolderLock lock(entry->path()); lock.held()) fs::remove_all(entry->path(), ignored);
    }
  }

 private:
  static fs::path make(const fs::path& place) {
    std::error_code error;
    fs::create_directories(place.parent_path(), error);
    std::random_device random;
    while (!error) {
      const fs::path path = fmt::format("{}.tmp-{:08x}", place.string(), random());
      if (fs::create_directory(path, error)) return path;
    }
    throw IoError(
        fmt::format("{}: cannot create the token cache: {}", place.parent_path().string(), error.message()));
  }

  fs::path path_;
  std::optional<FolderLock> lock_;
};

}  // namespace

std::string text_cache_key(std::span<const fs::path> files, const Tokenizer& tokenizer) {
  Hasher hasher;
  hasher.update(fmt::format("farskip tokens 2\n{}\n", hash_text(tokenizer.json())));
  for (const fs::path& path : files) {
    const InputFile file(path);
    hasher.update(
        fmt::format("{}:{} {} {}\n", path.native().size(), path.native(), file.size(), hash_file(file)));
  }
  return hasher.hex();
}

std::string tokenize_cached(std::span<const fs::path> files, const Tokenizer& tokenizer,
                            const fs::path& cache_dir, const Logger& logger) {
  const fs::path folder = cache_dir / text_cache_key(files, tokenizer);
  const std::string prefix = (folder / "tokens").string();
  TemporaryFolder::remove_abandoned(folder);
  if (fs::exists(prefix + ".idx")) return prefix;
  TemporaryFolder temporary(folder);
  TokenFileWriter writer((temporary.path() / "tokens").string(), token_type_for(tokenizer.vocab_size()));
  add_text(files, tokenizer, writer, logger);
  writer.commit();
  if (temporary.put(folder))
    sync_directory(cache_dir);
  else if (!fs::exists(prefix + ".idx"))  // another process was first: its folder holds the same tokens
    throw IoError(fmt::format("{}: cannot put the token cache in place", folder.string()));
  return prefix;
}

}  // namespace farskip
