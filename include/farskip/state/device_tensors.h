// SPDX-License-Identifier: Apache-2.0
#pragma once
// Tensors of a step where its plans run, beside the host tensors that they are filled from and saved to.

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/backend/device.h"
#include "farskip/runtime/executor.h"
#include "farskip/state/weights.h"

namespace farskip {

/// Some memory of a device.
struct DeviceBuffer {
  std::shared_ptr<std::byte[]> memory;
  std::size_t bytes = 0;
};
DeviceBuffer allocate_on(Device& device, std::size_t bytes);

/// One device tensor for each host tensor, by its name. On a device that shares the host's memory both are
/// the same memory, and copies do nothing.
class DeviceTensors {
 public:
  /// The host tensors stay referenced: copies of `host` share their memory, so the map itself may go.
  DeviceTensors(std::shared_ptr<Device> device, const TensorMap& host);
  /// In device memory. InternalError for an unknown name.
  TensorView at(std::string_view name) const;
  std::size_t num_bytes() const { return bytes_; }
  void upload() const;
  void download() const;
  void fill_zero() const;

 private:
  std::shared_ptr<Device> device_;
  TensorMap host_;
  std::shared_ptr<std::byte[]> memory_;  // none: the host's
  std::map<std::string, TensorView, std::less<>> views_;
  std::size_t bytes_ = 0;
};

/// The weights of a model on a device, and, for a model that computes in bf16, the bf16 copies that its
/// graphs read instead of matrices (ParameterSpec::has_compute_copy).
class DeviceWeights {
 public:
  /// `host`: a tensor for each of `parameters`. Contents are unspecified until upload(), but where the device
  /// shares the host's memory weights in f32 are there at once.
  DeviceWeights(std::shared_ptr<Device> device, const TensorMap& host,
                const std::vector<LocalParameter>& parameters, DType compute);
  DeviceWeights(const DeviceWeights&) = delete;
  DeviceWeights& operator=(const DeviceWeights&) = delete;

  DType compute() const { return compute_; }
  /// Weights to the device, and their copies made.
  void upload();
  void download() const { weights_.download(); }
  TensorView at(std::string_view parameter) const { return weights_.at(parameter); }
  /// Its compute copy, in the parameter's shape; absent where it has none.
  TensorView copy_of(std::string_view parameter) const;
  /// Binds each parameter and each copy that is an external of the graph, in its own shape.
  void bind(Executor& executor) const;
  std::size_t num_bytes() const { return weights_.num_bytes() + copies_.bytes; }

 private:
  std::shared_ptr<Device> device_;
  DType compute_;
  std::vector<std::string> names_;
  DeviceTensors weights_;
  DeviceBuffer copies_;
  std::map<std::string, TensorView, std::less<>> copy_views_;
  Arena arena_;
  std::unique_ptr<Executor> make_copies_;  // none in f32
};

}  // namespace farskip
