// SPDX-License-Identifier: Apache-2.0
#pragma once
// The weights of a model in memory, and their way from and to files in hub layout.

#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/base/file.h"
#include "farskip/state/model_folder.h"
#include "farskip/state/states.h"
#include "farskip/tensor/safetensors.h"

namespace farskip {

using TensorMap = std::map<std::string, HostTensor, std::less<>>;
/// What a rank holds that holds everything.
std::vector<LocalParameter> whole_parameters(const std::vector<ParameterSpec>& specs);

/// Fills weights and constants. Matrices: normal with mean 0 and standard deviation `initializer_range`, each
/// element a function of (seed, parameter name, position in the whole parameter) only, whatever part is here;
/// norms: one. Rounded where a state is kept in bf16. Compute copies are made.
void initialise_weights(States& states, std::uint64_t seed, double initializer_range);

/// One parameter in f32, this rank's part.
void initialise_parameter(const TensorView& to, const LocalParameter& parameter, std::uint64_t seed,
                          double initializer_range);

/// Fills weights and constants from hub layout (f32, bf16, f16 or f64; experts one tensor each or packed). Of
/// experts, only those here are read. `model`: all parameters, whole; the folder must hold exactly these.
/// DataError naming each tensor that is missing, of another shape, or not part of the model, wherever its
/// experts are. Compute copies are made.
void load_weights(States& states, const std::vector<ParameterSpec>& model, const SafetensorsFolder& folder);
/// The check of load_weights alone: names, shapes, types, and that a head stored beside its embedding is
/// that.
void check_weights_fit(const std::vector<ParameterSpec>& model, const SafetensorsFolder& folder);
/// Rows of one parameter in f32, from row `first` of this rank's part on, of a folder that was checked: as
/// many as `to` has.
void load_parameter(const TensorView& to, const LocalParameter& parameter, const ModelFolder& folder,
                    std::int64_t first = 0);

/// Of f32 values.
bool all_finite(const TensorView& values);

/// States of one role (and kind) on the host, by parameter: copies. For what is done on the host with all of
/// them, such as a comparison.
TensorMap read_states(const States& states, Role role, std::string_view kind = {});
/// The other way, for those that are in the map; compute copies are made.
void write_states(States& states, const TensorMap& tensors, Role role, std::string_view kind = {});

}  // namespace farskip
