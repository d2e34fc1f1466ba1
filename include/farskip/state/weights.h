// SPDX-License-Identifier: Apache-2.0
#pragma once
// The weights of a model in memory, and their way from and to files in hub layout.

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/base/file.h"
#include "farskip/model/parameters.h"
#include "farskip/tensor/safetensors.h"
#include "farskip/tensor/safetensors_writer.h"

namespace farskip {

using TensorMap = std::map<std::string, HostTensor, std::less<>>;
/// What an optimizer keeps, by kind (state/state_names.h), then by parameter.
using OptimizerStates = std::map<std::string, TensorMap, std::less<>>;
/// Memory of ours that a hub file has as it is, or with the last two of three dims swapped.
struct HubView : TensorView {
  HubView() = default;
  HubView(TensorView view, bool swapped_ = false) : TensorView(std::move(view)), swapped(swapped_) {}
  bool swapped = false;
  Shape stored_shape() const { return swapped ? Shape{shape[0], shape[2], shape[1]} : shape; }
};
using ViewMap = std::map<std::string, HubView>;

/// What a rank holds that holds everything.
std::vector<LocalParameter> whole_parameters(const std::vector<ParameterSpec>& specs);

/// One f32 tensor per parameter, by its name: weights or gradients. Contents are unspecified.
TensorMap make_parameter_tensors(const std::vector<ParameterSpec>& specs);
/// One f32 tensor per parameter for one kind of state of the optimizer: the rows whose state this rank keeps.
/// Of the parameter's shape if that is all rows, else [count, row size], or [count] for a vector; count may
/// be 0. Contents are unspecified.
TensorMap make_optimizer_tensors(const std::vector<LocalParameter>& parameters);
std::size_t total_bytes(const TensorMap& tensors);

/// Matrices: normal with mean 0 and standard deviation `initializer_range`, each element a function of
/// (seed, parameter name, position in the whole parameter) only, whatever part is here; norms: one.
void initialise_weights(TensorMap& weights, const std::vector<LocalParameter>& parameters, std::uint64_t seed,
                        double initializer_range);

/// Fills weights from hub layout (f32, bf16, f16 or f64; experts one tensor each or packed). Of experts, only
/// those here are read. `model`: all parameters, whole; the folder must hold exactly these. DataError naming
/// each tensor that is missing, of another shape, or not part of the model, wherever its experts are.
void load_weights(TensorMap& weights, const std::vector<LocalParameter>& parameters,
                  const std::vector<ParameterSpec>& model, const SafetensorsFolder& folder);

/// Of f32 values.
bool all_finite(const TensorView& values);

/// The same memory cut into hub tensors, each name after `prefix`: experts one by one, or packed where the
/// hub's files have them so.
ViewMap hub_views(const TensorMap& tensors, const std::vector<ParameterSpec>& specs,
                  std::string_view prefix = "");

/// A copy of f32 values as the file has them.
HostTensor hub_tensor(const HubView& view);

/// Writes f32 tensors, converted to `dtype` (f32 or bf16, rounded to nearest even) but for some. DataError
/// for a finite value beyond the range of bf16.
WrittenFile write_tensors(const fs::path& path, const ViewMap& tensors, DType dtype,
                          const std::set<std::string>& kept_in_f32 = {});
/// Names on the hub of what is not trained: routers would choose otherwise by rounded biases.
std::set<std::string> names_kept_in_f32(const std::vector<ParameterSpec>& specs);

}  // namespace farskip
