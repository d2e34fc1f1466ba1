#include "farskip/train/weights.h"

#include <set>

#include "farskip/base/random.h"

namespace farskip {
namespace {

TensorView piece_view(const HostTensor& tensor, const HubPiece& piece) {
  const auto row_bytes = static_cast<std::size_t>(tensor.shape().rank() == 1 ? 1 : tensor.shape().back()) *
                         dtype_size(tensor.dtype());
  auto* data =
      static_cast<std::byte*>(tensor.view().data) + static_cast<std::size_t>(piece.first_row) * row_bytes;
  return {data, tensor.dtype(), piece.shape};
}

class Loader {
 public:
  explicit Loader(const SafetensorsFolder& folder) : folder_(folder) {}

  void load(const HostTensor& tensor, const ParameterSpec& spec) {
    if (spec.pieces.size() > 1 && folder_.contains(spec.name)) {
      load_piece({tensor.view().data, DType::f32, spec.shape}, spec.name);  // packed, as newer files hold it
      return;
    }
    for (const HubPiece& piece : spec.pieces) load_piece(piece_view(tensor, piece), piece.name);
  }

  void finish(bool tied) {
    for (const TensorInfo& info : folder_.tensors()) {
      // A tied head is often stored twice; buffers of the rotary embedding are derived values.
      const bool derived = info.name.ends_with("rotary_emb.inv_freq") || (tied && info.name == kHeadName);
      if (!derived && !used_.contains(info.name))
        problems_.push_back(fmt::format("{} {} is not part of the model", info.name, info.shape.text()));
    }
    if (problems_.empty()) return;
    const std::size_t shown = std::min<std::size_t>(problems_.size(), 10);
    std::string text = fmt::format(
        "{}: {} tensors do not fit the model's config.json:", folder_.path().string(), problems_.size());
    for (std::size_t i = 0; i < shown; ++i) text += "\n  " + problems_[i];
    if (shown < problems_.size()) text += fmt::format("\n  and {} more", problems_.size() - shown);
    throw DataError(text);
  }

 private:
  void load_piece(const TensorView& destination, const std::string& name) {
    if (!folder_.contains(name)) {
      problems_.push_back(fmt::format("{} {} is missing", name, destination.shape.text()));
      return;
    }
    used_.insert(name);
    const TensorInfo& info = folder_.find(name);
    if (info.shape != destination.shape) {
      problems_.push_back(
          fmt::format("{} is {}, the model has {}", name, info.shape.text(), destination.shape.text()));
    } else if (info.dtype == DType::f32) {
      folder_.read_into(name, 0, destination.bytes());
    } else if (info.dtype == DType::bf16 || info.dtype == DType::f16 || info.dtype == DType::f64) {
      const HostTensor converted = convert_dtype(folder_.read(name), DType::f32);
      std::copy(converted.bytes().begin(), converted.bytes().end(), destination.bytes().begin());
    } else {
      problems_.push_back(
          fmt::format("{} is {}; f32, bf16, f16 and f64 are read", name, dtype_name(info.dtype)));
    }
  }

  const SafetensorsFolder& folder_;
  std::set<std::string> used_;
  std::vector<std::string> problems_;
};

}  // namespace

TensorMap make_parameter_tensors(const std::vector<ParameterSpec>& specs) {
  TensorMap tensors;
  for (const ParameterSpec& spec : specs) tensors.emplace(spec.name, HostTensor(DType::f32, spec.shape));
  return tensors;
}

std::size_t total_bytes(const TensorMap& tensors) {
  std::size_t bytes = 0;
  for (const auto& [name, tensor] : tensors) bytes += tensor.view().num_bytes();
  return bytes;
}

void initialise_weights(TensorMap& weights, const std::vector<ParameterSpec>& specs, std::uint64_t seed,
                        double initializer_range) {
  for (const ParameterSpec& spec : specs) {
    const std::span<float> values = weights.at(spec.name).values<float>();
    if (spec.initializer == Initializer::normal)
      fill_normal(seed, stream_id(spec.name), 0, 0.0, initializer_range, values);
    else
      std::fill(values.begin(), values.end(), spec.initializer == Initializer::ones ? 1.0F : 0.0F);
  }
}

void load_weights(TensorMap& weights, const std::vector<ParameterSpec>& specs,
                  const SafetensorsFolder& folder) {
  Loader loader(folder);
  bool tied = true;
  for (const ParameterSpec& spec : specs) {
    loader.load(weights.at(spec.name), spec);
    tied = tied && spec.name != kHeadName;
  }
  loader.finish(tied);
}

ViewMap hub_views(const TensorMap& tensors, const std::vector<ParameterSpec>& specs,
                  std::string_view prefix) {
  ViewMap views;
  for (const ParameterSpec& spec : specs)
    for (const HubPiece& piece : spec.pieces)
      views.emplace(std::string(prefix) + piece.name, piece_view(tensors.at(spec.name), piece));
  return views;
}

WrittenFile write_tensors(const fs::path& path, const ViewMap& tensors, DType dtype) {
  if (dtype == DType::f32) return write_safetensors(path, tensors);
  FARSKIP_CHECK(dtype == DType::bf16, "weights are written as f32 or bf16");
  std::vector<TensorSpec> specs;
  for (const auto& [name, view] : tensors) specs.push_back({name, dtype, view.shape});
  SafetensorsWriter writer(path, std::move(specs));
  std::vector<std::uint16_t> converted;
  for (const TensorInfo& info : writer.tensors()) {
    const TensorView& view = tensors.at(info.name);
    converted.resize(static_cast<std::size_t>(view.num_elements()));
    for (std::size_t i = 0; i < converted.size(); ++i) converted[i] = f32_to_bf16(view.as<float>()[i]);
    writer.write(info.name, std::as_bytes(std::span(converted)));
  }
  return writer.finish();
}

void write_hub_folder(const fs::path& folder, const ModelConfig& config, const TensorMap& weights,
                      DType dtype, const fs::path& tokenizer) {
  if (fs::exists(folder / "config.json") || fs::exists(folder / "model.safetensors"))
    throw UsageError(
        fmt::format("{} holds a model already; choose another folder or remove it", folder.string()));
  std::error_code failure;
  fs::create_directories(folder, failure);
  if (failure) throw IoError(fmt::format("{}: cannot create folder: {}", folder.string(), failure.message()));
  write_tensors(folder / "model.safetensors", hub_views(weights, list_parameters(config)), dtype);
  if (!tokenizer.empty()) write_text_file(folder / "tokenizer.json", read_text_file(tokenizer));
  std::string text = hub_config_text(config);
  if (dtype == DType::bf16) text.replace(text.find("float32"), 7, "bfloat16");
  write_text_file(folder / "config.json", text);  // last: a folder with it is whole
}

}  // namespace farskip
