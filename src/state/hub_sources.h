// SPDX-License-Identifier: Apache-2.0
#pragma once
// Tensors of hub files that are to be written, made of a model's when they are wanted.

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "farskip/base/file.h"
#include "farskip/state/model_folder.h"
#include "farskip/state/states.h"
#include "tensor/safetensors_writer.h"

namespace farskip {

/// Fills f32 with rows of a parameter from `first_row` on, where a row is its last dim (of a vector: one
/// element). Of a parameter that the hub has with swapped dims only whole matrices are asked for.
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
/// so. Pieces are of some 4 MiB, or one matrix with swapped dims if that is more. `place`: of a hub tensor
/// of a parameter.
std::vector<HubSource> hub_sources(
    const std::vector<ParameterSpec>& model, const RowReader& rows,
    const std::function<std::string(const ParameterSpec& spec, const std::string& tensor)>& place);
/// Of this rank's states of one role, in memory, which must outlive them.
std::vector<HubSource> hub_sources(const States& states, Role role = Role::weight);
/// The values of one, as its file has them.
HostTensor read_source(const HubSource& source);
/// Where a folder has the values of a hub tensor: "model-00002-of-00004.safetensors: TENSOR".
std::string stored_place(const ModelFolder& folder, const ParameterSpec& spec, const std::string& tensor);

/// source.give; DataError naming the place of a value that is not finite.
void give_finite(const HubSource& source, const HubSource::Take& take);
/// A copy of f32 values in a file's type, f32 or bf16 (rounded to nearest even): a vector. DataError naming
/// the tensor for a value beyond the range of bf16.
HostTensor stored_values(const TensorView& values, std::string_view tensor, DType dtype);
/// The type of a source in a file, `dtype` being that of weights.
DType stored_dtype(const HubSource& source, DType dtype);
/// Writes f32 tensors one by one, while the next piece is read, converted to `dtype` (f32 or bf16, rounded to
/// nearest even) but for some. DataError for a value that is not finite, or beyond the range of bf16.
WrittenFile write_tensors(const fs::path& path, std::span<const HubSource> sources, DType dtype);

}  // namespace farskip
