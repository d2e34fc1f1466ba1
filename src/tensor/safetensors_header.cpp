// SPDX-License-Identifier: Apache-2.0
#include "farskip/tensor/safetensors_header.h"

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "farskip/base/error.h"
#include "farskip/base/file.h"

namespace farskip {
namespace {

constexpr std::array<std::pair<DType, std::string_view>, 12> kNames{{{DType::f64, "F64"},
                                                                     {DType::f32, "F32"},
                                                                     {DType::bf16, "BF16"},
                                                                     {DType::f16, "F16"},
                                                                     {DType::f8_e4m3, "F8_E4M3"},
                                                                     {DType::i64, "I64"},
                                                                     {DType::i32, "I32"},
                                                                     {DType::i16, "I16"},
                                                                     {DType::i8, "I8"},
                                                                     {DType::u16, "U16"},
                                                                     {DType::u8, "U8"},
                                                                     {DType::boolean, "BOOL"}}};

std::string known_dtypes() {
  std::string list;
  for (const auto& [dtype, name] : kNames) list += (list.empty() ? "" : ", ") + std::string(name);
  return list;
}

/// Notes of a program about a file; each costs many times its own bytes.
constexpr std::size_t kMaxMetadata = 10'000;

/// Event handler of the JSON parser. It holds one state per place where the format allows a value and
/// refuses everything else where it stands, so no nesting, number or name can cost more than its own bytes.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderReader(std::string_view where, SafetensorsHeader& header) : where_(where), header_(header) {}

  bool null() override { return refuse_value("null"); }
  bool boolean(bool) override { return refuse_value("a boolean"); }
  bool number_integer(number_integer_t value) override { return refuse_number(std::to_string(value)); }
  bool number_float(number_float_t, const string_t& text) override { return refuse_number(text); }
  bool binary(binary_t&) override { return refuse_value("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
      return refuse_number(std::to_string(value));
    if (place_ == Place::shape) {
      if (dims_.size() == kMaxSafetensorsRank) refuse("more than {} dims in `shape`", kMaxSafetensorsRank);
      dims_.push_back(static_cast<std::int64_t>(value));
      return true;
    }
    if (place_ == Place::offsets) {
      if (num_offsets_ == 2) refuse("`data_offsets` has more than 2 numbers");
      offsets_[num_offsets_++] = value;
      return true;
    }
    return refuse_value("a number");
  }

  bool string(string_t& text) override {
    if (place_ == Place::metadata_value) {
      place_ = Place::metadata;
      if (header_.metadata.size() == kMaxMetadata) refuse("more than {} entries", kMaxMetadata);
      if (!header_.metadata.emplace(key_, text).second) refuse("key \"{}\" given twice", printable(key_));
      return true;
    }
    if (place_ != Place::dtype) return refuse_value("a string");
    place_ = Place::tensor;
    const std::optional<DType> dtype = parse_safetensors_dtype(text);
    if (!dtype) refuse("dtype \"{}\" is not supported; known are {}", printable(text), known_dtypes());
    tensor_.dtype = *dtype;
    return true;
  }

  bool start_object(std::size_t) override {
    if (place_ == Place::start) {
      place_ = Place::root;
    } else if (place_ == Place::tensor_value) {
      place_ = Place::tensor;
      has_dtype_ = has_shape_ = has_offsets_ = false;
      num_offsets_ = 0;
      dims_.clear();
    } else if (place_ == Place::metadata_object) {
      place_ = Place::metadata;
    } else {
      return refuse_value("an object");
    }
    return true;
  }

  bool key(string_t& name) override {
    if (place_ == Place::root) {
      tensor_.name = name;
      place_ = Place::tensor_value;
      if (name == "__metadata__") {
        if (std::exchange(has_metadata_, true)) refuse("given twice");
        place_ = Place::metadata_object;
      }
    } else if (place_ == Place::metadata) {
      key_ = name;
      place_ = Place::metadata_value;
    } else if (name == "dtype") {
      enter(Place::dtype, has_dtype_, name);
    } else if (name == "shape") {
      enter(Place::shape_array, has_shape_, name);
    } else if (name == "data_offsets") {
      enter(Place::offsets_array, has_offsets_, name);
    } else {
      refuse("unknown key \"{}\"; dtype, shape and data_offsets are allowed", printable(name));
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::root) {
      place_ = Place::end;
    } else {
      if (place_ == Place::tensor) finish_tensor();
      place_ = Place::root;
    }
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ == Place::shape_array) {
      place_ = Place::shape;
    } else if (place_ == Place::offsets_array) {
      place_ = Place::offsets;
    } else {
      return refuse_value("an array");
    }
    return true;
  }

  bool end_array() override {
    place_ = Place::tensor;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception& error) override {
    throw DataError(fmt::format("{}: header is not valid JSON at byte {}: {}", where_,
                                position + sizeof(std::uint64_t), printable(error.what(), 300)));
  }

 private:
  enum class Place {
    start,
    root,
    tensor_value,
    tensor,
    dtype,
    shape_array,
    shape,
    offsets_array,
    offsets,
    metadata_object,
    metadata,
    metadata_value,
    end
  };

  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    throw DataError(fmt::format("{}: tensor \"{}\": {}", where_, printable(tensor_.name),
                                fmt::format(format, std::forward<Args>(args)...)));
  }

  bool refuse_value(std::string_view what) const {
    switch (place_) {
      case Place::tensor_value:
        refuse("{} where an object with dtype, shape and data_offsets belongs", what);
      case Place::dtype:
        refuse("{} where the name of a dtype belongs", what);
      case Place::shape_array:
        refuse("{} where the array `shape` belongs", what);
      case Place::offsets_array:
        refuse("{} where the array `data_offsets` belongs", what);
      case Place::shape:
        refuse("{} inside `shape`, where only integers are allowed", what);
      case Place::offsets:
        refuse("{} inside `data_offsets`, where only integers are allowed", what);
      case Place::metadata_object:
        refuse("{} where an object of strings belongs", what);
      case Place::metadata_value:
        refuse("{} under key \"{}\", where a string belongs", what, printable(key_));
      default:
        throw DataError(fmt::format("{}: header is {}, not an object", where_, what));
    }
  }

  bool refuse_number(const std::string& text) const {
    if (place_ != Place::shape && place_ != Place::offsets) return refuse_value("a number");
    refuse("{} in `{}`: an integer from 0 to 2^63-1 is expected", printable(text),
           place_ == Place::shape ? "shape" : "data_offsets");
  }

  void enter(Place place, bool& seen, std::string_view name) {
    if (std::exchange(seen, true)) refuse("key \"{}\" given twice", name);
    place_ = place;
  }

  void finish_tensor() {
    const auto require = [&](bool present, std::string_view name) {
      if (!present) refuse("`{}` is missing", name);
    };
    require(has_dtype_, "dtype");
    require(has_shape_, "shape");
    require(has_offsets_, "data_offsets");
    const Shape shape(dims_);
    if (num_offsets_ != 2) refuse("`data_offsets` has {} numbers, 2 expected", num_offsets_);
    const auto [begin, end] = offsets_;
    if (begin > end) refuse("`data_offsets` [{}, {}] are reversed", begin, end);
    const std::optional<std::uint64_t> bytes = tensor_bytes(tensor_.dtype, shape);
    if (!bytes) refuse("shape {} is larger than any file can hold", shape.text());
    if (end - begin != *bytes)
      refuse("`data_offsets` [{}, {}] span {} bytes, but {} {} takes {}", begin, end, end - begin,
             safetensors_dtype_name(tensor_.dtype), shape.text(), *bytes);
    tensor_.shape = shape;
    tensor_.offset = begin;  // from the start of the data until the whole layout has been checked
    tensor_.num_bytes = *bytes;
    header_.tensors.push_back(std::move(tensor_));
    tensor_ = {};
  }

  std::string_view where_;
  SafetensorsHeader& header_;
  Place place_ = Place::start;
  TensorInfo tensor_;
  std::string key_;
  std::vector<std::int64_t> dims_;
  std::array<std::uint64_t, 2> offsets_{};
  std::size_t num_offsets_ = 0;
  bool has_dtype_ = false, has_shape_ = false, has_offsets_ = false, has_metadata_ = false;
};

/// The data region, `data_size` bytes, must be covered exactly once.
void check_layout(std::vector<TensorInfo>& tensors, std::uint64_t data_size, std::string_view where) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.offset, a.num_bytes) < std::pair(b.offset, b.num_bytes);
  });
  std::uint64_t covered = 0;
  std::string_view previous;
  for (const TensorInfo& tensor : tensors) {
    const std::string name = printable(tensor.name);
    if (tensor.offset + tensor.num_bytes > data_size)
      throw DataError(
          fmt::format("{}: tensor \"{}\": `data_offsets` [{}, {}] reach past the end of the data "
                      "({} bytes); the file is truncated or its header is wrong",
                      where, name, tensor.offset, tensor.offset + tensor.num_bytes, data_size));
    if (tensor.offset < covered)
      throw DataError(
          fmt::format("{}: tensor \"{}\" begins at data byte {} and overlaps tensor \"{}\", which ends "
                      "at {}",
                      where, name, tensor.offset, printable(previous), covered));
    if (tensor.offset > covered)
      throw DataError(
          fmt::format("{}: hole in the data: bytes {} to {} before tensor \"{}\" belong to no tensor", where,
                      covered, tensor.offset, name));
    covered = tensor.offset + tensor.num_bytes;
    previous = tensor.name;
  }
  if (covered != data_size)
    throw DataError(fmt::format("{}: {} trailing bytes after the last tensor", where, data_size - covered));
}

}  // namespace

std::string_view safetensors_dtype_name(DType dtype) {
  for (const auto& [known, name] : kNames)
    if (known == dtype) return name;
  throw InternalError("dtype without a name");
}

std::optional<DType> parse_safetensors_dtype(std::string_view name) {
  for (const auto& [dtype, known] : kNames)
    if (known == name) return dtype;
  return std::nullopt;
}

std::optional<std::uint64_t> tensor_bytes(DType dtype, const Shape& shape) {
  std::int64_t product = static_cast<std::int64_t>(dtype_size(dtype));
  bool empty = false;
  for (const std::int64_t dim : shape.dims()) {
    if (dim == 0) {
      empty = true;
    } else if (__builtin_mul_overflow(product, dim, &product)) {
      return std::nullopt;
    }
  }
  return empty ? 0 : static_cast<std::uint64_t>(product);
}

SafetensorsHeader parse_safetensors_header(std::string_view json, std::uint64_t file_size,
                                           std::string_view where) {
  FARSKIP_CHECK(file_size >= sizeof(std::uint64_t) + json.size(), "header longer than its file");
  // The parser would skip blanks and a byte order mark; the format does not allow them in front.
  if (json.empty() || json.front() != '{')
    throw DataError(fmt::format("{}: header does not begin with '{{'; not a safetensors file", where));
  // Nor a NUL anywhere; the parser would take it for the end and ignore what follows.
  if (const std::size_t nul = json.find('\0'); nul != std::string_view::npos)
    throw DataError(
        fmt::format("{}: header is not valid JSON: NUL byte at byte {}", where, nul + sizeof(std::uint64_t)));
  const std::uint64_t data_begin = sizeof(std::uint64_t) + json.size();
  SafetensorsHeader header;
  // Not more than there can be: growing by doubling would hold the table twice.
  constexpr std::size_t kShortestEntry = 48;
  header.tensors.reserve(std::min(json.size() / kShortestEntry,
                                  static_cast<std::size_t>(std::count(json.begin(), json.end(), '{'))));
  HeaderReader reader(where, header);
  nlohmann::json::sax_parse(json, &reader);
  check_layout(header.tensors, file_size - data_begin, where);
  for (TensorInfo& tensor : header.tensors) tensor.offset += data_begin;
  std::sort(header.tensors.begin(), header.tensors.end(), NameLess{});
  const auto twin =
      std::adjacent_find(header.tensors.begin(), header.tensors.end(),
                         [](const TensorInfo& a, const TensorInfo& b) { return a.name == b.name; });
  if (twin != header.tensors.end())
    throw DataError(fmt::format("{}: tensor \"{}\" given twice", where, printable(twin->name)));
  return header;
}

}  // namespace farskip
