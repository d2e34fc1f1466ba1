#pragma once
// Where plans run: memory, copies, kernels of one device.

#include <cstddef>
#include <memory>
#include <string>

#include "farskip/backend/kernel.h"

namespace farskip {

class Device {
 public:
  virtual ~Device() = default;
  virtual DeviceKind kind() const = 0;
  /// "cpu", or "cuda (NVIDIA H100 80GB HBM3)".
  virtual std::string name() const = 0;
  virtual const KernelTable& kernels() const = 0;
  /// Uninitialised, aligned to 256 bytes; released with the last copy of the pointer. MemoryError-like
  /// UserError naming what was asked for and what is free where the device has not enough.
  virtual std::shared_ptr<std::byte[]> allocate(std::size_t bytes) = 0;
  /// Ordered with the kernels of the device's compute stream; the host memory may be reused on return.
  virtual void copy_in(void* device, const void* host, std::size_t bytes) = 0;
  virtual void copy_out(void* host, const void* device, std::size_t bytes) = 0;
  virtual void synchronize() = 0;
  /// nullptr on the CPU.
  virtual const cuda::LaunchContext* compute_context() const { return nullptr; }
};

/// The host: copies are memcpy, everything else is already done.
std::shared_ptr<Device> make_cpu_device();
/// GPU `index` of this process. UserError (exit code 64) where this build has no CUDA, there is no GPU, the
/// driver is older than the toolkit, or the card is not of architecture sm_90: each says what was found.
std::shared_ptr<Device> make_cuda_device(int index = 0);

}  // namespace farskip
