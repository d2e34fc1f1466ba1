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
/// norms: one. Rounded where a state is kept in bf16. The device makes them: nothing passes through the host.
/// Compute copies are made.
void initialise_weights(States& states, std::uint64_t seed, double initializer_range);

/// Rows of one parameter in memory of the device, from row `first` of this rank's part on.
void initialise_parameter(Device& device, const TensorView& to, const LocalParameter& parameter,
                          std::int64_t first, std::uint64_t seed, double initializer_range);

/// Rows of a parameter that pass through host memory at once: some 64 MiB in f32, or one matrix if that is
/// more, since the hub may have matrices with swapped dims.
std::int64_t rows_at_once(const ParameterSpec& spec);
/// Calls f(wanted, read) for all `rows` of a parameter, that many at a time: `read` are the wanted ones, and
/// what belongs to the same matrix where the hub may have it with swapped dims.
void for_each_part(const ParameterSpec& spec, const Range& rows,
                   const std::function<void(const Range& wanted, const Range& read)>& f);

/// Fills weights and constants from hub layout (f32, bf16, f16 or f64; experts one tensor each or packed). Of
/// experts, only those here are read. `model`: all parameters, whole; the folder must hold exactly these.
/// DataError naming each tensor that is missing, of another shape, or not part of the model, wherever its
/// experts are. What the host cannot write in place passes through rows_at_once(). Compute copies are made.
void load_weights(States& states, const std::vector<ParameterSpec>& model, const SafetensorsFolder& folder);
/// The check of load_weights alone: names, shapes, types, and that a head stored beside its embedding is
/// that.
void check_weights_fit(const std::vector<ParameterSpec>& model, const SafetensorsFolder& folder);
/// Rows of one parameter in f32, from row `first` of this rank's part on, of a folder that was checked: as
/// many as `to` has.
void load_parameter(const TensorView& to, const LocalParameter& parameter, const ModelFolder& folder,
                    std::int64_t first = 0);

/// Of f32 or bf16 values.
bool all_finite(const TensorView& values);

/// States of one role (and kind) on the host, by parameter: copies. For what is done on the host with all of
/// them, such as a comparison.
TensorMap read_states(const States& states, Role role, std::string_view kind = {});
/// Of a parameter in host memory, whole and in f32, what this rank keeps: of weights and constants, and of
/// copies that are filled as these are. The other compute copies are to be made (make_compute_copies).
void write_whole(States& states, std::string_view parameter, const TensorView& whole);
/// The other way than read_states, for those that are in the map, all rows here or those that are kept;
/// compute copies are made.
void write_states(States& states, const TensorMap& tensors, Role role, std::string_view kind = {});

}  // namespace farskip
