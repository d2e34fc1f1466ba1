// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "checkpoint/checkpoint_files.h"
#include "farskip/base/error.h"
#include "farskip/tensor/safetensors_header.h"
#include "tensor/sealed_json.h"

namespace farskip {
namespace {

using nlohmann::json;

constexpr std::string_view kFormat = "farskip-checkpoint";

/// Reads typed fields and says which one is wrong.
struct Reader {
  std::string_view where;

  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    throw DataError(fmt::format("{}: {}", where, fmt::format(format, std::forward<Args>(args)...)));
  }
  const json& field(const json& object, const char* key) const {
    if (!object.is_object() || !object.contains(key)) refuse("`{}` is missing", key);
    return object[key];
  }
  const json& object(const json& parent, const char* key) const {
    if (!field(parent, key).is_object()) refuse("`{}` is not an object", key);
    return parent[key];
  }
  std::int64_t integer(const json& parent, const char* key) const {
    return integer_value(field(parent, key), key);
  }
  std::int64_t integer_value(const json& value, const char* key) const {
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > INT64_MAX)
      refuse("`{}` is {}, an integer from 0 to 2^63-1 is expected", key, printable(value.dump()));
    return value.get<std::int64_t>();
  }
  std::string text(const json& parent, const char* key) const {
    if (!field(parent, key).is_string()) refuse("`{}` is not a string", key);
    return parent[key].get<std::string>();
  }
};

CheckpointTensor parse_tensor(const Reader& reader, const json& value) {
  CheckpointTensor tensor;
  const std::string dtype = reader.text(value, "dtype");
  const std::optional<DType> known = parse_safetensors_dtype(dtype);
  if (!known) reader.refuse("dtype \"{}\" is not supported", printable(dtype));
  tensor.dtype = *known;
  const json& shape = reader.field(value, "shape");
  if (!shape.is_array() || shape.size() > kMaxSafetensorsRank)
    reader.refuse("`shape` is not an array of at most {} integers", kMaxSafetensorsRank);
  std::vector<std::int64_t> dims;
  for (const json& dim : shape) dims.push_back(reader.integer_value(dim, "shape"));
  tensor.shape = Shape(std::move(dims));
  const json& pieces = reader.field(value, "pieces");
  if (!pieces.is_array()) reader.refuse("`pieces` is not an array");
  for (const json& piece : pieces) {
    tensor.pieces.push_back({reader.text(piece, "file"), reader.text(piece, "name"),
                             reader.integer(piece, "first_row"), reader.integer(piece, "num_rows")});
    if (piece.contains("xxh3_128")) tensor.pieces.back().hash = reader.text(piece, "xxh3_128");
  }
  return tensor;
}

/// Pieces lie in known files and cover the rows exactly once, in order.
void check_tensors(const Reader& reader, const CheckpointManifest& manifest) {
  for (const auto& [name, tensor] : manifest.tensors) {
    if (!tensor_bytes(tensor.dtype, tensor.shape))
      reader.refuse("tensor \"{}\": shape {} is too large", printable(name), tensor.shape.text());
    const std::int64_t rows = tensor.shape.rank() == 0 ? 1 : tensor.shape[0];
    std::int64_t covered = 0;
    for (const TensorPiece& piece : tensor.pieces) {
      if (!manifest.files.contains(piece.file))
        reader.refuse("tensor \"{}\": file \"{}\" is not part of the checkpoint", printable(name),
                      printable(piece.file));
      if (piece.first_row != covered || piece.num_rows > rows - covered)
        reader.refuse("tensor \"{}\": {} rows from row {} on do not follow row {} of {}", printable(name),
                      piece.num_rows, piece.first_row, covered, rows);
      covered += piece.num_rows;
    }
    if (covered != rows)
      reader.refuse("tensor \"{}\": pieces hold {} of {} rows", printable(name), covered, rows);
  }
}

}  // namespace

std::string print_manifest(const CheckpointManifest& manifest, const json& state) {
  json files = json::object();
  for (const auto& [name, file] : manifest.files)
    files[name] = {{"size", file.size}, {"xxh3_128", file.hash}};
  json tensors = json::object();
  for (const auto& [name, tensor] : manifest.tensors) {
    json pieces = json::array();
    for (const TensorPiece& piece : tensor.pieces) {
      pieces.push_back({{"file", piece.file},
                        {"name", piece.name},
                        {"first_row", piece.first_row},
                        {"num_rows", piece.num_rows}});
      if (!piece.hash.empty()) pieces.back()["xxh3_128"] = piece.hash;
    }
    tensors[name] = {{"dtype", safetensors_dtype_name(tensor.dtype)},
                     {"shape", tensor.shape.dims()},
                     {"pieces", std::move(pieces)}};
  }
  const json all{{"format", kFormat},         {"version", kCheckpointVersion}, {"step", manifest.step},
                 {"files", std::move(files)}, {"tensors", std::move(tensors)}, {"state", state}};
  return print_sealed(all);
}

CheckpointManifest parse_manifest(std::string_view text, std::string_view where, json& state) {
  const Reader reader{where};
  const json all = parse_sealed(text, where);
  if (const std::string format = reader.text(all, "format"); format != kFormat)
    reader.refuse("`format` is \"{}\", \"{}\" is expected", printable(format), kFormat);
  if (const std::int64_t version = reader.integer(all, "version"); version != kCheckpointVersion)
    reader.refuse("format version {}, this program reads {}", version, kCheckpointVersion);
  CheckpointManifest manifest;
  manifest.step = reader.integer(all, "step");
  for (const auto& [name, value] : reader.object(all, "files").items()) {
    check_file_name(name, where);
    manifest.files[name] = {name, static_cast<std::uint64_t>(reader.integer(value, "size")),
                            reader.text(value, "xxh3_128")};
  }
  for (const auto& [name, value] : reader.object(all, "tensors").items())
    manifest.tensors.emplace(name, parse_tensor(reader, value));
  check_tensors(reader, manifest);
  state = reader.object(all, "state");
  return manifest;
}

}  // namespace farskip
