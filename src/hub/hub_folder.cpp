// SPDX-License-Identifier: Apache-2.0
#include "hub/hub_folder.h"

#include <unistd.h>

#include <nlohmann/json.hpp>

#include "base/failpoint.h"
#include "base/folder.h"
#include "base/scratch_file.h"
#include "hub/remote_code.h"
#include "tensor/hash.h"
#include "tensor/sealed_json.h"

namespace farskip {
namespace {

constexpr const char* kConfig = "config.json";
constexpr const char* kWeights = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kManifest = "model.manifest.json";
constexpr const char* kUnfinished = "unfinished";  // what begins the name of the folder that is written into
constexpr std::string_view kFormat = "farskip-model";
constexpr int kVersion = 1;
constexpr std::uint64_t kMaxManifestBytes = 16 << 20;

struct Shard {
  std::string file;
  std::span<const HubSource> sources;
};

std::uint64_t stored_bytes(const HubSource& source, DType dtype) {
  return static_cast<std::uint64_t>(source.shape.num_elements()) * dtype_size(stored_dtype(source, dtype));
}

/// In the order of the sources, each shard as full as it may be.
std::vector<Shard> cut_into_shards(std::span<const HubSource> sources, DType dtype, std::uint64_t most) {
  std::vector<Shard> shards;
  std::size_t first = 0;
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const std::uint64_t more = stored_bytes(sources[i], dtype);
    if (i > first && bytes + more > most) {
      shards.push_back({"", sources.subspan(first, i - first)});
      first = i;
      bytes = 0;
    }
    bytes += more;
  }
  shards.push_back({kWeights, sources.subspan(first)});
  for (std::size_t i = 0; shards.size() > 1 && i < shards.size(); ++i)
    shards[i].file = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
  return shards;
}

/// "model-00001-of-00004.safetensors", of whatever number.
bool is_shard_name(std::string_view name) {
  constexpr std::string_view begin = "model-", end = ".safetensors";
  if (!name.starts_with(begin) || !name.ends_with(end) || name.size() <= begin.size() + end.size())
    return false;
  name.remove_prefix(begin.size());
  name.remove_suffix(end.size());
  const std::size_t of = name.find("-of-");
  const auto is_number = [](std::string_view text) {
    return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
  };
  return of != std::string_view::npos && is_number(name.substr(0, of)) && is_number(name.substr(of + 4));
}

std::string index_text(const std::vector<Shard>& shards, DType dtype) {
  nlohmann::json files = nlohmann::json::object();
  std::uint64_t total = 0;
  for (const Shard& shard : shards)
    for (const HubSource& source : shard.sources) {
      files[source.name] = shard.file;
      total += stored_bytes(source, dtype);
    }
  return nlohmann::json{{"metadata", {{"total_size", total}}}, {"weight_map", std::move(files)}}.dump(2) +
         "\n";
}

/// What cannot be looked at counts as an entry (has_entry), and would be taken for a model.
void refuse_unseen_folder(const fs::path& folder) {
  std::error_code failure;
  if (fs::symlink_status(folder / kConfig, failure).type() == fs::file_type::none)
    throw IoError(fmt::format("{}: cannot look into this folder: {}; choose another folder", folder.string(),
                              failure.message()));
}

void refuse_used_folder(const fs::path& folder, const Companions& companions) {
  const auto refuse_entry = [&](const std::string& name) {
    if (has_entry(folder, name))
      throw UsageError(fmt::format("{} holds a model already ({}); choose another folder or remove it",
                                   folder.string(), name));
  };
  for (const char* name : {kConfig, kWeights, kIndex, kManifest, kModelingFile}) refuse_entry(name);
  if (fs::is_directory(folder))
    for (const std::string& name : list_entries(folder))
      if (is_shard_name(name)) refuse_entry(name);
  for (const auto& [name, text] : companions.texts) refuse_entry(name);
  if (has_entry(folder, "checkpoints") || has_entry(folder, "metrics.jsonl"))
    throw UsageError(
        fmt::format("{} is the folder of a run, whose checkpoints the model would hide; choose another "
                    "folder",
                    folder.string()));
}

/// The folders on the way to one that were not there: made, and removed again unless they are kept.
class NewFolders {
 public:
  explicit NewFolders(const fs::path& folder) {
    std::error_code ignored;
    for (fs::path path = folder; !path.empty() && !fs::exists(path, ignored); path = path.parent_path())
      made_.push_back(path);
    std::error_code failure;
    fs::create_directories(folder, failure);
    if (!failure) return;
    remove();
    throw IoError(fmt::format("{}: cannot create folder: {}", folder.string(), failure.message()));
  }
  NewFolders(const NewFolders&) = delete;
  NewFolders& operator=(const NewFolders&) = delete;
  ~NewFolders() { remove(); }

  void keep() { made_.clear(); }

 private:
  void remove() const {
    std::error_code ignored;  // one that is not empty stays
    for (const fs::path& path : made_) fs::remove(path, ignored);
  }

  std::vector<fs::path> made_;  // the innermost first
};

/// Writes files and remembers them. All of them are in a folder of another name inside the one that they are
/// for, until they are finished: a process that is killed leaves nothing that looks like a model.
class HashedFolder {
 public:
  explicit HashedFolder(const fs::path& folder)
      : folder_(folder), made_(folder), unfinished_(folder / kUnfinished) {}
  HashedFolder(const HashedFolder&) = delete;
  HashedFolder& operator=(const HashedFolder&) = delete;
  ~HashedFolder() {
    std::error_code ignored;
    for (const std::string& name : placed_) fs::remove(folder_ / name, ignored);
  }

  void write_weights(const Shard& shard, DType dtype) {
    add(shard.file, write_tensors(unfinished_.temporary() / shard.file, shard.sources, dtype));
    failpoint("convert.shard");
  }
  void write(const std::string& name, const std::string& text) {
    write_text_file(unfinished_.temporary() / name, text);
    add(name, {text.size(), hash_text(text)});
  }
  /// The hashes, and then config.json: a folder with it is whole.
  void finish(const std::string& config) {
    write(kConfig, config);
    write_text_file(unfinished_.temporary() / kManifest,
                    print_sealed({{"format", kFormat}, {"version", kVersion}, {"files", files_}}));
    for (const auto& [name, file] : files_.items())
      if (name != kConfig) put_in_place(name);
    put_in_place(kManifest);
    put_in_place(kConfig);
    placed_.clear();
    made_.keep();
  }

 private:
  void add(const std::string& name, const WrittenFile& file) {
    files_[name] = {{"size", file.size}, {"xxh3_128", file.hash}};
  }
  void put_in_place(const std::string& name) {
    std::error_code failure;
    fs::rename(unfinished_.temporary() / name, folder_ / name, failure);
    if (failure)
      throw IoError(
          fmt::format("{}: cannot put it in place: {}", (folder_ / name).string(), failure.message()));
    placed_.push_back(name);
  }

  fs::path folder_;
  NewFolders made_;
  std::vector<std::string> placed_;  // while not all are
  OutputFolder unfinished_;
  nlohmann::json files_ = nlohmann::json::object();
};

void verify_file(const fs::path& folder, const std::string& name, const nlohmann::json& expected) {
  check_file_name(name, (folder / kManifest).string());
  const InputFile file(folder / name, Links::refuse);
  const std::string hash = hash_file(file);
  if (expected.value("size", nlohmann::json()) != file.size() ||
      expected.value("xxh3_128", nlohmann::json()) != hash)
    throw DataError(fmt::format(
        "{}: {} bytes with hash {} are not what {} says; the file is damaged, or was changed: if on purpose, "
        "remove {}",
        file.path().string(), file.size(), hash, kManifest, kManifest));
}

}  // namespace

void refuse_unusable_folder(const fs::path& folder, const Companions& companions) {
  refuse_unseen_folder(folder);
  refuse_used_folder(folder, companions);
  const fs::path place = nearest_folder(folder);
  std::error_code ignored;
  const bool is_folder = fs::is_directory(place, ignored);
  if (is_folder && ::access(place.c_str(), W_OK | X_OK) == 0) return;
  throw IoError(fmt::format("{}: cannot create folder: {} {}; choose another folder", folder.string(),
                            place.string(), is_folder ? "cannot be written" : "is no folder"));
}

void write_hub_folder(const fs::path& folder, const ModelConfig& config,
                      const std::vector<HubSource>& sources, DType dtype, const Companions& companions,
                      std::uint64_t shard_size) {
  refuse_unusable_folder(folder, companions);
  HashedFolder files(folder);
  remove_stale_temporaries(folder, [](std::string_view name) { return name == kUnfinished; });
  const std::vector<Shard> shards = cut_into_shards(sources, dtype, shard_size);
  for (const Shard& shard : shards) files.write_weights(shard, dtype);
  if (shards.size() > 1) files.write(kIndex, index_text(shards, dtype));
  for (const auto& [name, text] : companions.texts) files.write(name, text);
  const std::string text = hub_config_text(config, dtype);
  if (!needs_remote_code(config)) return files.finish(text);
  files.write(kModelingFile, remote_code());
  files.finish(name_remote_code(text));
}

void verify_hub_folder(const fs::path& folder) {
  const std::string where = (folder / kManifest).string();
  const auto text = read_if_inside(folder, kManifest, kMaxManifestBytes);
  if (!text) return;
  const nlohmann::json manifest = parse_sealed(*text, where);
  if (manifest.value("format", nlohmann::json()) != kFormat ||
      manifest.value("version", nlohmann::json()) != kVersion || !manifest.contains("files") ||
      !manifest["files"].is_object())
    throw DataError(
        fmt::format("{}: format {}, version {}, with files is expected", where, kFormat, kVersion));
  for (const auto& [name, expected] : manifest["files"].items()) {
    if (!expected.is_object()) throw DataError(fmt::format("{}: {}: no object", where, printable(name)));
    verify_file(folder, name, expected);
  }
}

}  // namespace farskip
