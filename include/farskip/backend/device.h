// SPDX-License-Identifier: Apache-2.0
#pragma once
// Where plans run: memory, copies, kernels of one device, and recorded runs of plans.

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "farskip/backend/kernel.h"
#include "farskip/base/random.h"

namespace farskip {

/// Work of a device recorded once, to be launched again and again. It holds addresses: these must be the same
/// at every replay. Belongs to the device that made it and must not outlive it.
class Recording {
 public:
  virtual ~Recording() = default;
  /// Launches all of it on the compute stream and returns at once. CUDA: cudaGraphLaunch.
  virtual void replay() = 0;
};

/// Points in time of the compute stream, counted from 0. CUDA: timing events, made once.
class TimeMarks {
 public:
  virtual ~TimeMarks() = default;
  /// The time at which all that was launched before is done. Never waits; may be set again later.
  virtual void set(std::size_t mark) = 0;
  /// From one mark to a later one, both set. Waits until the later one is reached.
  virtual double seconds(std::size_t from, std::size_t to) = 0;
};

/// Edges between the compute stream and the communication stream, counted from 0. Never wait on the host, and
/// may be recorded.
class StreamEdges {
 public:
  virtual ~StreamEdges() = default;
  /// What is launched on the communication stream from now on begins when all that was launched on the
  /// compute stream is done.
  virtual void begin() = 0;
  /// Edge i begins here, on the communication stream.
  virtual void end(std::size_t i) = 0;
  /// What is launched on the compute stream from now on begins when edge i is reached.
  virtual void wait(std::size_t i) = 0;
};

struct DeviceMemory {
  std::size_t total = 0, free = 0;  // bytes; of the whole device, whoever uses it
};

/// One part of a copy from the device.
struct CopyOut {
  void* host;
  const void* device;
  std::size_t bytes;
};

/// A compute stream: everything below that touches device memory happens in the order of the calls, with the
/// kernels that are launched on compute_context()->stream. Beside it a communication stream, tied to it by
/// edges only. Used by one thread at a time.
class Device {
 public:
  virtual ~Device() = default;
  virtual DeviceKind kind() const = 0;
  /// "cpu", or "cuda (NVIDIA H100 80GB HBM3)".
  virtual std::string name() const = 0;
  virtual const KernelTable& kernels() const = 0;
  /// Whether the host may read and write device memory in place: then nothing needs to be copied.
  virtual bool shares_host_memory() const { return kind() == DeviceKind::cpu; }
  virtual DeviceMemory memory() const = 0;

  /// Uninitialised, aligned to 256 bytes (the CPU: 64); released with the last copy of the pointer (then
  /// everything that was launched is waited for first). MemoryError-like UserError naming what was asked for
  /// and what is free where the device has not enough. 0 bytes give a valid pointer.
  virtual std::shared_ptr<std::byte[]> allocate(std::size_t bytes) = 0;
  /// The host memory may be reused on return. CUDA: pieces up to 1 MiB (inputs of a step) go through a ring
  /// of pinned memory and never wait for kernels; larger ones may.
  virtual void copy_in(void* device, const void* host, std::size_t bytes) = 0;
  /// All parts, waited for once; the host memory is filled on return.
  virtual void copy_out(std::span<const CopyOut> parts) = 0;
  void copy_out(void* host, const void* device, std::size_t bytes) {
    const CopyOut part{host, device, bytes};
    copy_out(std::span(&part, 1));
  }
  /// From one place of device memory to another; the two do not overlap. Never waits (cudaMemcpyAsync).
  virtual void copy_within(void* to, const void* from, std::size_t bytes) = 0;
  virtual void fill_zero(void* device, std::size_t bytes) = 0;
  /// Normal numbers in device memory, rounded to its type (f32 or bf16, to nearest even). On the CPU those of
  /// base/random.h to the bit; elsewhere the device's logarithm and sine may differ in the last bit of f64.
  virtual void fill_normal(const TensorView& to, const NormalNumbers& numbers) = 0;
  /// Waits for all that was launched, and throws what went wrong in it.
  virtual void synchronize() = 0;

  /// What kernels launch with; nullptr on the CPU.
  virtual const cuda::LaunchContext* compute_context() const { return nullptr; }
  /// The same for the communication stream, beside which computation runs. Its work goes first where both
  /// want the same multiprocessor.
  virtual const cuda::LaunchContext* communication_context() const { return nullptr; }
  /// `count` edges; nullptr where there is one stream only.
  virtual std::unique_ptr<StreamEdges> make_stream_edges(std::size_t) { return nullptr; }
  /// Number of the GPU in this process; 0 on the CPU.
  virtual int index() const { return 0; }

  /// From begin_recording to end_recording, what is launched on the compute stream (kernels only: no copies
  /// from or to the host, no allocation, no synchronisation) is not run but recorded. Where can_record() is
  /// false (the CPU) the two must not be called. CUDA: cudaStreamBeginCapture with thread-local mode, and
  /// cudaStreamEndCapture + cudaGraphInstantiate; the first replay should pay no upload (cudaGraphUpload).
  virtual bool can_record() const { return false; }
  virtual void begin_recording();
  virtual std::unique_ptr<Recording> end_recording();
  /// After an exception between the two: leaves the recording and forgets it.
  virtual void abandon_recording() noexcept {}

  /// `count` marks. On the CPU a mark is the time of the call of set().
  virtual std::unique_ptr<TimeMarks> make_time_marks(std::size_t count) = 0;
};

/// The host: copies are memcpy, everything is done when it has been called. One instance is enough for a
/// process, but each is complete.
std::shared_ptr<Device> make_cpu_device();
/// GPU `index` of this process. UserError (exit code 64) where this build has no CUDA, there is no GPU, the
/// driver is older than the toolkit, or the card is not of architecture sm_90: each says what was found.
std::shared_ptr<Device> make_cuda_device(int index = 0);
/// Empty where make_cuda_device would give a device; else its message. Never throws.
std::string why_no_cuda_device(int index = 0) noexcept;

}  // namespace farskip
