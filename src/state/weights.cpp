// SPDX-License-Identifier: Apache-2.0
#include "farskip/state/weights.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "farskip/base/random.h"
#include "farskip/state/model_folder.h"

namespace farskip {
namespace {

/// `count` rows of a tensor of f32, as a matrix or a vector.
TensorView rows_view(const TensorView& tensor, std::int64_t first, std::int64_t count) {
  return {tensor.as<float>() + first * row_size(tensor.shape), DType::f32,
          shape_of_rows(tensor.shape, count)};
}

TensorView piece_view(const TensorView& tensor, const HubPiece& piece) {
  TensorView view = rows_view(tensor, piece.first_row, row_count(piece.shape));
  view.shape = piece.shape;
  return view;
}

/// The embedding is the head too.
bool is_tied(const std::vector<ParameterSpec>& model) {
  return std::none_of(model.begin(), model.end(),
                      [](const ParameterSpec& spec) { return spec.name == kHeadName; });
}

/// Compares a folder with a model by names, shapes and types; nothing is read. A problem names the file that
/// holds the tensor.
class FolderCheck {
 public:
  FolderCheck(const SafetensorsFolder& files, const std::vector<ParameterSpec>& model)
      : files_(files), folder_(files, model) {
    const bool tied = is_tied(model);
    for (const ParameterSpec& spec : model) {
      if (!spec.packed_transposed.empty() && folder_.contains(spec.packed_transposed))
        check(spec.packed_transposed, {spec.shape[0], spec.shape[2], spec.shape[1]});
      else if (folder_.contains(spec.name))
        check(spec.name, spec.shape);
      else
        for (const HubPiece& piece : spec.pieces) check(piece.name, piece.shape);
    }
    for (const TensorInfo* info : files.tensors()) {
      const bool twice = tied && info->name == kHeadName;  // a tied head is often stored twice
      if (!twice && !is_derived_buffer(info->name) && !known_.contains(info->name) &&
          !folder_.is_passed_over(info->name))
        add_problem([&] {
          return fmt::format("{}: {} {} is not part of the model",
                             files.file_of(info->name).path().filename().string(), printable(info->name),
                             info->shape.text());
        });
    }
  }

  void throw_if_any() const {
    if (num_problems_ == 0) return;
    std::string text = fmt::format(
        "{}: {} tensors do not fit the model's config.json:", files_.path().string(), num_problems_);
    for (const std::string& problem : shown_) text += "\n  " + problem;
    if (shown_.size() < num_problems_) text += fmt::format("\n  and {} more", num_problems_ - shown_.size());
    throw DataError(text);
  }

 private:
  /// A folder may hold any number of tensors that do not fit; the first few are told.
  template <class Text>
  void add_problem(const Text& text) {
    constexpr std::size_t most_shown = 10;
    if (++num_problems_ <= most_shown) shown_.push_back(text());
  }

  void check(const std::string& name, const Shape& shape) {
    if (!folder_.contains(name)) {
      add_problem([&] { return fmt::format("{} {} is missing", name, shape.text()); });
      return;
    }
    for (std::string& stored : folder_.stored_names(name)) known_.insert(std::move(stored));
    const TensorInfo& info = folder_.find(name);
    if (info.shape != shape)
      add_problem([&] {
        return fmt::format("{} is {}, the model has {}", folder_.place(name), info.shape.text(),
                           shape.text());
      });
    else if (const std::string problem = folder_.storage_problem(name); !problem.empty())
      add_problem([&] { return fmt::format("{} {}", folder_.place(name), problem); });
  }

  const SafetensorsFolder& files_;
  const ModelFolder folder_;
  std::set<std::string> known_;
  std::vector<std::string> shown_;
  std::size_t num_problems_ = 0;
};

/// A head that is stored beside the embedding it is tied to must be that embedding.
void check_tied_head(const std::vector<ParameterSpec>& model, const SafetensorsFolder& folder) {
  const std::string head(kHeadName), embedding(kEmbeddingName);
  if (!is_tied(model) || !folder.contains(head)) return;
  const TensorInfo &a = folder.find(head), &b = folder.find(embedding);
  bool same = a.shape == b.shape && a.dtype == b.dtype;
  const auto bytes = static_cast<std::uint64_t>(a.shape.num_elements()) * dtype_size(a.dtype);
  std::vector<std::byte> left(std::min<std::uint64_t>(bytes, 16 << 20)), right(left.size());
  for (std::uint64_t at = 0; same && at < bytes; at += left.size()) {
    const std::size_t count = std::min<std::uint64_t>(left.size(), bytes - at);
    folder.read_into(head, at, std::span(left).first(count));
    folder.read_into(embedding, at, std::span(right).first(count));
    same = std::equal(left.begin(), left.begin() + static_cast<std::ptrdiff_t>(count), right.begin());
  }
  if (!same)
    throw DataError(
        fmt::format("{}: config.json has tie_word_embeddings: true, but {} is not {}; set it to false, "
                    "or remove the tensor",
                    folder.file_of(head).path().string(), head, embedding));
}

/// Each element is a function of its position, so that several threads may share the work.
void fill_normal_in_parts(std::uint64_t seed, std::uint64_t stream, std::uint64_t first, double range,
                          std::span<float> values) {
  constexpr std::size_t least = std::size_t{1} << 21;  // elements for which a thread is worth its start
  const std::size_t parts =
      std::clamp<std::size_t>(values.size() / least, 1, std::max(1U, std::thread::hardware_concurrency()));
  const std::size_t size = (values.size() + parts - 1) / parts;
  std::vector<std::jthread> threads;
  for (std::size_t begin = 0; begin < values.size(); begin += size) {
    const std::span<float> part = values.subspan(begin, std::min(size, values.size() - begin));
    const auto fill = [=] { fill_normal(seed, stream, first + begin, 0.0, range, part); };
    if (parts == 1)
      fill();
    else
      threads.emplace_back(fill);
  }
}

}  // namespace

std::vector<LocalParameter> whole_parameters(const std::vector<ParameterSpec>& specs) {
  return local_parameters(specs, {}, false);
}

namespace {

bool is_filled(const StateSpec& spec) {
  return spec.role == Role::weight || spec.role == Role::constant;
}

/// Fills a state with f32 values, which it may keep rounded.
void fill_in_f32(States& states, const StateSpec& spec, const std::function<void(const TensorView&)>& fill) {
  fill_from_host(states.device(), states.at(spec.name), [&](const TensorView& to) {
    if (to.dtype == DType::f32) return fill(to);
    const HostTensor exact(DType::f32, to.shape);
    fill(exact.view());
    const HostTensor rounded = convert_dtype(exact, to.dtype);
    std::copy(rounded.bytes().begin(), rounded.bytes().end(), to.bytes().begin());
  });
}

}  // namespace

void initialise_parameter(const TensorView& to, const LocalParameter& p, std::uint64_t seed,
                          double initializer_range) {
  const ParameterSpec& spec = p.spec;
  const std::span<float> values(to.as<float>(), static_cast<std::size_t>(to.num_elements()));
  const auto first = static_cast<std::uint64_t>(p.first_row * spec.row_size());
  if (spec.initializer == Initializer::normal)
    fill_normal_in_parts(seed, stream_id(spec.name), first, initializer_range, values);
  else
    std::fill(values.begin(), values.end(), spec.initializer == Initializer::ones ? 1.0F : 0.0F);
}

void initialise_weights(States& states, std::uint64_t seed, double initializer_range) {
  for (const StateSpec& spec : states.specs())
    if (is_filled(spec))
      fill_in_f32(states, spec, [&](const TensorView& to) {
        initialise_parameter(to, *spec.parameter, seed, initializer_range);
      });
  make_compute_copies(states);
}

namespace {

/// `first` counts the rows of this rank's part.
void load_rows(const TensorView& to, const LocalParameter& p, std::int64_t first, const ModelFolder& folder) {
  const ParameterSpec& spec = p.spec;
  if (!spec.packed_transposed.empty() && folder.contains(spec.packed_transposed))
    return folder.read_swapped(spec.packed_transposed, (p.first_row + first) / spec.shape[1], to);
  if (folder.contains(spec.name)) return folder.read(spec.name, (p.first_row + first) * spec.row_size(), to);
  const std::int64_t end = first + row_count(to.shape);
  for (const HubPiece& piece : spec.pieces) {
    const std::int64_t from = std::max(first, piece.first_row),
                       upto = std::min(end, piece.first_row + row_count(piece.shape));
    if (from < upto)
      folder.read(piece.name, (from - piece.first_row) * spec.row_size(),
                  rows_view(to, from - first, upto - from));
  }
}

}  // namespace

void load_parameter(const TensorView& to, const LocalParameter& p, const ModelFolder& folder) {
  load_rows(to, p, 0, folder);
}

void check_weights_fit(const std::vector<ParameterSpec>& model, const SafetensorsFolder& folder) {
  FolderCheck(folder, model).throw_if_any();
  check_tied_head(model, folder);
}

void load_weights(States& states, const std::vector<ParameterSpec>& model, const SafetensorsFolder& folder) {
  check_weights_fit(model, folder);
  const ModelFolder names(folder, model);
  for (const StateSpec& spec : states.specs())
    if (is_filled(spec))
      fill_in_f32(states, spec, [&](const TensorView& to) { load_parameter(to, *spec.parameter, names); });
  make_compute_copies(states);
}

TensorMap read_states(const States& states, Role role, std::string_view kind) {
  TensorMap tensors;
  for (const StateSpec& spec : states.specs())
    if (spec.role == role && spec.kind == kind)
      tensors.emplace(spec.parameter->spec.name, copy_to_host(states.device(), states.at(spec.name)));
  return tensors;
}

void write_states(States& states, const TensorMap& tensors, Role role, std::string_view kind) {
  for (const StateSpec& spec : states.specs()) {
    const auto from = tensors.find(spec.parameter->spec.name);
    if (spec.role != role || spec.kind != kind || from == tensors.end()) continue;
    FARSKIP_CHECK(from->second.view().num_bytes() == spec.num_bytes(), "{}: {} bytes for {}", spec.name,
                  from->second.view().num_bytes(), spec.num_bytes());
    states.device().copy_in(states.at(spec.name).data, from->second.view().data, spec.num_bytes());
  }
  make_compute_copies(states);
}

bool all_finite(const TensorView& values) {
  float sum = 0;  // x * 0 is NaN where x is not finite
  const float* x = values.as<float>();
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < values.num_elements(); ++i) sum += x[i] * 0.0F;
  return sum == 0;
}

ViewMap hub_views(const States& states, Role role, std::string_view prefix) {
  ViewMap views;
  for (const StateSpec& state : states.specs()) {
    if (state.role != role) continue;
    const ParameterSpec& spec = state.parameter->spec;
    const TensorView tensor = states.at(state.name);
    const auto add = [&](const std::string& name, const HubView& view) {
      views.emplace(std::string(prefix) + name, view);
    };
    if (!spec.packed_transposed.empty())
      add(spec.packed_transposed, {tensor, true});
    else
      for (const HubPiece& piece : spec.pieces) add(piece.name, piece_view(tensor, piece));
  }
  return views;
}

HostTensor hub_tensor(Device& device, const HubView& view) {
  HostTensor here = copy_to_host(device, view);
  if (!view.swapped) return here;
  HostTensor out(DType::f32, view.stored_shape());
  const float* from = here.values<float>().data();
  const std::int64_t rows = view.shape[1], columns = view.shape[2];
  for (std::int64_t i = 0; i < view.shape[0]; ++i)
    swap_dims(from + i * rows * columns, rows, columns, out.values<float>().data() + i * rows * columns);
  return out;
}

RowReader rows_of(const States& states) {
  return [&states](const LocalParameter& p, std::int64_t first_row, const TensorView& to) {
    const TensorView from = rows_view(states.at(p.spec.name), first_row, row_count(to.shape));
    states.device().copy_out(to.data, from.data, to.num_bytes());
  };
}

RowReader rows_of(const ModelFolder& folder) {
  return [&folder](const LocalParameter& p, std::int64_t first_row, const TensorView& to) {
    load_rows(to, p, first_row, folder);
  };
}

namespace {

/// Hands over rows `first` to `first` + `count` - 1.
void give_rows(const RowReader& rows, const LocalParameter& p, std::int64_t first, std::int64_t count,
               const HubSource::Take& take) {
  constexpr std::int64_t most_elements = 16 << 20;
  const std::int64_t at_once = std::clamp<std::int64_t>(most_elements / p.spec.row_size(), 1, count);
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

}  // namespace

std::vector<HubSource> hub_sources(
    const std::vector<ParameterSpec>& model, const RowReader& rows,
    const std::function<std::string(const ParameterSpec& spec, const std::string& tensor)>& place) {
  std::vector<HubSource> sources;
  for (const LocalParameter& local : whole_parameters(model)) {
    const auto p = std::make_shared<const LocalParameter>(local);
    const ParameterSpec& spec = p->spec;
    const auto add = [&](const std::string& name, const Shape& shape,
                         std::function<void(const HubSource::Take&)> give) {
      sources.push_back({name, shape, place(spec, name), !spec.is_trained, std::move(give)});
    };
    if (!spec.packed_transposed.empty())
      add(spec.packed_transposed, {spec.shape[0], spec.shape[2], spec.shape[1]},
          [rows, p](const HubSource::Take& take) { give_swapped(rows, *p, take); });
    else
      for (const HubPiece& piece : spec.pieces)
        add(piece.name, piece.shape,
            [rows, p, first = piece.first_row, count = row_count(piece.shape)](const HubSource::Take& take) {
              give_rows(rows, *p, first, count, take);
            });
  }
  return sources;
}

std::vector<HubSource> hub_sources(const States& states) {
  std::vector<ParameterSpec> model;
  for (const StateSpec& state : states.specs())
    if (state.role == Role::weight) model.push_back(state.parameter->spec);
  return hub_sources(model, rows_of(states), [](const ParameterSpec&, const std::string& tensor) {
    return fmt::format("tensor {}", tensor);
  });
}

std::string stored_place(const ModelFolder& folder, const ParameterSpec& spec, const std::string& tensor) {
  return folder.place(!folder.contains(tensor) && folder.contains(spec.name) ? spec.name : tensor);
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

namespace {

/// Rounds; DataError for a value that becomes infinite.
void round_to_bf16(const TensorView& values, std::string_view tensor, std::vector<std::uint16_t>& to) {
  constexpr std::uint16_t infinity = 0x7f80;  // all bits of the exponent
  to.resize(static_cast<std::size_t>(values.num_elements()));
  const float* from = values.as<float>();
  bool too_large = false;
  for (std::size_t i = 0; i < to.size(); ++i) {
    to[i] = f32_to_bf16(from[i]);
    too_large |= (to[i] & infinity) == infinity;
  }
  if (!too_large) return;
  const auto at =
      std::find_if(to.begin(), to.end(), [](std::uint16_t value) { return (value & infinity) == infinity; });
  throw DataError(
      fmt::format("tensor {}: {} is beyond the range of bf16; write f32", tensor, from[at - to.begin()]));
}

}  // namespace

WrittenFile write_tensors(const fs::path& path, std::span<const HubSource> sources, DType dtype) {
  FARSKIP_CHECK(dtype == DType::f32 || dtype == DType::bf16, "weights are written as f32 or bf16");
  std::vector<TensorSpec> specs;
  std::map<std::string_view, const HubSource*> by_name;
  for (const HubSource& source : sources) {
    specs.push_back({source.name, stored_dtype(source, dtype), source.shape});
    by_name[source.name] = &source;
  }
  SafetensorsWriter writer(path, std::move(specs));
  std::vector<std::uint16_t> rounded;
  for (const TensorInfo& info : writer.tensors()) {
    const HubSource& source = *by_name.at(info.name);
    give_finite(source, [&](const TensorView& piece) {
      if (info.dtype == DType::f32) return writer.write(info.name, piece.bytes());
      round_to_bf16(piece, info.name, rounded);
      writer.write(info.name, std::as_bytes(std::span(rounded)));
    });
  }
  return writer.finish();
}

}  // namespace farskip
