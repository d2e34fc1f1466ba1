// SPDX-License-Identifier: Apache-2.0
// What lies in a folder of checkpoints: which of them is the newest, what stands in the way, what goes.
#include <algorithm>
#include <functional>

#include "checkpoint/checkpoint_files.h"
#include "farskip/base/error.h"

namespace farskip {
namespace {

struct Listing {
  std::vector<std::int64_t> steps;              // newest first
  std::map<std::int64_t, fs::path> no_folders;  // step-N that are files or links
  std::vector<fs::path> temporary;
};

Listing list_folder(const fs::path& folder) {
  Listing listing;
  std::error_code error;
  if (fs::symlink_status(folder, error).type() == fs::file_type::not_found) return listing;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const bool is_folder = it->symlink_status().type() == fs::file_type::directory;
    const std::string name = it->path().filename().string();
    if (const std::optional<std::int64_t> step = parse_step_name(name)) {
      if (is_folder)
        listing.steps.push_back(*step);
      else
        listing.no_folders.emplace(*step, it->path());
    } else if (const std::size_t dot = name.find(".tmp-");
               is_folder && dot != std::string::npos &&
               parse_step_name(std::string_view(name).substr(0, dot))) {
      listing.temporary.push_back(it->path());
    }
  }
  if (error) throw IoError(fmt::format("{}: cannot list: {}", folder.string(), error.message()));
  std::sort(listing.steps.begin(), listing.steps.end(), std::greater<>());
  return listing;
}

fs::path step_folder(const fs::path& folder, std::int64_t step) {
  return folder / fmt::format("step-{}", step);
}

/// Warns when the hint `latest` is damaged, or points at what is not there.
void check_latest(const fs::path& folder, const Listing& listing, const Logger& logger) {
  std::error_code ignored;
  const fs::path path = folder / kLatestFile;
  if (fs::symlink_status(path, ignored).type() == fs::file_type::not_found) return;
  try {
    std::string text = read_text_file(path, 64, Links::refuse);
    const bool ended = !text.empty() && text.back() == '\n';
    if (ended) text.pop_back();
    const std::optional<std::int64_t> step = parse_step_name(text);
    if (!ended || !step ||
        std::find(listing.steps.begin(), listing.steps.end(), *step) == listing.steps.end())
      logger.warning("{}: names \"{}\", which is no checkpoint here{}", path.string(), printable(text),
                     listing.steps.empty() ? ", and there is no other" : "; searching all of them");
  } catch (const UserError& error) {
    logger.warning("{}; searching all checkpoints", error.what());
  }
}

/// "a link", for messages.
std::string_view kind_of(const fs::path& path) {
  return fs::is_symlink(fs::symlink_status(path)) ? "a link" : "not a folder";
}

/// Out of the way, under a name that is no checkpoint's.
void set_aside(const fs::path& path, std::string_view why, const Logger& logger) {
  const fs::path aside = fmt::format("{}.{}-{}", path.string(), why, make_run_id());
  std::error_code error;
  fs::rename(path, aside, error);
  if (error) throw IoError(fmt::format("{}: cannot rename: {}", path.string(), error.message()));
  logger.warning("{}: set aside as {}", path.string(), aside.filename().string());
}

}  // namespace

std::optional<std::int64_t> newest_step(const fs::path& folder) {
  const Listing listing = list_folder(folder);
  return listing.steps.empty() ? std::nullopt : std::optional(listing.steps.front());
}

std::vector<std::int64_t> list_checkpoints(const fs::path& folder, const Logger& logger) {
  const Listing listing = list_folder(folder);
  check_latest(folder, listing, logger);
  for (const auto& [step, path] : listing.no_folders)
    logger.warning("{}: is {}, so it is passed over", path.string(), kind_of(path));
  return listing.steps;
}

std::optional<Checkpoint> open_newest(const fs::path& folder, std::vector<std::int64_t>& steps,
                                      const Logger& logger, Verify verify) {
  while (!steps.empty()) {
    const fs::path path = step_folder(folder, steps.front());
    steps.erase(steps.begin());
    try {
      Checkpoint checkpoint = open_checkpoint(path, verify);
      for (const std::string& stray : checkpoint.strays())
        logger.warning("{}: is no part of the checkpoint and is passed over",
                       (path / printable(stray)).string());
      return checkpoint;
    } catch (const IoError&) {
      throw;  // going back to an older one would throw work away
    } catch (const UserError& error) {
      logger.warning("checkpoint {} cannot be used: {}", path.string(), error.what());
    }
  }
  return std::nullopt;
}

void refuse_damaged(const fs::path& folder, std::size_t num_checkpoints) {
  throw DataError(
      fmt::format("{}: none of the {} checkpoints is whole (see the warnings above); restore one, or move "
                  "them away to start afresh",
                  folder.string(), num_checkpoints));
}

std::optional<Checkpoint> find_newest_valid_checkpoint(const fs::path& folder, const Logger& logger,
                                                       Verify verify) {
  std::vector<std::int64_t> steps = list_checkpoints(folder, logger);
  const std::size_t count = steps.size();
  std::optional<Checkpoint> checkpoint = open_newest(folder, steps, logger, verify);
  if (!checkpoint && count > 0) refuse_damaged(folder, count);
  return checkpoint;
}

void set_aside_newer_checkpoints(const fs::path& folder, std::int64_t step, const Logger& logger,
                                 std::string_view why) {
  const Listing listing = list_folder(folder);
  for (const std::int64_t newer : listing.steps)
    if (newer > step) set_aside(step_folder(folder, newer), why, logger);
  for (const auto& [newer, path] : listing.no_folders)
    if (newer > step) set_aside(path, why, logger);
}

void remove_old_checkpoints(const fs::path& folder, std::int64_t keep, std::string_view run_id,
                            const Logger& logger) {
  FARSKIP_CHECK(keep >= 1, "keep {}", keep);
  Listing listing = list_folder(folder);
  std::erase_if(listing.temporary, [&](const fs::path& path) {
    const std::string name = path.filename().string();
    return name.substr(name.find(".tmp-") + 5) == run_id;
  });
  std::error_code error;
  for (auto i = static_cast<std::size_t>(keep); i < listing.steps.size(); ++i) {
    // Under a temporary name first: a removal cut short must not leave half a step-N.
    const fs::path path = step_folder(folder, listing.steps[i]);
    const fs::path doomed = path.string() + ".tmp-removed-" + make_run_id();
    fs::rename(path, doomed, error);
    if (error) {
      logger.warning("{}: cannot remove: {}", path.string(), error.message());
    } else {
      listing.temporary.push_back(doomed);
    }
  }
  for (const fs::path& path : listing.temporary) {
    fs::remove_all(path, error);
    if (error) logger.warning("{}: cannot remove: {}", path.string(), error.message());
  }
}

}  // namespace farskip
