// SPDX-License-Identifier: Apache-2.0
#pragma once
// Every tensor that outlives a step, declared once: what it is called in graphs, what it is for, how much of
// it a rank keeps. Engine, planner and checkpoints walk the same list.

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/model/cache.h"
#include "farskip/model/parameters.h"
#include "farskip/runtime/executor.h"

namespace farskip {

enum class Role : std::uint8_t {
  weight,        // f32, moved by steps
  compute_copy,  // of a weight, in the type that graphs compute in
  gradient,
  optimizer,  // what an optimizer keeps of a weight
  constant,   // what graphs read of a model, or a part of one, that no step changes
  cache,      // of the tokens that a model has read
};

struct StateSpec {
  std::string name;  // of the external in graphs
  Role role = Role::weight;
  DType dtype = DType::f32;
  std::shared_ptr<const LocalParameter> parameter;  // that it belongs to; a cache belongs to none
  bool own_rows_only = false;                       // no other rows than those that this rank updates
  std::string kind{};   // of an optimizer's state: what begins its name (state/state_names.h)
  Shape cache_shape{};  // of a cache

  /// Rows of the parameter that are kept. Count may be 0.
  Range rows() const;
  /// The parameter's if all rows are kept, else [count, row size], or [count] of a vector.
  Shape shape() const;
  std::size_t num_bytes() const;
};
std::size_t total_bytes(std::span<const StateSpec> specs, Role role);
/// Holds the parameter itself, not a copy or what belongs to it.
inline bool holds_parameter(const StateSpec& spec) {
  return spec.role == Role::weight || spec.role == Role::constant;
}

/// A copy of a weight that is not whole here in f32 (ZeRO-2): it cannot be made of that, and is filled as
/// weights are.
bool is_filled_by_itself(const StateSpec& spec);

/// Weights in f32; in bf16 also the copies that graphs read instead of matrices
/// (ParameterSpec::has_compute_copy). The parameter's level of ZeRO says what is kept in own rows alone.
std::vector<StateSpec> weight_states(const std::vector<LocalParameter>& parameters, DType compute);
/// What graphs that compute in `compute` read of a model that stays as it is, each tensor in one type alone.
/// `name`: of the external, from the parameter's read_name(); by default that itself.
std::vector<StateSpec> constant_states(const std::vector<LocalParameter>& parameters, DType compute,
                                       const std::function<std::string(std::string_view)>& name = {});
/// list_caches in so many rows each, in the type that graphs compute in.
std::vector<StateSpec> cache_states(const ModelConfig& config, std::int64_t rows, DType compute,
                                    int tensor_size = 1);

/// The tensors of such a list in the memory of a device, one block a list.
class States {
 public:
  explicit States(std::shared_ptr<Device> device) : device_(std::move(device)) {}
  States(std::shared_ptr<Device> device, std::vector<StateSpec> specs) : States(std::move(device)) {
    add(std::move(specs));
  }
  States(const States&) = delete;
  States& operator=(const States&) = delete;

  /// More of them. Contents are unspecified, but for rows of padding, which are zero.
  void add(std::vector<StateSpec> specs);
  const std::vector<StateSpec>& specs() const { return specs_; }
  Device& device() const { return *device_; }
  const std::shared_ptr<Device>& shared_device() const { return device_; }
  /// In which type matrices are computed with.
  DType compute() const;

  bool contains(std::string_view name) const { return views_.contains(name); }
  /// In device memory. InternalError for an unknown name.
  TensorView at(std::string_view name) const;
  /// Those of its rows that this rank updates, as a matrix [rows, row size] or a vector.
  TensorView own_rows(std::string_view name) const;
  /// Binds each external of the graph that is one of these, or the own rows of one (own_rows_name), in the
  /// shape that the graph gives it.
  void bind(Executor& executor) const;

  std::size_t num_bytes(Role role) const { return total_bytes(specs_, role); }
  std::size_t num_bytes() const;
  void fill_zero(Role role) const;

 private:
  TensorView find(std::string_view external) const;
  void zero_padding(const StateSpec& spec) const;

  std::shared_ptr<Device> device_;
  std::vector<StateSpec> specs_;
  std::vector<std::shared_ptr<std::byte[]>> blocks_;
  std::map<std::string, std::pair<std::size_t, TensorView>, std::less<>> views_;  // with the spec's index
};

/// A copy in host memory.
HostTensor copy_to_host(Device& device, const TensorView& from);

/// Makes the compute copies of the weights that are there now, but those for which is_filled_by_itself.
void make_compute_copies(States& states);

}  // namespace farskip
