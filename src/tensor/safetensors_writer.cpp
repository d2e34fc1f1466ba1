// SPDX-License-Identifier: Apache-2.0
#include "tensor/safetensors_writer.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <set>

#include "farskip/base/error.h"

namespace farskip {
namespace {

// The reference library's order of dtypes in a file, widest first.
constexpr std::array kFileOrder{DType::i64,     DType::f64, DType::f32, DType::i32,
                                DType::bf16,    DType::f16, DType::u16, DType::i16,
                                DType::f8_e4m3, DType::i8,  DType::u8,  DType::boolean};

std::size_t file_rank(DType dtype) {
  return static_cast<std::size_t>(std::find(kFileOrder.begin(), kFileOrder.end(), dtype) -
                                  kFileOrder.begin());
}

std::string json_string(const std::string& text) {
  return nlohmann::json(text).dump();
}

/// Orders the tensors, fills in their offsets within the data, and returns the padded header.
std::string lay_out(std::vector<TensorInfo>& tensors, const std::map<std::string, std::string>& metadata) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(file_rank(a.dtype), std::string_view(a.name)) <
           std::pair(file_rank(b.dtype), std::string_view(b.name));
  });
  std::string json = "{";
  if (!metadata.empty()) json += "\"__metadata__\":" + nlohmann::json(metadata).dump();
  std::uint64_t offset = 0;
  for (TensorInfo& tensor : tensors) {
    tensor.offset = offset;
    offset += tensor.num_bytes;
    json += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                        json.size() > 1 ? "," : "", json_string(tensor.name),
                        safetensors_dtype_name(tensor.dtype), fmt::join(tensor.shape.dims(), ","),
                        tensor.offset, offset);
  }
  json += "}";
  json.resize((json.size() + 7) / 8 * 8, ' ');
  FARSKIP_CHECK(json.size() <= kMaxSafetensorsHeader, "header of {} bytes; use more shards", json.size());
  return json;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const fs::path& path, std::vector<TensorSpec> specs,
                                     const std::map<std::string, std::string>& metadata)
    : file_(path) {
  std::set<std::string> names{"__metadata__"};
  for (TensorSpec& spec : specs) {
    FARSKIP_CHECK(names.insert(spec.name).second, "tensor name \"{}\" is taken", spec.name);
    const std::optional<std::uint64_t> bytes = tensor_bytes(spec.dtype, spec.shape);
    FARSKIP_CHECK(bytes && spec.shape.rank() <= kMaxSafetensorsRank, "shape {}", spec.shape.text());
    tensors_.push_back({std::move(spec.name), spec.dtype, std::move(spec.shape), 0, *bytes});
  }
  const std::string json = lay_out(tensors_, metadata);
  std::array<std::byte, sizeof(std::uint64_t)> prefix{};
  for (std::size_t i = 0; i < prefix.size(); ++i) prefix[i] = static_cast<std::byte>(json.size() >> (8 * i));
  for (TensorInfo& tensor : tensors_) tensor.offset += prefix.size() + json.size();
  emit(prefix);
  emit(std::as_bytes(std::span(json.data(), json.size())));
}

void SafetensorsWriter::emit(std::span<const std::byte> bytes) {
  file_.write(bytes);
  hasher_.update(bytes);
}

void SafetensorsWriter::write(std::string_view name, std::span<const std::byte> piece) {
  while (current_ < tensors_.size() && tensors_[current_].name != name &&
         written_ == tensors_[current_].num_bytes) {
    ++current_;
    written_ = 0;
  }
  FARSKIP_CHECK(current_ < tensors_.size() && tensors_[current_].name == name, "tensor \"{}\" is not next",
                name);
  FARSKIP_CHECK(piece.size() <= tensors_[current_].num_bytes - written_, "too many bytes for tensor \"{}\"",
                name);
  emit(piece);
  written_ += piece.size();
}

WrittenFile SafetensorsWriter::finish() {
  while (current_ < tensors_.size() && written_ == tensors_[current_].num_bytes) {
    ++current_;
    written_ = 0;
  }
  FARSKIP_CHECK(current_ == tensors_.size(), "tensor \"{}\" is incomplete", tensors_[current_].name);
  file_.commit();
  return {file_.bytes_written(), hasher_.hex()};
}

WrittenFile write_safetensors(const fs::path& path, const std::map<std::string, TensorView>& tensors,
                              const std::map<std::string, std::string>& metadata) {
  std::vector<TensorSpec> specs;
  for (const auto& [name, view] : tensors) specs.push_back({name, view.dtype, view.shape});
  SafetensorsWriter writer(path, std::move(specs), metadata);
  for (const TensorInfo& info : writer.tensors()) writer.write(info.name, tensors.at(info.name).bytes());
  return writer.finish();
}

}  // namespace farskip
