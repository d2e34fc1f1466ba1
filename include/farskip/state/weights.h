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
#include "farskip/tensor/safetensors_writer.h"

namespace farskip {

using TensorMap = std::map<std::string, HostTensor, std::less<>>;
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
/// One parameter in f32, this rank's part, of a folder that was checked.
void load_parameter(const TensorView& to, const LocalParameter& parameter, const ModelFolder& folder);

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

/// A copy on the host of f32 values on `device`, as the file has them.
HostTensor hub_tensor(Device& device, const HubView& view);

/// Fills f32 with rows of a parameter from `first_row` on, where a row is its last dim (of a vector: one
/// element). Of a parameter that the hub has with swapped dims only whole matrices are asked for, and `to` is
/// [n, rows, columns].
using RowReader =
    std::function<void(const LocalParameter& parameter, std::int64_t first_row, const TensorView& to)>;
/// Of weights in memory, which must outlive it.
RowReader rows_of(const States& states);
/// Of a folder that was checked, which must outlive it.
RowReader rows_of(const ModelFolder& folder);

/// A tensor of a hub file that is to be written. Its values are made when they are wanted, so that a model
/// may be larger than memory.
struct HubSource {
  using Take = std::function<void(const TensorView& piece)>;

  std::string name;
  Shape shape;                            // as the file has it
  std::string place;                      // of its values, for messages
  bool kept_in_f32 = false;               // a buffer: routers would choose otherwise by rounded biases
  std::function<void(const Take&)> give;  // hands over all values in f32, in order, in pieces of any size
};
/// The hub tensors of a model, in its order: experts one by one, or packed where the hub's files have them
/// so. Pieces are of some 64 MiB, or one matrix with swapped dims if that is more. `place`: of a hub tensor
/// of a parameter.
std::vector<HubSource> hub_sources(
    const std::vector<ParameterSpec>& model, const RowReader& rows,
    const std::function<std::string(const ParameterSpec& spec, const std::string& tensor)>& place);
/// Of weights in memory, which must outlive them.
std::vector<HubSource> hub_sources(const States& states);
/// Where a folder has the values of a hub tensor: "model-00002-of-00004.safetensors: TENSOR".
std::string stored_place(const ModelFolder& folder, const ParameterSpec& spec, const std::string& tensor);

/// source.give; DataError naming the place of a value that is not finite.
void give_finite(const HubSource& source, const HubSource::Take& take);
/// The type of a source in a file, `dtype` being that of weights.
DType stored_dtype(const HubSource& source, DType dtype);
/// Writes f32 tensors one by one, converted to `dtype` (f32 or bf16, rounded to nearest even) but for some.
/// DataError for a value that is not finite, or beyond the range of bf16.
WrittenFile write_tensors(const fs::path& path, std::span<const HubSource> sources, DType dtype);

}  // namespace farskip
