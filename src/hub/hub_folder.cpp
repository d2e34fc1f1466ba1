// SPDX-License-Identifier: Apache-2.0
#include "farskip/hub/hub_folder.h"

#include <nlohmann/json.hpp>

#include "farskip/base/folder.h"
#include "farskip/hub/remote_code.h"
#include "farskip/tensor/hash.h"
#include "farskip/tensor/sealed_json.h"

namespace farskip {
namespace {

constexpr const char* kConfig = "config.json";
constexpr const char* kWeights = "model.safetensors";
constexpr const char* kManifest = "model.manifest.json";
constexpr std::string_view kFormat = "farskip-model";
constexpr int kVersion = 1;
constexpr std::uint64_t kMaxManifestBytes = 1 << 20;

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
  for (const char* name : {kConfig, kWeights, "model.safetensors.index.json", kManifest, kModelingFile})
    refuse_entry(name);
  for (const auto& [name, text] : companions.texts) refuse_entry(name);
  if (has_entry(folder, "checkpoints") || has_entry(folder, "metrics.jsonl"))
    throw UsageError(
        fmt::format("{} is the folder of a run, whose checkpoints the model would hide; choose another "
                    "folder",
                    folder.string()));
}

/// Makes a folder, writes files into it and remembers what it has written. Until it is finished, all of that
/// goes again with it: half a model would be in the way of the next try.
class HashedFolder {
 public:
  explicit HashedFolder(const fs::path& folder) : folder_(folder) {
    std::error_code ignored;
    for (fs::path path = folder; !path.empty() && !fs::exists(path, ignored); path = path.parent_path())
      made_.push_back(path);
    std::error_code failure;
    fs::create_directories(folder, failure);
    if (!failure) return;
    remove_made();
    throw IoError(fmt::format("{}: cannot create folder: {}", folder.string(), failure.message()));
  }
  HashedFolder(const HashedFolder&) = delete;
  HashedFolder& operator=(const HashedFolder&) = delete;
  ~HashedFolder() {
    if (finished_) return;
    std::error_code ignored;
    for (const auto& [name, file] : files_.items()) fs::remove(folder_ / name, ignored);
    fs::remove(folder_ / kManifest, ignored);
    remove_made();
  }

  void write_weights(const ViewMap& tensors, DType dtype, Device& device,
                     const std::set<std::string>& kept_in_f32) {
    add(kWeights, write_tensors(folder_ / kWeights, tensors, dtype, device, kept_in_f32));
  }
  void write(const std::string& name, const std::string& text) {
    write_text_file(folder_ / name, text);
    add(name, {text.size(), hash_text(text)});
  }
  /// The hashes, and then config.json: a folder with it is whole.
  void finish(const std::string& config) {
    add(kConfig, {config.size(), hash_text(config)});
    write_text_file(folder_ / kManifest,
                    print_sealed({{"format", kFormat}, {"version", kVersion}, {"files", files_}}));
    write_text_file(folder_ / kConfig, config);
    finished_ = true;
  }

 private:
  void add(const std::string& name, const WrittenFile& file) {
    files_[name] = {{"size", file.size}, {"xxh3_128", file.hash}};
  }
  void remove_made() const {
    std::error_code ignored;  // one that is not empty stays
    for (const fs::path& path : made_) fs::remove(path, ignored);
  }

  fs::path folder_;
  std::vector<fs::path> made_;  // folders that were not there, the innermost first
  nlohmann::json files_ = nlohmann::json::object();
  bool finished_ = false;
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

void write_hub_folder(const fs::path& folder, const ModelConfig& config, const States& states, DType dtype,
                      const Companions& companions) {
  refuse_unseen_folder(folder);
  refuse_used_folder(folder, companions);
  const ViewMap tensors = hub_views(states, Role::weight);
  for (const auto& [name, view] : tensors)
    if (!all_finite(copy_to_host(states.device(), view).view()))
      throw DataError(fmt::format("tensor {} holds values that are not finite; nothing is written", name));
  HashedFolder files(folder);
  remove_stale_temporaries(folder, [&](std::string_view name) {
    return name == kConfig || name == kWeights || name == kManifest || name == kModelingFile ||
           companions.texts.contains(std::string(name));
  });
  files.write_weights(tensors, dtype, states.device(), names_kept_in_f32(list_parameters(config)));
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
