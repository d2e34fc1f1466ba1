// SPDX-License-Identifier: Apache-2.0
// One GPU: its stream, library handles and memory.
#include "farskip/backend/device.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <cudnn.h>

#include <algorithm>

#include "backend/cuda/context.h"
#include "backend/cuda/handle.h"
#include "backend/cuda/info.h"
#include "backend/cuda/late_libraries.h"
#include "backend/cuda/library_check.h"
#include "backend/cuda/library_plans.h"
#include "backend/cuda/pinned_ring.h"
#include "backend/cuda/random.h"

namespace farskip {

void register_cuda_kernels(KernelTable& table);  // generated from the files of src/backend/cuda

namespace cuda {
namespace {

using Stream = Handle<cudaStream_t, cudaStreamDestroy>;
using BlasHandle = Handle<cublasLtHandle_t, cublasLtDestroy>;
using DnnHandle = Handle<cudnnHandle_t, cudnnDestroy>;
using RecordedGraph = Handle<cudaGraph_t, cudaGraphDestroy>;
using RunnableGraph = Handle<cudaGraphExec_t, cudaGraphExecDestroy>;

std::string version_text(int version) {  // 13010 → "13.1"
  return version <= 0 ? std::string() : fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

int driver_version() {
  int version = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess) version = 0;
  return version;
}

/// Number of GPUs, or why there is none.
struct Count {
  int gpus = 0;
  std::string problem;
};
Count count_gpus() {
  Count count;
  const cudaError_t status = cudaGetDeviceCount(&count.gpus);
  if (status == cudaSuccess && count.gpus > 0) return count;
  cudaGetLastError();  // the error is told here, and must not come up again after the next launch
  count.gpus = 0;
  const int driver = driver_version();
  const std::string toolkit = version_text(CUDART_VERSION);
  if (status == cudaSuccess || status == cudaErrorNoDevice) {
    count.problem =
        "no GPU was found: the driver is there, but shows no device to this process; look at nvidia-smi and "
        "CUDA_VISIBLE_DEVICES, or use the CPU (device=cpu, or --device cpu)";
  } else if (driver == 0) {
    count.problem = fmt::format(
        "no NVIDIA driver was found; install one that supports CUDA {} (nvidia-smi then lists the GPU), or "
        "use the CPU (device=cpu, or --device cpu)",
        toolkit);
  } else if (status == cudaErrorInsufficientDriver) {
    count.problem = fmt::format(
        "the NVIDIA driver supports CUDA {} and is older than the toolkit this was built with, {}; install a "
        "newer driver",
        version_text(driver), toolkit);
  } else {
    count.problem =
        fmt::format("no GPU can be used: {} ({})", cudaGetErrorName(status), cudaGetErrorString(status));
  }
  return count;
}

std::string architecture_text(const cudaDeviceProp& properties) {
  return fmt::format("{}.{}", properties.major, properties.minor);
}

/// Empty where the card is one that this is built for.
std::string architecture_problem(int index, const cudaDeviceProp& properties) {
  if (properties.major == 9 && properties.minor == 0) return {};
  return fmt::format(
      "GPU {} is a {} of architecture {}; this build runs on architecture 9.0 only (H100, H200, GH200), "
      "which is "
      "what it is tested on",
      index, properties.name, architecture_text(properties));
}

cudaDeviceProp properties_of(int index) {
  cudaDeviceProp properties{};
  FARSKIP_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  return properties;
}

/// Why GPU `index` cannot be used; empty where it can.
std::string device_problem(int index) {
  const Count count = count_gpus();
  if (!count.problem.empty()) return count.problem;
  if (index < 0 || index >= count.gpus)
    return fmt::format("there is no GPU {}: this process sees {}, numbered from 0", index, count.gpus);
  return architecture_problem(index, properties_of(index));
}

double gib(std::size_t bytes) {
  return static_cast<double>(bytes) / (1 << 30);
}

class CudaRecording final : public Recording {
 public:
  CudaRecording(RunnableGraph graph, cudaStream_t stream) : graph_(std::move(graph)), stream_(stream) {}
  void replay() override { FARSKIP_CUDA_CHECK(cudaGraphLaunch(graph_.get(), stream_)); }

 private:
  RunnableGraph graph_;
  cudaStream_t stream_;
};

class CudaTimeMarks final : public TimeMarks {
 public:
  CudaTimeMarks(std::size_t count, cudaStream_t stream) : marks_(count), stream_(stream) {
    for (Event& mark : marks_) FARSKIP_CUDA_CHECK(cudaEventCreate(mark.address()));
  }
  void set(std::size_t mark) override { FARSKIP_CUDA_CHECK(cudaEventRecord(marks_[mark].get(), stream_)); }
  double seconds(std::size_t from, std::size_t to) override {
    FARSKIP_CUDA_CHECK(cudaEventSynchronize(marks_[to].get()));
    float milliseconds = 0;
    FARSKIP_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, marks_[from].get(), marks_[to].get()));
    return static_cast<double>(milliseconds) * 1e-3;
  }

 private:
  std::vector<Event> marks_;
  cudaStream_t stream_;
};

class CudaStreamEdges final : public StreamEdges {
 public:
  CudaStreamEdges(std::size_t count, cudaStream_t compute, cudaStream_t communication)
      : ends_(count), compute_(compute), communication_(communication) {
    FARSKIP_CUDA_CHECK(cudaEventCreateWithFlags(begin_.address(), cudaEventDisableTiming));
    for (Event& end : ends_)
      FARSKIP_CUDA_CHECK(cudaEventCreateWithFlags(end.address(), cudaEventDisableTiming));
  }
  void begin() override {
    FARSKIP_CUDA_CHECK(cudaEventRecord(begin_.get(), compute_));
    FARSKIP_CUDA_CHECK(cudaStreamWaitEvent(communication_, begin_.get(), 0));
  }
  void end(std::size_t i) override { FARSKIP_CUDA_CHECK(cudaEventRecord(ends_[i].get(), communication_)); }
  void wait(std::size_t i) override { FARSKIP_CUDA_CHECK(cudaStreamWaitEvent(compute_, ends_[i].get(), 0)); }

 private:
  Event begin_;
  std::vector<Event> ends_;
  cudaStream_t compute_, communication_;
};

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int index) : index_(index) {
    const cudaDeviceProp properties = properties_of(index);
    name_ = fmt::format("cuda ({})", properties.name);
    use();
    FARSKIP_CUDA_CHECK(cudaStreamCreateWithFlags(stream_.address(), cudaStreamNonBlocking));
    FARSKIP_CUDA_CHECK(cublasLtCreate(blas_.address()));
    FARSKIP_CUDA_CHECK(cudnnCreate(dnn_.address()));
    FARSKIP_CUDA_CHECK(cudnnSetStream(dnn_.get(), stream_.get()));
    context_ = {.stream = stream_.get(),
                .blas = blas_.get(),
                .dnn = dnn_.get(),
                .plans = &plans_,
                .num_multiprocessors = properties.multiProcessorCount};
    int lowest = 0, highest = 0;
    FARSKIP_CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
    FARSKIP_CUDA_CHECK(
        cudaStreamCreateWithPriority(communication_stream_.address(), cudaStreamNonBlocking, highest));
    communication_context_ = {.stream = communication_stream_.get(),
                              .num_multiprocessors = properties.multiProcessorCount};
  }

  DeviceKind kind() const override { return DeviceKind::cuda; }
  std::string name() const override { return name_; }
  const KernelTable& kernels() const override { return cuda_kernel_table(); }
  const LaunchContext* compute_context() const override { return &context_; }
  const LaunchContext* communication_context() const override { return &communication_context_; }
  std::unique_ptr<StreamEdges> make_stream_edges(std::size_t count) override {
    use();
    return std::make_unique<CudaStreamEdges>(count, stream_.get(), communication_stream_.get());
  }
  int index() const override { return index_; }

  DeviceMemory memory() const override {
    use();
    DeviceMemory memory;
    FARSKIP_CUDA_CHECK(cudaMemGetInfo(&memory.free, &memory.total));
    return memory;
  }

  std::shared_ptr<std::byte[]> allocate(std::size_t bytes) override {
    use();
    void* address = nullptr;
    const cudaError_t status = cudaMalloc(&address, std::max<std::size_t>(bytes, 1));
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      const DeviceMemory now = memory();
      throw UsageError(
          fmt::format("{} has too little memory: {} bytes ({:.2f} GiB) were asked for, {} bytes ({:.2f} GiB) "
                      "of {:.2f} GiB are "
                      "free; use a smaller micro-batch, recompute more, or end what else runs on it",
                      name_, bytes, gib(bytes), now.free, gib(now.free), gib(now.total)));
    }
    FARSKIP_CUDA_CHECK(status);
    // cudaFree waits for everything that was launched.
    return {static_cast<std::byte*>(address), [](std::byte* p) { cudaFree(p); }};
  }

  void copy_in(void* device, const void* host, std::size_t bytes) override {
    if (bytes == 0) return;
    use();
    if (bytes <= PinnedRing::kMostPerCopy) return ring_.copy_in(device, host, bytes, stream_.get());
    FARSKIP_CUDA_CHECK(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_.get()));
    synchronize();
  }
  void copy_out(std::span<const CopyOut> parts) override {
    use();
    for (const CopyOut& part : parts)
      if (part.bytes > 0)
        FARSKIP_CUDA_CHECK(
            cudaMemcpyAsync(part.host, part.device, part.bytes, cudaMemcpyDeviceToHost, stream_.get()));
    synchronize();
  }
  void copy_within(void* to, const void* from, std::size_t bytes) override {
    if (bytes == 0 || to == from) return;
    FARSKIP_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_.get()));
  }
  void fill_zero(void* device, std::size_t bytes) override {
    if (bytes > 0) FARSKIP_CUDA_CHECK(cudaMemsetAsync(device, 0, bytes, stream_.get()));
  }
  void fill_normal(const TensorView& to, const NormalNumbers& numbers) override {
    use();
    cuda::fill_normal(context_, to, numbers);
  }
  void synchronize() override { FARSKIP_CUDA_CHECK(cudaStreamSynchronize(stream_.get())); }

  bool can_record() const override { return true; }
  void begin_recording() override {
    use();
    FARSKIP_CUDA_CHECK(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
  }
  std::unique_ptr<Recording> end_recording() override {
    RecordedGraph recorded;
    FARSKIP_CUDA_CHECK(cudaStreamEndCapture(stream_.get(), recorded.address()));
    RunnableGraph runnable;
    FARSKIP_CUDA_CHECK(cudaGraphInstantiate(runnable.address(), recorded.get(), 0));
    FARSKIP_CUDA_CHECK(cudaGraphUpload(runnable.get(), stream_.get()));
    return std::make_unique<CudaRecording>(std::move(runnable), stream_.get());
  }
  void abandon_recording() noexcept override {
    RecordedGraph recorded;
    cudaStreamEndCapture(stream_.get(), recorded.address());
    cudaGetLastError();
  }

  std::unique_ptr<TimeMarks> make_time_marks(std::size_t count) override {
    use();
    return std::make_unique<CudaTimeMarks>(count, stream_.get());
  }

 private:
  /// The runtime remembers a current device for each thread.
  void use() const { FARSKIP_CUDA_CHECK(cudaSetDevice(index_)); }

  int index_;
  std::string name_;
  LibraryPlans plans_;
  Stream stream_, communication_stream_;
  BlasHandle blas_;
  DnnHandle dnn_;
  PinnedRing ring_;
  LaunchContext context_, communication_context_;
};

std::string library_version(std::size_t version) {  // 130100 → "13.1.0"
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

std::string cublas_version() {
  try {
    return library_version(cublasLtGetVersion());
  } catch (const UsageError&) {
    return {};
  }
}

}  // namespace

Info info() {
  Info info{.built = true,
            .toolkit = version_text(CUDART_VERSION),
            .driver = version_text(driver_version()),
            .cublas = cublas_version(),
            .cudnn = library_version(cudnnGetVersion()),
            .nccl = FARSKIP_NCCL_VERSION,
            .unrepeatable = "the gradient of attention in bf16 (cuDNN)",
            .gpus = {},
            .problem = {}};
  const Count count = count_gpus();
  info.problem = count.problem;
  bool usable = false;
  for (int i = 0; i < count.gpus; ++i) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) {
      cudaGetLastError();
      continue;
    }
    info.gpus.push_back({.name = properties.name,
                         .architecture = architecture_text(properties),
                         .memory_bytes = properties.totalGlobalMem,
                         .num_multiprocessors = properties.multiProcessorCount});
    const std::string problem = architecture_problem(i, properties);
    usable = usable || problem.empty();
    if (info.problem.empty()) info.problem = problem;
  }
  if (usable) info.problem.clear();
  return info;
}

}  // namespace cuda

const KernelTable& cuda_kernel_table() {
  static const KernelTable table = [] {
    KernelTable t;
    register_cuda_kernels(t);
    return t;
  }();
  return table;
}

std::string why_no_cuda_device(int index) noexcept {
  try {
    return cuda::device_problem(index);
  } catch (const std::exception& error) {
    return error.what();
  }
}

std::shared_ptr<Device> make_cuda_device(int index) {
  const std::string problem = cuda::device_problem(index);
  if (!problem.empty()) throw UsageError(problem);
  cuda::load_libraries();
  return std::make_shared<cuda::CudaDevice>(index);
}

}  // namespace farskip
