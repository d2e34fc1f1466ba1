// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/failpoint.h"
#include "checkpoint/checkpoint_files.h"
#include "farskip/base/error.h"

namespace farskip {
namespace {

/// rename() alone would replace an empty folder of the new name.
void rename_to_new(const fs::path& from, const fs::path& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return;
  int why = errno;
  if (why == EINVAL || why == ENOSYS) {  // a file system without the flag, such as NFS
    std::error_code ignored;
    if (fs::exists(fs::symlink_status(to, ignored))) {
      why = EEXIST;
    } else if (::rename(from.c_str(), to.c_str()) == 0) {
      return;
    } else {
      why = errno;
    }
  }
  throw IoError(
      fmt::format("{}: cannot rename to {}: {}", from.string(), to.filename().string(), std::strerror(why)));
}

}  // namespace

std::string make_run_id() {
  std::uint64_t random = 0;
  if (::getrandom(&random, sizeof(random), 0) != static_cast<ssize_t>(sizeof(random)))
    throw IoError(fmt::format("no random numbers from the system: {}", std::strerror(errno)));
  return fmt::format("{}-{:016x}", ::getpid(), random);
}

std::optional<std::int64_t> parse_step_name(std::string_view name) {
  constexpr std::string_view kPrefix = "step-";
  if (name.substr(0, kPrefix.size()) != kPrefix) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  std::int64_t step = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), step);
  if (error != std::errc{} || end != name.data() + name.size() || name != std::to_string(step) || step < 0)
    return std::nullopt;
  return step;
}

void check_can_save(const fs::path& folder) {
  std::error_code error;
  if (fs::symlink_status(folder, error).type() == fs::file_type::not_found) return;
  if (!fs::is_directory(folder, error))
    throw IoError(
        fmt::format("{}: checkpoints go there, and it is no folder; move it away", folder.string()));
  const std::int64_t newest = newest_step(folder).value_or(-1);
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    const fs::file_type type = entry.symlink_status(error).type();
    const std::string name = entry.path().filename().string();
    if ((parse_step_name(name).value_or(-1) > newest && type != fs::file_type::directory) ||
        (name == kLatestFile && type != fs::file_type::regular))
      throw IoError(fmt::format("{}: is {}, where this run would write; move it away", entry.path().string(),
                                type == fs::file_type::directory ? "a folder"
                                : type == fs::file_type::symlink ? "a link"
                                                                 : "a file"));
  }
  const fs::path probe = folder / fmt::format("step-0.tmp-{}", make_run_id());
  if (!error) fs::create_directory(probe, error);
  if (!error) fs::remove(probe, error);
  if (error) throw IoError(fmt::format("{}: cannot write checkpoints: {}", folder.string(), error.message()));
}

CheckpointWriter::CheckpointWriter(const fs::path& folder, std::int64_t step, std::string run_id, int rank)
    : folder_(folder), temporary_(folder / fmt::format("step-{}.tmp-{}", step, run_id)), rank_(rank) {
  FARSKIP_CHECK(step >= 0, "step {}", step);
  check_file_name(run_id, "run id");
  manifest_.step = step;
  if (rank_ != 0) return;
  std::error_code error;
  const fs::path target = folder_ / fmt::format("step-{}", step);
  if (fs::exists(fs::symlink_status(target, error)))
    throw UsageError(
        fmt::format("{}: exists already and is never overwritten; resume from it, move it away, or use "
                    "another run_dir",
                    target.string()));
  fs::create_directories(folder_, error);
  if (!error) fs::remove_all(temporary_, error);  // an earlier attempt of this run that failed
  if (!error) fs::create_directory(temporary_, error);
  if (error) throw IoError(fmt::format("{}: cannot create: {}", temporary_.string(), error.message()));
  try {
    failpoint("ckpt.begin", rank_);
  } catch (...) {
    fs::remove_all(temporary_, error);
    throw;
  }
}

CheckpointWriter::~CheckpointWriter() {
  if (rank_ != 0 || committed_) return;
  std::error_code ignored;  // what cannot be removed now is removed as stale by the next run
  fs::remove_all(temporary_, ignored);
}

fs::path CheckpointWriter::shard_path(const std::string& name) const {
  check_file_name(name, temporary_.string());
  failpoint("ckpt.shard", rank_);
  return temporary_ / name;
}

void CheckpointWriter::add_file(CheckpointFile file) {
  check_file_name(file.name, temporary_.string());
  const std::string name = file.name;
  FARSKIP_CHECK(manifest_.files.emplace(name, std::move(file)).second, "file {} reported twice", name);
}

fs::path CheckpointWriter::commit(const nlohmann::json& state,
                                  std::map<std::string, CheckpointTensor> tensors) {
  FARSKIP_CHECK(rank_ == 0 && !committed_, "commit on rank {}", rank_);
  check_checkpoint_files(temporary_, manifest_);
  manifest_.tensors = std::move(tensors);
  const std::string text = print_manifest(manifest_, state);
  nlohmann::json read_back;
  parse_manifest(text, (temporary_ / "manifest.json").string(), read_back);  // what is written can be read
  failpoint("ckpt.manifest", rank_);
  write_text_file(temporary_ / "manifest.json", text);
  sync_directory(temporary_);
  failpoint("ckpt.rename", rank_);
  const fs::path target = folder_ / fmt::format("step-{}", manifest_.step);
  rename_to_new(temporary_, target);
  committed_ = true;
  sync_directory(folder_);
  failpoint("ckpt.latest", rank_);
  write_text_file(folder_ / kLatestFile, target.filename().string() + "\n");
  sync_directory(folder_);
  return target;
}

}  // namespace farskip
