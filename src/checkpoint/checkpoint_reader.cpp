// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "base/folder.h"
#include "checkpoint/checkpoint_files.h"
#include "farskip/base/error.h"
#include "farskip/tensor/safetensors.h"
#include "tensor/hash.h"

namespace farskip {
namespace {

constexpr const char* kManifest = "manifest.json";
constexpr std::uint64_t kMaxManifestBytes = 1'000'000'000;

}  // namespace

std::vector<std::string> check_checkpoint_files(const fs::path& path, const CheckpointManifest& manifest) {
  for (const auto& [name, file] : manifest.files)
    if (const std::uint64_t size = InputFile(path / name, Links::refuse).size(); size != file.size)
      throw DataError(
          fmt::format("{}: has {} bytes, the manifest says {}", (path / name).string(), size, file.size));
  std::vector<std::string> others = list_entries(path);
  std::erase_if(others,
                [&](const std::string& name) { return name == kManifest || manifest.files.contains(name); });
  return others;
}

bool is_checkpoint(const fs::path& folder) {
  return has_entry(folder, kManifest);
}

void refuse_bare_checkpoint(const fs::path& folder) {
  std::error_code ignored;
  const fs::path real = fs::canonical(folder, ignored);  // whatever it was called: ".", a link
  const std::string name = real.filename().string();
  const std::size_t dot = std::min(name.find('.'), name.size());
  const std::string_view state =
      std::string_view(name).substr(dot);  // of a folder that is no longer, or not yet
  const bool known = state.empty() || state.starts_with(".tmp-") || state.starts_with(".damaged-") ||
                     state.starts_with(".replaced-");
  if (known && parse_step_name(std::string_view(name).substr(0, dot)) && !is_checkpoint(folder))
    throw DataError(
        fmt::format("{}: a checkpoint without its {}, so nothing tells whether it is whole; restore that "
                    "file, or use another checkpoint",
                    folder.string(), kManifest));
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
  checkpoint.strays_ = check_checkpoint_files(path, manifest);
  checkpoint.verify_files(verify);
  for (const auto& [file_name, file] : manifest.files)
    if (const fs::path file_path = path / file_name; file_path.extension() == ".safetensors")
      checkpoint.files_.emplace(file_name, std::make_shared<SafetensorsFile>(file_path, Links::refuse));
  checkpoint.check_pieces();
  return checkpoint;
}

void Checkpoint::verify_files(Verify verify) const {
  if (verify == Verify::layout) return;
  std::set<std::string> checked_by_piece;
  if (verify == Verify::used) {
    for (const auto& [name, tensor] : manifest_.tensors)
      for (const TensorPiece& piece : tensor.pieces) checked_by_piece.insert(piece.file);
    for (const auto& [name, tensor] : manifest_.tensors)
      for (const TensorPiece& piece : tensor.pieces)
        if (piece.hash.empty()) checked_by_piece.erase(piece.file);
  }
  for (const auto& [name, file] : manifest_.files)
    if (!checked_by_piece.contains(name)) verify_file(name);
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
    read_piece(piece, static_cast<std::uint64_t>(begin - piece.first_row) * row_bytes,
               out.bytes().subspan(static_cast<std::uint64_t>(begin - first_row) * row_bytes,
                                   static_cast<std::uint64_t>(end - begin) * row_bytes));
  }
  return out;
}

// The whole piece passes through the hash, in the order of the file: what is wanted of it goes to its place,
// what is before and behind it to scratch memory.
void Checkpoint::read_piece(const TensorPiece& piece, std::uint64_t offset,
                            std::span<std::byte> destination) const {
  constexpr std::uint64_t most = std::uint64_t{1} << 20;
  const SafetensorsFile& file = *files_.at(piece.file);
  if (piece.hash.empty()) return file.read_into(piece.name, offset, destination);
  Hasher hasher;
  std::vector<std::byte> scratch;
  const auto pass_over = [&](std::uint64_t from, std::uint64_t to) {
    scratch.resize(std::min(most, std::max<std::uint64_t>(scratch.size(), to - from)));
    for (; from < to; from += std::min(most, to - from)) {
      const std::span<std::byte> part = std::span(scratch).first(std::min(most, to - from));
      file.read_into(piece.name, from, part);
      hasher.update(part);
    }
  };
  pass_over(0, offset);
  file.read_into(piece.name, offset, destination);
  hasher.update(destination);
  pass_over(offset + destination.size(), file.find(piece.name).num_bytes);
  if (hasher.hex() != piece.hash)
    throw DataError(fmt::format(
        "{}: tensor \"{}\" has hash {}, the manifest says {}; damaged, or from another checkpoint",
        file.path().string(), printable(piece.name), hasher.hex(), printable(piece.hash)));
}

}  // namespace farskip
