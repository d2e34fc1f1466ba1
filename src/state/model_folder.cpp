// SPDX-License-Identifier: Apache-2.0
#include "farskip/state/model_folder.h"

#include <algorithm>

#include "farskip/base/error.h"

namespace farskip {
namespace {

constexpr std::string_view kTextPart = "language_model.";
// Weights in fp8 (e4m3), as DeepSeek-V3 stores them: each block of 128 x 128 has a factor in NAME_scale_inv.
constexpr std::string_view kScales = "_scale_inv";
constexpr std::int64_t kBlock = 128;

std::int64_t num_blocks(std::int64_t size) {
  return (size + kBlock - 1) / kBlock;
}

/// One factor per block of the last two dims.
Shape scales_shape(const Shape& weight) {
  std::vector<std::int64_t> dims = weight.dims();
  for (std::size_t i = dims.size() - 2; i < dims.size(); ++i) dims[i] = num_blocks(dims[i]);
  return Shape(std::move(dims));
}

bool is_read(DType dtype) {
  return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16 || dtype == DType::f64;
}

}  // namespace

ModelFolder::ModelFolder(const SafetensorsFolder& files, const std::vector<ParameterSpec>& model)
    : files_(files) {
  if (!files.contains(kEmbeddingName) && files.contains(fmt::format("{}{}", kTextPart, kEmbeddingName)))
    prefix_ = kTextPart;
  for (const ParameterSpec& spec : model)
    for (const std::string& beginning : spec.passed_over) passed_over_.push_back(prefix_ + beginning);
}

std::string ModelFolder::place(std::string_view name) const {
  const std::string stored = stored_name(name);
  return fmt::format("{}: {}", files_.file_of(stored).path().filename().string(), printable(stored));
}

std::vector<std::string> ModelFolder::stored_names(std::string_view name) const {
  std::vector<std::string> names{stored_name(name)};
  if (find(name).dtype == DType::f8_e4m3) names.push_back(names.front() + std::string(kScales));
  return names;
}

bool ModelFolder::is_passed_over(std::string_view stored) const {
  return (!prefix_.empty() && !stored.starts_with(prefix_)) ||
         std::any_of(passed_over_.begin(), passed_over_.end(),
                     [&](const std::string& beginning) { return stored.starts_with(beginning); });
}

std::string ModelFolder::storage_problem(std::string_view name) const {
  const TensorInfo& info = find(name);
  if (is_read(info.dtype)) return "";
  if (info.dtype != DType::f8_e4m3)
    return fmt::format("is {}; f32, bf16, f16, f64, and f8_e4m3 with {} are read", dtype_name(info.dtype),
                       kScales);
  const std::string scales = info.name + std::string(kScales);
  if (info.shape.rank() < 2) return "is f8_e4m3, which is read of matrices only";
  if (!files_.contains(scales)) return fmt::format("is f8_e4m3, and {} is missing", scales);
  const TensorInfo& found = files_.find(scales);
  const Shape expected = scales_shape(info.shape);
  if (found.shape != expected || !is_read(found.dtype))
    return fmt::format("is f8_e4m3 {}, and {} is {} {}; f32 {} is read, one factor per block of {} x {}",
                       info.shape.text(), scales, dtype_name(found.dtype), found.shape.text(),
                       expected.text(), kBlock, kBlock);
  return "";
}

void ModelFolder::read(std::string_view name, std::int64_t first, const TensorView& to) const {
  const TensorInfo& info = find(name);
  const std::uint64_t offset = static_cast<std::uint64_t>(first) * dtype_size(info.dtype);
  if (info.dtype == DType::f32) {
    files_.read_into(info.name, offset, to.bytes());
    return;
  }
  // In parts that stay in the caches.
  constexpr std::int64_t most_elements = 1 << 18;
  const std::int64_t width = row_size(to.shape), count = to.num_elements();
  const std::int64_t step = std::min(std::max<std::int64_t>(most_elements / width, 1) * width, count);
  const HostTensor buffer(info.dtype, Shape{step});
  for (std::int64_t at = 0; at < count; at += step) {
    const std::int64_t size = std::min(step, count - at);
    const TensorView stored = rows_view(buffer.view(), 0, size);
    files_.read_into(info.name, offset + static_cast<std::uint64_t>(at) * dtype_size(info.dtype),
                     stored.bytes());
    convert_values(stored, {to.as<float>() + at, DType::f32, Shape{size}});
  }
  if (info.dtype == DType::f8_e4m3) apply_scales(info, first, to);
}

void ModelFolder::apply_scales(const TensorInfo& info, std::int64_t first, const TensorView& to) const {
  const HostTensor scales = convert_dtype(files_.read(info.name + std::string(kScales)), DType::f32);
  const std::int64_t columns = info.shape.back(), rows = info.shape[info.shape.rank() - 2];
  const std::int64_t row_scales = num_blocks(columns), matrix_scales = num_blocks(rows) * row_scales;
  FARSKIP_CHECK(first % columns == 0 && to.num_elements() % columns == 0, "{}: part of a row", info.name);
  for (std::int64_t i = 0; i < to.num_elements() / columns; ++i) {
    const std::int64_t row = first / columns + i;
    const float* factors =
        scales.values<float>().data() + row / rows * matrix_scales + row % rows / kBlock * row_scales;
    float* values = to.as<float>() + i * columns;
    for (std::int64_t c = 0; c < columns; ++c) values[c] *= factors[c / kBlock];
  }
}

void ModelFolder::read_swapped(std::string_view name, std::int64_t first, const TensorView& to) const {
  const std::int64_t rows = to.shape[1], columns = to.shape[2];
  HostTensor matrix(DType::f32, Shape{columns, rows});
  for (std::int64_t i = 0; i < to.shape[0]; ++i) {
    read(name, (first + i) * rows * columns, matrix.view());
    swap_dims(matrix.values<float>().data(), columns, rows, to.as<float>() + i * rows * columns);
  }
}

void swap_dims(const float* from, std::int64_t rows, std::int64_t columns, float* to) {
  constexpr std::int64_t tile = 32;  // both sides stay in the nearest cache
  for (std::int64_t r0 = 0; r0 < rows; r0 += tile)
    for (std::int64_t c0 = 0; c0 < columns; c0 += tile)
      for (std::int64_t r = r0; r < std::min(rows, r0 + tile); ++r)
        for (std::int64_t c = c0; c < std::min(columns, c0 + tile); ++c)
          to[c * rows + r] = from[r * columns + c];
}

}  // namespace farskip
