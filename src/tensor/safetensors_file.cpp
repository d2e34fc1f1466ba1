// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>

#include "farskip/base/error.h"
#include "farskip/tensor/safetensors.h"
#include "tensor/hash.h"

namespace farskip {
namespace {

SafetensorsHeader read_header(const InputFile& file) {
  const std::string where = file.path().string();
  std::array<std::byte, sizeof(std::uint64_t)> prefix{};
  if (file.size() < prefix.size())
    throw DataError(
        fmt::format("{}: {} bytes, too short for a safetensors file (at least 10)", where, file.size()));
  file.read_at(0, prefix);
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < prefix.size(); ++i)
    length |= std::to_integer<std::uint64_t>(prefix[i]) << (8 * i);
  if (length > kMaxSafetensorsHeader)
    throw DataError(fmt::format("{}: header length {} is more than {}; not a safetensors file", where, length,
                                kMaxSafetensorsHeader));
  if (length > file.size() - prefix.size())
    throw DataError(fmt::format("{}: header length {} does not fit the file ({} bytes); truncated?", where,
                                length, file.size()));
  std::string json(length, '\0');
  file.read_at(prefix.size(), std::as_writable_bytes(std::span(json.data(), json.size())));
  return parse_safetensors_header(json, file.size(), where);
}

std::vector<TensorInfo>::const_iterator search(const std::vector<TensorInfo>& tensors,
                                               std::string_view name) {
  const auto it = std::lower_bound(tensors.begin(), tensors.end(), name, NameLess{});
  return it != tensors.end() && it->name == name ? it : tensors.end();
}

}  // namespace

SafetensorsFile::SafetensorsFile(const fs::path& path, Links links)
    : file_(path, links), header_(read_header(file_)) {}

bool SafetensorsFile::contains(std::string_view name) const {
  return search(tensors(), name) != tensors().end();
}

const TensorInfo& SafetensorsFile::find(std::string_view name) const {
  const auto it = search(tensors(), name);
  if (it == tensors().end())
    throw DataError(fmt::format("{}: no tensor \"{}\"", path().string(), printable(name)));
  return *it;
}

HostTensor SafetensorsFile::read(std::string_view name) const {
  const TensorInfo& info = find(name);
  HostTensor tensor(info.dtype, info.shape);
  file_.read_at(info.offset, tensor.bytes());
  return tensor;
}

HostTensor SafetensorsFile::read_rows(std::string_view name, std::int64_t first_row,
                                      std::int64_t num_rows) const {
  const TensorInfo& info = find(name);
  const std::int64_t rows = info.num_rows();
  if (first_row < 0 || num_rows < 0 || first_row > rows || num_rows > rows - first_row)
    throw DataError(fmt::format("{}: tensor \"{}\" has {} rows; {} rows from row {} on are not in it",
                                path().string(), printable(name), rows, num_rows, first_row));
  std::vector<std::int64_t> dims = info.shape.dims();
  if (!dims.empty()) {
    dims[0] = num_rows;
  } else if (num_rows == 0) {
    dims = {0};
  }
  HostTensor tensor(info.dtype, Shape(std::move(dims)));
  const std::uint64_t row_bytes = rows == 0 ? 0 : info.num_bytes / static_cast<std::uint64_t>(rows);
  file_.read_at(info.offset + static_cast<std::uint64_t>(first_row) * row_bytes, tensor.bytes());
  return tensor;
}

void SafetensorsFile::read_into(std::string_view name, std::uint64_t offset,
                                std::span<std::byte> destination) const {
  const TensorInfo& info = find(name);
  if (offset > info.num_bytes || destination.size() > info.num_bytes - offset)
    throw DataError(fmt::format("{}: tensor \"{}\" has {} bytes; {} bytes from byte {} on are not in it",
                                path().string(), printable(name), info.num_bytes, destination.size(),
                                offset));
  file_.read_at(info.offset + offset, destination);
}

std::string SafetensorsFile::hash() const {
  return hash_file(file_);
}

}  // namespace farskip
