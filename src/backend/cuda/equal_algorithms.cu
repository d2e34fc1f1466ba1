#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "backend/cuda/equal_algorithms.h"
#include "backend/cuda/handle.h"
#include "backend/cuda/launch.cuh"

namespace farskip::cuda {
namespace {

constexpr int kRounds = 3, kRunsOfRound = 2;
constexpr float kClearly = 0.99F;

/// What two equal outputs have in common, and two different ones with near certainty not.
struct Fingerprint {
  unsigned long long sum = 0, nonzero = 0;
  friend bool operator==(const Fingerprint&, const Fingerprint&) = default;
};

/// Sums of whole numbers: in any order the same. The finaliser of splitmix64.
__device__ unsigned long long mix(unsigned long long x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

__global__ void __launch_bounds__(kThreads)
    fingerprint_kernel(const std::uint32_t* words, std::size_t count, Fingerprint* total) {
  unsigned long long sum = 0, nonzero = 0;
  for (std::size_t i = std::size_t(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += std::size_t(gridDim.x) * kThreads) {
    sum += mix((static_cast<unsigned long long>(i) << 32) + words[i]);
    nonzero += words[i] != 0;
  }
  atomicAdd(&total->sum, sum);
  atomicAdd(&total->nonzero, nonzero);
}

/// Memory that is only wanted if there is some.
class Trial {
 public:
  Trial(const LaunchContext& gpu, std::size_t bytes)
      : stream_(gpu.stream), words_((bytes + 3) / 4), blocks_(unsigned(gpu.num_multiprocessors) * 4) {
    std::byte* memory = nullptr;
    if (cudaMalloc(&memory, offset() + sizeof(Fingerprint)) != cudaSuccess) {
      cudaGetLastError();  // it stands until it is read
      return;
    }
    memory_.reset(memory, [](std::byte* p) { cudaFree(p); });
    FARSKIP_CUDA_CHECK(cudaEventCreate(begin_.address()));
    FARSKIP_CUDA_CHECK(cudaEventCreate(end_.address()));
  }
  bool has_memory() const { return memory_ != nullptr; }

  Fingerprint fingerprint(const Alternative& run) const {
    FARSKIP_CUDA_CHECK(cudaMemsetAsync(memory_.get(), 0, offset() + sizeof(Fingerprint), stream_));
    run(memory_.get());
    auto* const total = reinterpret_cast<Fingerprint*>(memory_.get() + offset());
    fingerprint_kernel<<<blocks_, kThreads, 0, stream_>>>(
        reinterpret_cast<const std::uint32_t*>(memory_.get()), words_, total);
    FARSKIP_CUDA_CHECK_LAUNCH();
    Fingerprint result;
    FARSKIP_CUDA_CHECK(cudaMemcpyAsync(&result, total, sizeof(result), cudaMemcpyDeviceToHost, stream_));
    FARSKIP_CUDA_CHECK(cudaStreamSynchronize(stream_));
    return result;
  }
  bool is_mostly_zero(const Fingerprint& print) const { return print.nonzero < words_ / 2; }

  /// Milliseconds of some runs, after one more that keeps the device busy while they are launched.
  float time(const Alternative& run) const {
    run(memory_.get());
    FARSKIP_CUDA_CHECK(cudaEventRecord(begin_.get(), stream_));
    for (int i = 0; i < kRunsOfRound; ++i) run(memory_.get());
    FARSKIP_CUDA_CHECK(cudaEventRecord(end_.get(), stream_));
    FARSKIP_CUDA_CHECK(cudaEventSynchronize(end_.get()));
    float milliseconds = 0.0F;
    FARSKIP_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin_.get(), end_.get()));
    return milliseconds;
  }

 private:
  std::size_t offset() const { return (words_ * 4 + 255) / 256 * 256; }

  CUstream_st* stream_;
  std::size_t words_;
  unsigned blocks_;
  std::shared_ptr<std::byte> memory_;
  Handle<cudaEvent_t, cudaEventDestroy> begin_, end_;
};

}  // namespace

std::size_t quickest_of_equal(const LaunchContext& gpu, std::size_t bytes,
                              std::span<const Alternative> alternatives) {
  if (alternatives.size() < 2) return 0;
  cudaStreamCaptureStatus capture{};
  FARSKIP_CUDA_CHECK(cudaStreamIsCapturing(gpu.stream, &capture));
  if (capture != cudaStreamCaptureStatusNone) return 0;
  const Trial trial(gpu, bytes);
  if (!trial.has_memory()) return 0;
  const Fingerprint first = trial.fingerprint(alternatives[0]);
  if (trial.is_mostly_zero(first)) return 0;
  std::vector<std::size_t> equal{0};
  for (std::size_t i = 1; i < alternatives.size(); ++i)
    if (trial.fingerprint(alternatives[i]) == first) equal.push_back(i);
  std::vector<float> shortest(alternatives.size(), std::numeric_limits<float>::infinity());
  for (int round = 0; round < kRounds && equal.size() > 1; ++round)
    for (const std::size_t i : equal) shortest[i] = std::min(shortest[i], trial.time(alternatives[i]));
  const std::size_t best = *std::min_element(equal.begin(), equal.end(),
                                             [&](auto a, auto b) { return shortest[a] < shortest[b]; });
  return shortest[best] < kClearly * shortest[0] ? best : 0;
}

}  // namespace farskip::cuda
