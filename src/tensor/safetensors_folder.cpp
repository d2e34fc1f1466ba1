#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "farskip/base/error.h"
#include "farskip/tensor/safetensors.h"
#include "farskip/tensor/strict_json.h"

namespace farskip {
namespace {

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr std::uint64_t kMaxIndexBytes = 100'000'000;

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
  const nlohmann::json index =
      parse_strict_json(read_text_file(index_path, kMaxIndexBytes, Links::refuse), where);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
    throw DataError(fmt::format("{}: an object `weight_map` from tensor to file name is expected", where));
  const nlohmann::json& weight_map = index["weight_map"];
  std::set<std::string> names;
  for (const auto& [tensor, file] : weight_map.items()) {
    if (!file.is_string())
      throw DataError(fmt::format("{}: file of tensor \"{}\" is not a string", where, printable(tensor)));
    check_file_name(file.get_ref<const std::string&>(), where);
    names.insert(file.get<std::string>());
  }
  // Every name is checked before the first is opened.
  for (const std::string& name : names) files_.emplace_back(path_ / name, Links::refuse);
  collect_tensors();
  for (const auto& [tensor, file] : weight_map.items()) {
    if (!contains(tensor) || file_of(tensor).path().filename() != file.get<std::string>())
      throw DataError(fmt::format("{}: tensor \"{}\" is not in {}, where the index has it", where,
                                  printable(tensor), file.get<std::string>()));
  }
  for (const TensorInfo* tensor : tensors_)
    if (!weight_map.contains(tensor->name) && !is_derived_buffer(tensor->name))
      throw DataError(fmt::format("{}: tensor \"{}\" of {} is not in the index", where,
                                  printable(tensor->name), file_of(tensor->name).path().filename().string()));
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
