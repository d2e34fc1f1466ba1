// SPDX-License-Identifier: Apache-2.0
#pragma once
// The weights of a model in memory, and their way from and to files in hub layout.

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/base/file.h"
#include "farskip/state/states.h"
#include "farskip/tensor/safetensors.h"
#include "farskip/tensor/safetensors_writer.h"

namespace farskip {

using TensorMap = std::map<std::string, HostTensor, std::less<>>;
/// Memory of ours, and how a hub file has it.
struct HubView : TensorView {
  HubView() = default;
  HubView(TensorView view, bool swapped_ = false, bool exact_ = false)
      : TensorView(std::move(view)), swapped(swapped_), exact(exact_) {}
  bool swapped = false;  // the last two of three dims are swapped there
  bool exact = false;    // f32 whatever the type of the others: biases that choose experts
  Shape stored_shape() const { return swapped ? Shape{shape[0], shape[2], shape[1]} : shape; }
};
using ViewMap = std::map<std::string, HubView>;

/// What a rank holds that holds everything.
std::vector<LocalParameter> whole_parameters(const std::vector<ParameterSpec>& specs);

/// Fills weights and constants. Matrices: normal with mean 0 and standard deviation `initializer_range`, each
/// element a function of (seed, parameter name, position in the whole parameter) only, whatever part is here;
/// norms: one. Rounded where a state is kept in bf16. Compute copies are made.
void initialise_weights(States& states, std::uint64_t seed, double initializer_range);

/// Fills weights and constants from hub layout (f32, bf16, f16 or f64; experts one tensor each or packed). Of
/// experts, only those here are read. `model`: all parameters, whole; the folder must hold exactly these.
/// DataError naming each tensor that is missing, of another shape, or not part of the model, wherever its
/// experts are. Compute copies are made.
void load_weights(States& states, const std::vector<ParameterSpec>& model, const SafetensorsFolder& folder);
/// The check of load_weights alone: names, shapes, types, and that a head stored beside its embedding is
/// that.
void check_weights_fit(const std::vector<ParameterSpec>& model, const SafetensorsFolder& folder);
/// One parameter in f32, this rank's part, of a folder that was checked.
void load_parameter(const TensorView& to, const LocalParameter& parameter, const SafetensorsFolder& folder);

/// Of f32 values.
bool all_finite(const TensorView& values);

/// States of one role (and kind) on the host, by parameter: copies. For what is done on the host with all of
/// them, such as a comparison.
TensorMap read_states(const States& states, Role role, std::string_view kind = {});
/// The other way, for those that are in the map; compute copies are made.
void write_states(States& states, const TensorMap& tensors, Role role, std::string_view kind = {});

/// The memory of all states of one role, cut into hub tensors, each name after `prefix`: experts one by one,
/// or packed where the hub's files have them so. On the device.
ViewMap hub_views(const States& states, Role role, std::string_view prefix = "");

/// A copy in host memory of f32 values, as a file has them.
HostTensor copy_as_stored(Device& device, const HubView& view);

/// Writes f32 tensors that lie on `device`, one by one, converted to `dtype` (f32 or bf16, rounded to nearest
/// even) unless they are exact. DataError for a finite value beyond the range of bf16.
WrittenFile write_tensors(const fs::path& path, const ViewMap& tensors, DType dtype, Device& device);

}  // namespace farskip
