// SPDX-License-Identifier: Apache-2.0
#include "farskip/state/weights.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "farskip/base/random.h"
#include "farskip/state/model_folder.h"
#include "tensor/columns.h"

namespace farskip {
namespace {

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
    const bool packs_experts = std::any_of(model.begin(), model.end(), [&](const ParameterSpec& spec) {
      return spec.is_expert && folder_.contains(spec.name);
    });
    for (const ParameterSpec& spec : model) {
      if (!spec.packed_transposed.empty() && is_form(spec, spec.packed_transposed, !packs_experts))
        check(spec.packed_transposed, {spec.shape[0], spec.shape[2], spec.shape[1]});
      else if (is_form(spec, spec.name, packs_experts))
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
    throw DataError(text + "\nfetch the weights again, or the config.json that belongs to them");
  }

 private:
  /// Whether a parameter is one tensor of this name in the folder; `usually`: whether experts of which the
  /// folder has nothing should be.
  bool is_form(const ParameterSpec& spec, const std::string& name, bool usually) const {
    if (folder_.contains(name)) return true;
    return usually && spec.is_expert && !folder_.contains(spec.name) &&
           std::none_of(spec.pieces.begin(), spec.pieces.end(),
                        [&](const HubPiece& piece) { return folder_.contains(piece.name); });
  }

  /// The file that says which tensors there are.
  std::string list_name() const {
    const auto& files = files_.files();
    return files.size() == 1 ? files.front().path().filename().string() : "model.safetensors.index.json";
  }

  /// A folder may hold any number of tensors that do not fit; the first few are told.
  template <class Text>
  void add_problem(const Text& text) {
    constexpr std::size_t most_shown = 10;
    if (++num_problems_ <= most_shown) shown_.push_back(text());
  }

  void check(const std::string& name, const Shape& shape) {
    if (!folder_.contains(name)) {
      add_problem([&] { return fmt::format("{}: {} {} is missing", list_name(), name, shape.text()); });
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

}  // namespace

std::vector<LocalParameter> whole_parameters(const std::vector<ParameterSpec>& specs) {
  return local_parameters(specs, {}, false);
}

namespace {

/// The weights of a model fill these; the rest of its states is made of them.
bool is_filled(const StateSpec& spec) {
  return holds_parameter(spec) || is_filled_by_itself(spec);
}

/// Fills a state, part by part where the host cannot write f32 in place. `load`: rows of the rank's part,
/// from one on.
void load_state(States& states, const StateSpec& spec,
                const std::function<void(const TensorView& to, std::int64_t first)>& load) {
  Device& device = states.device();
  const LocalParameter& p = *spec.parameter;
  const TensorView to = states.at(spec.name);
  const Range kept = spec.rows();
  if (device.shares_host_memory() && to.dtype == DType::f32 && kept.count == p.spec.num_rows())
    return load(to, 0);
  for_each_part(p.spec, kept, [&](const Range& wanted, const Range& read) {
    const HostTensor exact(DType::f32, shape_of_rows(p.spec.shape, read.count));
    load(exact.view(), read.first);
    const HostTensor stored = convert_dtype(exact, to.dtype);  // which is `exact` where f32 is kept
    const TensorView from = rows_view(stored.view(), wanted.first - read.first, wanted.count);
    device.copy_in(rows_view(to, wanted.first - kept.first, wanted.count).data, from.data, from.num_bytes());
  });
}

}  // namespace

namespace {

/// Rows that are read together.
std::int64_t unit_of(const ParameterSpec& spec) {
  return spec.packed_transposed.empty() ? 1 : spec.shape[1];
}

}  // namespace

std::int64_t rows_at_once(const ParameterSpec& spec) {
  constexpr std::int64_t most_elements = 16 << 20;
  const std::int64_t unit = unit_of(spec);
  return std::max<std::int64_t>(most_elements / (unit * spec.row_size()), 1) * unit;
}

void for_each_part(const ParameterSpec& spec, const Range& rows,
                   const std::function<void(const Range&, const Range&)>& f) {
  const std::int64_t unit = unit_of(spec), most = rows_at_once(spec);
  const std::int64_t end = (rows.end() + unit - 1) / unit * unit;
  if (rows.count == 0) return;
  for (std::int64_t first = rows.first / unit * unit; first < end; first += most) {
    const Range read{first, std::min(most, end - first)};
    const std::int64_t from = std::max(read.first, rows.first);
    f({from, std::min(read.end(), rows.end()) - from}, read);
  }
}

void initialise_parameter(Device& device, const TensorView& to, const LocalParameter& p, std::int64_t first,
                          std::uint64_t seed, double initializer_range) {
  const ParameterSpec& spec = p.spec;
  if (spec.initializer == Initializer::zeros) return device.fill_zero(to.data, to.num_bytes());
  if (spec.initializer == Initializer::normal) {
    const std::int64_t whole_row = row_size(p.full_shape);
    p.for_each_block(
        first, row_count(to.shape), [&](std::int64_t row, std::int64_t whole, std::int64_t count) {
          device.fill_normal(rows_view(to, row - first, count),
                             {.seed = seed,
                              .stream = stream_id(spec.name),
                              .first = static_cast<std::uint64_t>(whole * whole_row + p.columns.first),
                              .stddev = initializer_range,
                              .row_length = p.has_whole_rows() ? 0 : p.columns.count,
                              .row_stride = whole_row});
        });
    return;
  }
  FARSKIP_CHECK(to.dtype == DType::f32, "the norm {} is {}", spec.name, dtype_name(to.dtype));
  const std::vector<float> ones(static_cast<std::size_t>(to.num_elements()), 1.0F);
  device.copy_in(to.data, ones.data(), to.num_bytes());
}

void initialise_weights(States& states, std::uint64_t seed, double initializer_range) {
  for (const StateSpec& spec : states.specs())
    if (is_filled(spec))
      initialise_parameter(states.device(), states.at(spec.name), *spec.parameter, spec.rows().first, seed,
                           initializer_range);
  make_compute_copies(states);
}

namespace {

/// The columns of a rank's part, of rows that are read whole, some at a time.
void take_columns(const LocalParameter& p, const TensorView& to,
                  const std::function<void(std::int64_t row, const TensorView& whole)>& read_rows) {
  constexpr std::int64_t most_elements = 1 << 20;
  const std::int64_t width = row_size(p.full_shape), own = p.columns.count, rows = row_count(to.shape);
  const std::int64_t at_once = std::clamp<std::int64_t>(most_elements / width, 1, rows);
  const HostTensor buffer(DType::f32, Shape{at_once, width});
  for (std::int64_t row = 0; row < rows; row += at_once) {
    const TensorView whole = rows_view(buffer.view(), 0, std::min(at_once, rows - row));
    read_rows(row, whole);
    copy_columns<float>({whole.as<float>() + p.columns.first, width}, {to.as<float>() + row * own, own},
                        whole.shape[0], own);
  }
}

/// Rows of hub tensor `name` from `row` on, of which this rank has some columns or all.
void load_rows(const TensorView& to, const LocalParameter& p, const ModelFolder& folder,
               std::string_view name, std::int64_t row) {
  const std::int64_t width = row_size(p.full_shape);
  if (p.has_whole_rows()) return folder.read(name, row * width, to);
  take_columns(p, to, [&](std::int64_t first, const TensorView& whole) {
    folder.read(name, (row + first) * width, whole);
  });
}

/// Matrices that the hub has with swapped dims. Of those that are cut, each is read whole.
void load_swapped(const TensorView& to, const LocalParameter& p, const ModelFolder& folder,
                  std::int64_t first) {
  const std::string& name = p.spec.packed_transposed;
  const std::int64_t height = p.full_shape[1], width = p.full_shape[2];
  if (p.spec.shape[1] == height && p.spec.shape[2] == width)
    return p.for_each_block(
        first, row_count(to.shape), [&](std::int64_t row, std::int64_t whole, std::int64_t count) {
          const TensorView part = rows_view(to, row - first, count);
          folder.read_swapped(name, whole / height, {part.data, part.dtype, {count / height, height, width}});
        });
  HostTensor matrix(DType::f32, Shape{1, height, width});
  std::int64_t known = -1;
  p.for_each_block(first, row_count(to.shape), [&](std::int64_t row, std::int64_t whole, std::int64_t count) {
    for (std::int64_t done = 0; done < count;) {
      const std::int64_t at = whole + done, of_this = std::min(count - done, height - at % height);
      if (at / height != known) folder.read_swapped(name, known = at / height, matrix.view());
      const std::int64_t own = p.columns.count;
      copy_columns<float>({matrix.view().as<float>() + at % height * width + p.columns.first, width},
                          {to.as<float>() + (row - first + done) * own, own}, of_this, own);
      done += of_this;
    }
  });
}

}  // namespace

void load_parameter(const TensorView& to, const LocalParameter& p, const ModelFolder& folder,
                    std::int64_t first) {
  const ParameterSpec& spec = p.spec;
  if (const std::int64_t rows = row_count(to.shape), kept = p.padding().first - first; kept < rows) {
    const TensorView padding =
        rows_view(to, std::max<std::int64_t>(kept, 0), rows - std::max<std::int64_t>(kept, 0));
    std::fill_n(padding.as<float>(), padding.num_elements(), 0.0F);
  }
  if (!spec.packed_transposed.empty() && folder.contains(spec.packed_transposed))
    return load_swapped(to, p, folder, first);
  if (folder.contains(spec.name))
    return p.for_each_block(first, row_count(to.shape),
                            [&](std::int64_t row, std::int64_t whole, std::int64_t count) {
                              load_rows(rows_view(to, row - first, count), p, folder, spec.name, whole);
                            });
  const std::int64_t end = first + row_count(to.shape);
  for (const HubPiece& piece : spec.pieces) {
    const std::int64_t from = std::max(first, piece.first_row),
                       upto = std::min(end, piece.first_row + piece.rows().count);
    if (from < upto)
      load_rows(rows_view(to, from - first, upto - from), p, folder, piece.name,
                piece.rows().first + from - piece.first_row);
  }
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
      load_state(states, spec, [&](const TensorView& to, std::int64_t first) {
        load_parameter(to, *spec.parameter, names, first);
      });
  make_compute_copies(states);
}

void write_whole(States& states, std::string_view parameter, const TensorView& whole) {
  for (const StateSpec& spec : states.specs()) {
    const LocalParameter& p = *spec.parameter;
    if (!is_filled(spec) || p.spec.name != parameter) continue;
    FARSKIP_CHECK(whole.shape == p.full_shape, "{} for {} {}", whole.shape.text(), parameter,
                  p.full_shape.text());
    const std::int64_t width = row_size(p.full_shape), own = p.columns.count;
    load_state(states, spec, [&](const TensorView& to, std::int64_t first) {
      std::fill_n(to.as<float>(), to.num_elements(), 0.0F);  // rows of padding stay so
      p.for_each_block(first, row_count(to.shape),
                       [&](std::int64_t row, std::int64_t from, std::int64_t count) {
                         copy_columns<float>({whole.as<float>() + from * width + p.columns.first, width},
                                             {to.as<float>() + (row - first) * own, own}, count, own);
                       });
    });
  }
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
    const bool is_meant =
        (spec.role == role && spec.kind == kind) || (role == Role::weight && is_filled_by_itself(spec));
    if (!is_meant || from == tensors.end()) continue;
    const HostTensor stored = convert_dtype(from->second, spec.dtype);
    const std::int64_t here = row_count(stored.shape()), kept = spec.rows().count;
    FARSKIP_CHECK(here == kept || here == spec.parameter->spec.num_rows(), "{}: {} rows for {}", spec.name,
                  here, kept);
    const TensorView rows = rows_view(stored.view(), here == kept ? 0 : spec.rows().first, kept);
    states.device().copy_in(states.at(spec.name).data, rows.data, spec.num_bytes());
  }
  make_compute_copies(states);
}

bool all_finite(const TensorView& values) {
  if (values.dtype == DType::bf16) {
    constexpr std::uint16_t infinity = 0x7f80;  // all bits of the exponent
    const auto* bits = values.as<std::uint16_t>();
    std::int64_t num_infinite = 0;
#pragma omp simd reduction(+ : num_infinite)
    for (std::int64_t i = 0; i < values.num_elements(); ++i)
      num_infinite += (bits[i] & infinity) == infinity ? 1 : 0;
    return num_infinite == 0;
  }
  float sum = 0;  // x * 0 is NaN where x is not finite
  const float* x = values.as<float>();
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < values.num_elements(); ++i) sum += x[i] * 0.0F;
  return sum == 0;
}

}  // namespace farskip
