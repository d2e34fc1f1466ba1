// SPDX-License-Identifier: Apache-2.0
#include "state/hub_sources.h"

#include <algorithm>
#include <map>

#include "base/work_queue.h"
#include "farskip/state/weights.h"

namespace farskip {
namespace {

void copy_rows(const States& states, const TensorView& from, std::int64_t first_row, const TensorView& to) {
  const TensorView rows = rows_view(from, first_row, row_count(to.shape));
  states.device().copy_out(to.data, rows.data, to.num_bytes());
}

}  // namespace

RowReader rows_of(const States& states) {
  return [&states](const LocalParameter& p, std::int64_t first_row, const TensorView& to) {
    copy_rows(states, states.at(p.spec.name), first_row, to);
  };
}

RowReader rows_of(const ModelFolder& folder) {
  return [&folder](const LocalParameter& p, std::int64_t first_row, const TensorView& to) {
    load_parameter(to, p, folder, first_row);
  };
}

namespace {

constexpr std::int64_t kPieceElements = 1 << 20;  // which stay in the caches until they are written

/// Hands over rows `first` to `first` + `count` - 1.
void give_rows(const RowReader& rows, const LocalParameter& p, std::int64_t first, std::int64_t count,
               const HubSource::Take& take) {
  const std::int64_t at_once = std::clamp<std::int64_t>(kPieceElements / p.spec.row_size(), 1, count);
  const HostTensor buffer(DType::f32, shape_of_rows(p.spec.shape, at_once));
  for (std::int64_t row = 0; row < count; row += at_once) {
    const TensorView piece = rows_view(buffer.view(), 0, std::min(at_once, count - row));
    rows(p, first + row, piece);
    take(piece);
  }
}

/// Hands over the matrices of [n, rows, columns] with their dims swapped.
void give_swapped(const RowReader& rows, const LocalParameter& p, const HubSource::Take& take) {
  const std::int64_t height = p.spec.shape[1], width = p.spec.shape[2];
  const HostTensor matrix(DType::f32, Shape{1, height, width}), swapped(DType::f32, Shape{1, width, height});
  for (std::int64_t i = 0; i < p.spec.shape[0]; ++i) {
    rows(p, i * height, matrix.view());
    swap_dims(matrix.values<float>().data(), height, width, swapped.view().as<float>());
    take(swapped.view());
  }
}

void add_sources(std::vector<HubSource>& sources, const LocalParameter& local, const RowReader& rows,
                 const std::function<std::string(const ParameterSpec&, const std::string&)>& place) {
  const auto p = std::make_shared<const LocalParameter>(local);
  const ParameterSpec& spec = p->spec;
  const auto add = [&](const std::string& name, const Shape& shape,
                       std::function<void(const HubSource::Take&)> give) {
    sources.push_back({name, shape, place(spec, name), !spec.is_trained, std::move(give)});
  };
  if (!spec.packed_transposed.empty())
    return add(spec.packed_transposed, {spec.shape[0], spec.shape[2], spec.shape[1]},
               [rows, p](const HubSource::Take& take) { give_swapped(rows, *p, take); });
  for (const HubPiece& piece : spec.pieces)
    add(piece.name, piece.shape,
        [rows, p, first = piece.first_row, count = row_count(piece.shape)](const HubSource::Take& take) {
          give_rows(rows, *p, first, count, take);
        });
}

}  // namespace

std::vector<HubSource> hub_sources(
    const std::vector<ParameterSpec>& model, const RowReader& rows,
    const std::function<std::string(const ParameterSpec& spec, const std::string& tensor)>& place) {
  std::vector<HubSource> sources;
  for (const LocalParameter& p : whole_parameters(model)) add_sources(sources, p, rows, place);
  return sources;
}

std::vector<HubSource> hub_sources(const States& states, Role role) {
  std::vector<HubSource> sources;
  for (const StateSpec& state : states.specs())
    if (state.role == role)
      add_sources(
          sources, *state.parameter,
          [&states, values = states.at(state.name)](const LocalParameter&, std::int64_t first_row,
                                                    const TensorView& to) {
            copy_rows(states, values, first_row, to);
          },
          [](const ParameterSpec&, const std::string& tensor) { return fmt::format("tensor {}", tensor); });
  return sources;
}

HostTensor read_source(const HubSource& source) {
  HostTensor whole(DType::f32, source.shape);
  std::size_t at = 0;
  source.give([&](const TensorView& piece) {
    const auto bytes = piece.bytes();
    std::copy(bytes.begin(), bytes.end(), whole.bytes().begin() + static_cast<std::ptrdiff_t>(at));
    at += bytes.size();
  });
  return whole;
}

std::string stored_place(const ModelFolder& folder, const ParameterSpec& spec, const std::string& tensor) {
  for (const std::string& name : {tensor, spec.name})
    if (folder.contains(name)) return folder.place(name);
  return fmt::format("{} or another of these experts", folder.place(spec.pieces.front().name));
}

void give_finite(const HubSource& source, const HubSource::Take& take) {
  source.give([&](const TensorView& piece) {
    if (!all_finite(piece)) throw DataError(fmt::format("{} holds values that are not finite", source.place));
    take(piece);
  });
}

DType stored_dtype(const HubSource& source, DType dtype) {
  return source.kept_in_f32 ? DType::f32 : dtype;
}

HostTensor stored_values(const TensorView& values, std::string_view tensor, DType dtype) {
  constexpr std::uint16_t infinity = 0x7f80;  // all bits of the exponent of bf16
  // Not values.shape: GCC 13 and 14 take its copy for one of no elements, and warn.
  HostTensor stored(dtype, Shape{values.num_elements()});
  convert_values(values, stored.view());
  if (dtype != DType::bf16 || all_finite(stored.view())) return stored;
  const std::uint16_t* const low = stored.view().as<std::uint16_t>();
  const auto* const at = std::find_if(low, low + values.num_elements(),
                                      [](std::uint16_t value) { return (value & infinity) == infinity; });
  throw DataError(fmt::format("tensor {}: {} is beyond the range of bf16; write f32", tensor,
                              values.as<float>()[at - low]));
}

WrittenFile write_tensors(const fs::path& path, std::span<const HubSource> sources, DType dtype) {
  FARSKIP_CHECK(dtype == DType::f32 || dtype == DType::bf16, "weights are written as f32 or bf16");
  std::vector<TensorSpec> specs;
  std::map<std::string_view, const HubSource*> by_name;
  for (const HubSource& source : sources) {
    specs.push_back({source.name, stored_dtype(source, dtype), source.shape});
    by_name[source.name] = &source;
  }
  SafetensorsWriter writer(path, std::move(specs));
  // Values are read and converted on this thread, hashed and written on the other.
  constexpr std::size_t most_waiting = 4;
  WorkQueue queue(most_waiting);
  for (const TensorInfo& info : writer.tensors())
    give_finite(*by_name.at(info.name), [&](const TensorView& piece) {
      // A matrix with swapped dims comes as a whole, and may be large.
      const std::int64_t count = piece.num_elements();
      for (std::int64_t at = 0; at < count; at += kPieceElements) {
        const TensorView part(piece.as<float>() + at, DType::f32,
                              Shape{std::min(kPieceElements, count - at)});
        queue.post([&writer, &info, values = stored_values(part, info.name, info.dtype)] {
          writer.write(info.name, values.bytes());
        });
      }
    });
  queue.finish();
  return writer.finish();
}

}  // namespace farskip
