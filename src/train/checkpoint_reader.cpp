#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>

#include "farskip/base/error.h"
#include "farskip/tensor/hash.h"
#include "farskip/tensor/safetensors.h"
#include "farskip/train/checkpoint_files.h"

namespace farskip {
namespace {

constexpr const char* kManifest = "manifest.json";
constexpr std::uint64_t kMaxManifestBytes = 1'000'000'000;

struct Listing {
  std::vector<std::int64_t> steps;  // newest first
  std::vector<fs::path> temporary;
};

/// Folders only: a link called step-N is not a checkpoint.
Listing list_folder(const fs::path& folder) {
  Listing listing;
  std::error_code error;
  if (fs::symlink_status(folder, error).type() == fs::file_type::not_found) return listing;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (it->symlink_status().type() != fs::file_type::directory) continue;
    const std::string name = it->path().filename().string();
    if (const std::optional<std::int64_t> step = parse_step_name(name)) {
      listing.steps.push_back(*step);
    } else if (const std::size_t dot = name.find(".tmp-");
               dot != std::string::npos && parse_step_name(std::string_view(name).substr(0, dot))) {
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
      logger.warning("{}: names \"{}\", which is no checkpoint here; searching all of them", path.string(),
                     printable(text));
  } catch (const UserError& error) {
    logger.warning("{}; searching all checkpoints", error.what());
  }
}

}  // namespace

std::optional<std::int64_t> newest_step(const fs::path& folder) {
  const Listing listing = list_folder(folder);
  return listing.steps.empty() ? std::nullopt : std::optional(listing.steps.front());
}

void check_checkpoint_files(const fs::path& path, const CheckpointManifest& manifest) {
  for (const auto& [name, file] : manifest.files)
    if (const std::uint64_t size = InputFile(path / name, Links::refuse).size(); size != file.size)
      throw DataError(
          fmt::format("{}: has {} bytes, the manifest says {}", (path / name).string(), size, file.size));
  std::error_code error;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name != kManifest && !manifest.files.contains(name))
      throw DataError(fmt::format("{}: is not part of this checkpoint; move it away", it->path().string()));
  }
  if (error) throw IoError(fmt::format("{}: cannot list: {}", path.string(), error.message()));
}

Checkpoint open_checkpoint(const fs::path& path, Verify verify) {
  Checkpoint checkpoint;
  checkpoint.path_ = path;
  const fs::path manifest_path = path / kManifest;
  auto state = std::make_shared<nlohmann::json>();
  checkpoint.manifest_ = parse_manifest(read_text_file(manifest_path, kMaxManifestBytes, Links::refuse),
                                        manifest_path.string(), *state);
  checkpoint.state_ = std::move(state);
  const CheckpointManifest& manifest = checkpoint.manifest_;
  const fs::path name = fs::absolute(path).lexically_normal();
  const std::string last = (name.has_filename() ? name : name.parent_path()).filename().string();
  if (const auto step = parse_step_name(last); step && *step != manifest.step)
    throw DataError(fmt::format("{}: is the manifest of step {}", manifest_path.string(), manifest.step));
  check_checkpoint_files(path, manifest);
  for (const auto& [file_name, file] : manifest.files) {
    const fs::path file_path = path / file_name;
    if (verify == Verify::hashes) checkpoint.verify_file(file_name);
    if (file_path.extension() == ".safetensors")
      checkpoint.files_.emplace(file_name, std::make_shared<SafetensorsFile>(file_path, Links::refuse));
  }
  checkpoint.check_pieces();
  return checkpoint;
}

void Checkpoint::verify_file(const std::string& name) const {
  const auto it = manifest_.files.find(name);
  FARSKIP_CHECK(it != manifest_.files.end(), "{} is not in the manifest", name);
  const std::string hash = hash_file(InputFile(path_ / name, Links::refuse));
  if (hash != it->second.hash)
    throw DataError(
        fmt::format("{}: content has hash {}, the manifest says {}; damaged, or from another checkpoint",
                    (path_ / name).string(), hash, printable(it->second.hash)));
}

void Checkpoint::check_pieces() const {
  for (const auto& [name, tensor] : manifest_.tensors)
    for (const TensorPiece& piece : tensor.pieces) {
      const auto file = files_.find(piece.file);
      const std::string where = (path_ / piece.file).string();
      if (file == files_.end())
        throw DataError(
            fmt::format("{}: holds tensor \"{}\" but is no .safetensors file", where, printable(name)));
      const TensorInfo& info = file->second->find(piece.name);
      std::vector<std::int64_t> dims = tensor.shape.dims();
      if (!dims.empty()) dims[0] = piece.num_rows;
      if (info.dtype != tensor.dtype || info.shape.dims() != dims)
        throw DataError(fmt::format("{}: tensor \"{}\" is {} {}, the manifest says {} {}", where,
                                    printable(piece.name), safetensors_dtype_name(info.dtype),
                                    info.shape.text(), safetensors_dtype_name(tensor.dtype),
                                    Shape(dims).text()));
    }
}

HostTensor Checkpoint::read(const std::string& tensor) const {
  const auto it = manifest_.tensors.find(tensor);
  if (it == manifest_.tensors.end())
    throw DataError(fmt::format("{}: no tensor \"{}\"", path_.string(), printable(tensor)));
  const Shape& shape = it->second.shape;
  return read_rows(tensor, 0, shape.rank() == 0 ? 1 : shape[0]);
}

HostTensor Checkpoint::read_rows(const std::string& tensor, std::int64_t first_row,
                                 std::int64_t num_rows) const {
  const auto it = manifest_.tensors.find(tensor);
  if (it == manifest_.tensors.end())
    throw DataError(fmt::format("{}: no tensor \"{}\"", path_.string(), printable(tensor)));
  const auto& [dtype, shape, pieces] = it->second;
  const std::int64_t rows = shape.rank() == 0 ? 1 : shape[0];
  if (first_row < 0 || num_rows < 0 || first_row > rows || num_rows > rows - first_row)
    throw DataError(fmt::format("{}: tensor \"{}\" has {} rows; {} rows from row {} on are not in it",
                                path_.string(), printable(tensor), rows, num_rows, first_row));
  std::vector<std::int64_t> dims = shape.dims();
  if (!dims.empty()) {
    dims[0] = num_rows;
  } else if (num_rows == 0) {
    dims = {0};
  }
  HostTensor out(dtype, Shape(std::move(dims)));
  const std::uint64_t row_bytes =
      rows == 0 ? 0 : *tensor_bytes(dtype, shape) / static_cast<std::uint64_t>(rows);
  for (const TensorPiece& piece : pieces) {
    const std::int64_t begin = std::max(first_row, piece.first_row);
    const std::int64_t end = std::min(first_row + num_rows, piece.first_row + piece.num_rows);
    if (begin >= end) continue;
    files_.at(piece.file)
        ->read_into(piece.name, static_cast<std::uint64_t>(begin - piece.first_row) * row_bytes,
                    out.bytes().subspan(static_cast<std::uint64_t>(begin - first_row) * row_bytes,
                                        static_cast<std::uint64_t>(end - begin) * row_bytes));
  }
  return out;
}

std::optional<Checkpoint> find_newest_valid_checkpoint(const fs::path& folder, const Logger& logger,
                                                       Verify verify) {
  const Listing listing = list_folder(folder);
  check_latest(folder, listing, logger);
  for (const std::int64_t step : listing.steps) {
    const fs::path path = step_folder(folder, step);
    try {
      return open_checkpoint(path, verify);
    } catch (const IoError&) {
      throw;  // says nothing of what is in it: going back to an older one would throw work away
    } catch (const UserError& error) {
      logger.warning("checkpoint {} cannot be used: {}", path.string(), error.what());
    }
  }
  if (listing.steps.empty()) return std::nullopt;
  throw DataError(
      fmt::format("{}: none of the {} checkpoints is whole (see the warnings above); restore one, or move "
                  "them away to start afresh",
                  folder.string(), listing.steps.size()));
}

void set_aside_newer_checkpoints(const fs::path& folder, std::int64_t step, const Logger& logger,
                                 std::string_view why) {
  for (const std::int64_t newer : list_folder(folder).steps) {
    if (newer <= step) break;
    const fs::path path = step_folder(folder, newer);
    const fs::path aside = fmt::format("{}.{}-{}", path.string(), why, make_run_id());
    std::error_code error;
    fs::rename(path, aside, error);
    if (error) throw IoError(fmt::format("{}: cannot rename: {}", path.string(), error.message()));
    logger.warning("{}: set aside as {}", path.string(), aside.filename().string());
  }
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
  for (std::size_t i = static_cast<std::size_t>(keep); i < listing.steps.size(); ++i) {
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
