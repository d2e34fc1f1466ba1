// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "farskip/base/error.h"
#include "farskip/tensor/safetensors.h"
#include "tensor/strict_json.h"

namespace farskip {
namespace {

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr std::uint64_t kMaxIndexBytes = 100'000'000;

/// What an index says, without the tree of JSON, which takes many times the bytes of the file.
struct WeightMap {
  std::vector<std::string> files;                              // sorted
  std::vector<std::pair<std::string, std::uint32_t>> tensors;  // sorted; index into files

  bool contains(const std::string& tensor) const {
    const auto at = std::lower_bound(tensors.begin(), tensors.end(), std::pair(tensor, std::uint32_t{0}));
    return at != tensors.end() && at->first == tensor;
  }
};

WeightMap read_index(const fs::path& path) {
  const std::string where = path.string();
  const nlohmann::json index = parse_strict_json(read_text_file(path, kMaxIndexBytes, Links::refuse), where);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
    throw DataError(fmt::format("{}: an object `weight_map` from tensor to file name is expected", where));
  const nlohmann::json& weight_map = index["weight_map"];
  std::map<std::string, std::uint32_t> places;
  for (const auto& [tensor, file] : weight_map.items()) {
    if (!file.is_string())
      throw DataError(fmt::format("{}: file of tensor \"{}\" is not a string", where, printable(tensor)));
    check_file_name(file.get_ref<const std::string&>(), where);
    places.emplace(file.get_ref<const std::string&>(), 0);
  }
  WeightMap map;
  for (auto& [file, place] : places) {
    place = static_cast<std::uint32_t>(map.files.size());
    map.files.push_back(file);
  }
  map.tensors.reserve(weight_map.size());
  for (const auto& [tensor, file] : weight_map.items())
    map.tensors.emplace_back(tensor, places.at(file.get_ref<const std::string&>()));
  return map;
}

}  // namespace

bool is_derived_buffer(std::string_view tensor) {
  return tensor.ends_with("rotary_emb.inv_freq");
}

SafetensorsFolder::SafetensorsFolder(const fs::path& path) : path_(path) {
  std::error_code ignored;
  if (!fs::is_directory(path, ignored)) {
    files_.emplace_back(path);
    collect_tensors();
    return;
  }
  // Symbolic links count as present here, so that the opener can name them in its refusal.
  const auto present = [&](const char* name) {
    return fs::symlink_status(path / name, ignored).type() != fs::file_type::not_found;
  };
  if (present(kIndex)) {
    open_index(path / kIndex);
  } else if (present(kSingle)) {
    files_.emplace_back(path / kSingle, Links::refuse);
    collect_tensors();
  } else {
    throw MissingInputError(fmt::format("{}: holds neither {} nor {}", path.string(), kSingle, kIndex));
  }
}

void SafetensorsFolder::open_index(const fs::path& index_path) {
  const std::string where = index_path.string();
  const WeightMap map = read_index(index_path);
  // Every name is checked before the first is opened.
  for (const std::string& file : map.files) files_.emplace_back(path_ / file, Links::refuse);
  collect_tensors();
  for (const auto& [tensor, file] : map.tensors) {
    const auto at = search(tensor);
    if (!at || file_of_[*at] != file)
      throw DataError(fmt::format("{}: tensor \"{}\" is not in {}, where the index has it", where,
                                  printable(tensor), map.files[file]));
  }
  for (std::size_t i = 0; i < tensors_.size(); ++i)
    if (const std::string& name = tensors_[i]->name; !map.contains(name) && !is_derived_buffer(name))
      throw DataError(fmt::format("{}: tensor \"{}\" of {} is not in the index", where, printable(name),
                                  map.files[file_of_[i]]));
}

void SafetensorsFolder::collect_tensors() {
  struct Place {
    const TensorInfo* info;
    std::uint32_t file;
  };
  std::vector<Place> places;
  for (std::size_t file = 0; file < files_.size(); ++file)
    for (const TensorInfo& info : files_[file].tensors())
      places.push_back({&info, static_cast<std::uint32_t>(file)});
  std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) {
    return std::tie(a.info->name, a.file) < std::tie(b.info->name, b.file);
  });
  for (const Place& place : places) {
    if (!tensors_.empty() && tensors_.back()->name == place.info->name)
      throw DataError(fmt::format(
          "{}: tensor \"{}\" is in two files, {} and {}", path_.string(), printable(place.info->name),
          files_[file_of_.back()].path().filename().string(), files_[place.file].path().filename().string()));
    tensors_.push_back(place.info);
    file_of_.push_back(place.file);
  }
}

std::optional<std::size_t> SafetensorsFolder::search(std::string_view name) const {
  const auto it = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                   [](const TensorInfo* info, std::string_view n) { return info->name < n; });
  if (it == tensors_.end() || (*it)->name != name) return std::nullopt;
  return static_cast<std::size_t>(it - tensors_.begin());
}

bool SafetensorsFolder::contains(std::string_view name) const {
  return search(name).has_value();
}

const TensorInfo& SafetensorsFolder::find(std::string_view name) const {
  return file_of(name).find(name);
}

const SafetensorsFile& SafetensorsFolder::file_of(std::string_view name) const {
  const auto at = search(name);
  if (!at) throw DataError(fmt::format("{}: no tensor \"{}\"", path_.string(), printable(name)));
  return files_[file_of_[*at]];
}

HostTensor SafetensorsFolder::read(std::string_view name) const {
  return file_of(name).read(name);
}

HostTensor SafetensorsFolder::read_rows(std::string_view name, std::int64_t first_row,
                                        std::int64_t num_rows) const {
  return file_of(name).read_rows(name, first_row, num_rows);
}

void SafetensorsFolder::read_into(std::string_view name, std::uint64_t offset,
                                  std::span<std::byte> destination) const {
  file_of(name).read_into(name, offset, destination);
}

}  // namespace farskip
