#pragma once
// The weights of a model in memory, and their way from and to files in hub layout.

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/base/file.h"
#include "farskip/model/parameters.h"
#include "farskip/tensor/safetensors.h"
#include "farskip/tensor/safetensors_writer.h"

namespace farskip {

using TensorMap = std::map<std::string, HostTensor, std::less<>>;
using ViewMap = std::map<std::string, TensorView>;

/// One f32 tensor per parameter, by its name: weights, gradients or moments. Contents are unspecified.
TensorMap make_parameter_tensors(const std::vector<ParameterSpec>& specs);
std::size_t total_bytes(const TensorMap& tensors);

/// Matrices: normal with mean 0 and standard deviation `initializer_range`, each element a function of
/// (seed, parameter name, position) only; norms: one.
void initialise_weights(TensorMap& weights, const std::vector<ParameterSpec>& specs, std::uint64_t seed,
                        double initializer_range);

/// Fills weights from hub layout (f32, bf16 or f16; experts one tensor each or packed). DataError naming
/// each tensor that is missing, of another shape, or not part of the model.
void load_weights(TensorMap& weights, const std::vector<ParameterSpec>& specs,
                  const SafetensorsFolder& folder);

/// The same memory cut into hub tensors, each name after `prefix`.
ViewMap hub_views(const TensorMap& tensors, const std::vector<ParameterSpec>& specs,
                  std::string_view prefix = "");

/// Writes f32 tensors, converted to `dtype` (f32 or bf16, rounded to nearest even).
WrittenFile write_tensors(const fs::path& path, const ViewMap& tensors, DType dtype);

/// Hub-layout folder: config.json, model.safetensors and, unless `tokenizer` is empty, tokenizer.json.
/// UsageError when the folder holds a model already.
void write_hub_folder(const fs::path& folder, const ModelConfig& config, const TensorMap& weights,
                      DType dtype, const fs::path& tokenizer);

}  // namespace farskip
