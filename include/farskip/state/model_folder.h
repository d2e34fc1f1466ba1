// SPDX-License-Identifier: Apache-2.0
#pragma once
// The tensors of a model folder by the names of a model's parameters, read as f32, however their files have
// them: as part of a larger model, in fp8 with a scale per block, or with swapped dims.

#include <string>
#include <string_view>
#include <vector>

#include "farskip/model/parameters.h"
#include "farskip/tensor/safetensors.h"

namespace farskip {

class ModelFolder {
 public:
  /// A folder that has the embedding of tokens under "language_model." alone holds a model of several kinds
  /// of input: all names have that prefix, and everything outside of it is passed over. `model` says what
  /// else is. `files` must outlive this.
  explicit ModelFolder(const SafetensorsFolder& files, const std::vector<ParameterSpec>& model = {});

  bool contains(std::string_view name) const { return files_.contains(stored_name(name)); }
  const TensorInfo& find(std::string_view name) const { return files_.find(stored_name(name)); }
  /// "model-00002-of-00004.safetensors: model.norm.weight": a tensor and the file that holds it.
  std::string place(std::string_view name) const;

  /// Names in the files of all that belongs to a tensor: itself, and the scales of one in fp8.
  std::vector<std::string> stored_names(std::string_view name) const;
  /// Whether a tensor of the files carries nothing here: of another part of the model, or one of
  /// ParameterSpec::passed_over.
  bool is_passed_over(std::string_view stored) const;
  /// Why the numbers of a tensor that is there cannot be read; empty if they can.
  std::string storage_problem(std::string_view name) const;

  /// Fills f32 from element `first` on, which begins a row.
  void read(std::string_view name, std::int64_t first, const TensorView& to) const;
  /// Fills f32 [n, rows, columns] from a tensor [N, columns, rows], from its matrix `first` on, one matrix
  /// after the other.
  void read_swapped(std::string_view name, std::int64_t first, const TensorView& to) const;

 private:
  std::string stored_name(std::string_view name) const { return prefix_ + std::string(name); }
  void apply_scales(const TensorInfo& info, std::int64_t first, const TensorView& to) const;

  const SafetensorsFolder& files_;
  std::string prefix_;
  std::vector<std::string> passed_over_;
};

/// to[c, r] = from[r, c].
void swap_dims(const float* from, std::int64_t rows, std::int64_t columns, float* to);

}  // namespace farskip
