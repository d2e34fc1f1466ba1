// SPDX-License-Identifier: Apache-2.0
#pragma once
// Reading safetensors: one file, or a model folder in hub layout. The header is checked completely before
// anything is allocated by it, and data is read with pread, so a hostile or truncated file gives a
// DataError and nothing worse.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/base/file.h"
#include "farskip/tensor/safetensors_header.h"
#include "farskip/tensor/tensor.h"

namespace farskip {

/// One file, open for reading. Reads are const and may come from several threads at once.
class SafetensorsFile {
 public:
  /// Throws MissingInputError, IoError, or DataError when the header is wrong in any way.
  explicit SafetensorsFile(const fs::path& path, Links links = Links::follow);

  const fs::path& path() const { return file_.path(); }
  std::uint64_t size() const { return file_.size(); }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  /// Ordered by name.
  const std::vector<TensorInfo>& tensors() const { return header_.tensors; }
  bool contains(std::string_view name) const;
  /// Throws DataError naming file and tensor when there is none of that name.
  const TensorInfo& find(std::string_view name) const;

  HostTensor read(std::string_view name) const;
  /// Rows first_row ... first_row + num_rows - 1 of dim 0 (a scalar is one row and stays a scalar).
  HostTensor read_rows(std::string_view name, std::int64_t first_row, std::int64_t num_rows) const;
  /// Fills `destination` from byte `offset` of the tensor; DataError when that reaches past its end.
  void read_into(std::string_view name, std::uint64_t offset, std::span<std::byte> destination) const;

  /// XXH3-128 of the whole file, hex.
  std::string hash() const;

 private:
  InputFile file_;
  SafetensorsHeader header_;
};

/// Buffers that older programs stored beside the weights, though they follow from the config. No reader needs
/// them, and an index may leave them out.
bool is_derived_buffer(std::string_view tensor);

/// A model in hub layout: a folder with `model.safetensors`, or with `model.safetensors.index.json` and the
/// shards it names; or the path of a single .safetensors file. Inside a folder links are refused: an index
/// from elsewhere must not be able to point out of its folder.
class SafetensorsFolder {
 public:
  /// Checks every header, and that index and shards agree: each tensor in exactly one shard, the one named.
  explicit SafetensorsFolder(const fs::path& path);

  const fs::path& path() const { return path_; }
  /// All tensors, ordered by name, as their files describe them; offsets are those in their own file.
  const std::vector<const TensorInfo*>& tensors() const { return tensors_; }
  bool contains(std::string_view name) const;
  const TensorInfo& find(std::string_view name) const;
  /// The file that holds the tensor.
  const SafetensorsFile& file_of(std::string_view name) const;
  /// In the order of their names.
  const std::vector<SafetensorsFile>& files() const { return files_; }

  HostTensor read(std::string_view name) const;
  HostTensor read_rows(std::string_view name, std::int64_t first_row, std::int64_t num_rows) const;
  void read_into(std::string_view name, std::uint64_t offset, std::span<std::byte> destination) const;

 private:
  void open_index(const fs::path& index_path);
  void collect_tensors();
  /// Index into tensors_.
  std::optional<std::size_t> search(std::string_view name) const;

  fs::path path_;
  std::vector<SafetensorsFile> files_;
  std::vector<const TensorInfo*> tensors_;  // of files_
  std::vector<std::uint32_t> file_of_;      // parallel to tensors_
};

}  // namespace farskip
