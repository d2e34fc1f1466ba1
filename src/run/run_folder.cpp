// SPDX-License-Identifier: Apache-2.0
#include "run/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/environment.h"
#include "checkpoint/checkpoint_files.h"
#include "farskip/base/error.h"
#include "run/run_config_file.h"

namespace farskip {

namespace {

constexpr const char* kOwnFiles[] = {"lock",      "config.yaml", "metrics.jsonl",
                                     "exit.json", "costs.txt",   "expert_chunks.txt"};

void refuse_no_files(const fs::path& folder) {
  for (const char* const name : kOwnFiles) {
    std::error_code ignored;
    const fs::file_status status = fs::symlink_status(folder / name, ignored);
    if (fs::exists(status) && !fs::is_regular_file(status))
      throw IoError(fmt::format("{}: is {}, where this run writes a file; move it away",
                                (folder / name).string(),
                                fs::is_symlink(status) ? "a link" : "no regular file"));
  }
}

}  // namespace

RunFolder::RunFolder(const fs::path& path, const Logger& logger) : path_(path) {
  std::error_code failure;
  fs::create_directories(path, failure);
  if (failure) throw IoError(fmt::format("run_dir {}: cannot create: {}", path.string(), failure.message()));
  refuse_no_files(path);
  const fs::path lock = path / "lock";
  descriptor_ = ::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (descriptor_ < 0)
    throw IoError(fmt::format("run_dir {}: cannot write: {}", path.string(), std::strerror(errno)));
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    const std::string holder = read_text_file(lock, 4096, Links::refuse);
    ::close(descriptor_);
    descriptor_ = -1;
    throw UsageError(fmt::format("run_dir {} is in use by {}; stop that run or choose another run_dir",
                                 path.string(), holder.empty() ? "another process" : printable(holder)));
  }
  if (const std::string dead = read_text_file(lock, 4096, Links::refuse); !dead.empty())
    logger.info("{}: taken over from {}, which ended without giving it back", lock.string(), printable(dead));
  const std::string me = fmt::format("process {} on {}", ::getpid(), machine_info().hostname);
  if (::ftruncate(descriptor_, 0) != 0 || ::pwrite(descriptor_, me.data(), me.size(), 0) < 0)
    throw IoError(fmt::format("{}: cannot write: {}", lock.string(), std::strerror(errno)));
  remove_stale_temporaries(path_, [](std::string_view name) {
    constexpr std::string_view own[] = {"config.yaml", "exit.json",         "metrics.jsonl",
                                        "costs.txt",   "expert_chunks.txt", "report.html"};
    return std::find(std::begin(own), std::end(own), name) != std::end(own);
  });
  for (const fs::path& folder : {checkpoints(), best()})
    remove_stale_temporaries(folder, [](std::string_view name) {
      return name == kLatestFile || parse_step_name(name).has_value();
    });
}

RunFolder::~RunFolder() {
  if (descriptor_ < 0) return;
  [[maybe_unused]] const int emptied =
      ::ftruncate(descriptor_, 0);  // given back; if not, the next start says so
  ::close(descriptor_);
}

void RunFolder::forget_exit() const {
  std::error_code none;
  fs::remove(path_ / "exit.json", none);
}

void RunFolder::write_exit(const std::string& reason, std::int64_t step, bool resumable) const {
  const nlohmann::ordered_json text{{"reason", reason}, {"step", step}, {"resumable", resumable}};
  write_text_file(path_ / "exit.json", text.dump() + "\n");
}

std::unique_ptr<RunFolder> open_run_folder(const RunConfig& config, const ModelConfig& model,
                                           const Logger& logger) {
  auto folder = std::make_unique<RunFolder>(config.run_dir, logger);
  refuse_other_file(config, model);
  // Where a run begins anew, what has the name of a checkpoint is set aside.
  if (config.checkpoint.resume != Resume::never) check_can_save(folder->checkpoints());
  if (config.distill && config.distill->early_stopping) check_can_save(folder->best());
  return folder;
}

}  // namespace farskip
