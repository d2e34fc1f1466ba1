// SPDX-License-Identifier: Apache-2.0
// What running an optimizer beside matrix products gains on this GPU: AdamW over many parameters, on a stream
// of its own and with few blocks, while cuBLASLt products of a training step run one after the other without
// end.
//
//   nvcc -std=c++17 -O3 -arch=sm_90a scripts/bench/beside.cu -lcublasLt -o /tmp/beside && /tmp/beside
//
// Stands alone: no library of the trainer is used. Takes 25 GB of the GPU's memory and some seconds.
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define CHECK(call)                                               \
  do {                                                            \
    if (const auto status = (call); status != 0) {                \
      std::fprintf(stderr, "%s: error %d\n", #call, int(status)); \
      std::exit(1);                                               \
    }                                                             \
  } while (false)

namespace {

constexpr int kThreads = 512;
constexpr std::int64_t kTokens = 16384;
/// kVectors: of four parameters each, 1.26 billion in all.
constexpr std::size_t kVectors = std::size_t{1200} << 18, kElements = std::size_t{400} << 20;
constexpr std::size_t kWorkspace = std::size_t{64} << 20;

/// The traffic of AdamW with a bf16 copy, 30 bytes a parameter, and its arithmetic.
__global__ void __launch_bounds__(kThreads)
    adamw(float4* p, float4* m, float4* v, const float4* g, uint2* low, std::size_t count) {
  const std::size_t stride = std::size_t(gridDim.x) * kThreads;
  for (std::size_t i = std::size_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += 2 * stride) {
    float4 ps[2], ms[2], vs[2], gs[2];
#pragma unroll
    for (int u = 0; u < 2; ++u)
      if (const std::size_t at = i + u * stride; at < count) {
        ps[u] = p[at];
        ms[u] = m[at];
        vs[u] = v[at];
        gs[u] = g[at];
      }
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const std::size_t at = i + u * stride;
      if (at >= count) continue;
      float *pp = &ps[u].x, *mm = &ms[u].x, *vv = &vs[u].x;
      const float* gg = &gs[u].x;
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        mm[q] = 0.9F * mm[q] + 0.1F * gg[q];
        vv[q] = 0.95F * vv[q] + 0.05F * gg[q] * gg[q];
        pp[q] -= 1e-9F * mm[q] / (sqrtf(vv[q]) + 1e-8F);
      }
      p[at] = ps[u];
      m[at] = ms[u];
      v[at] = vs[u];
      const __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(pp[0], pp[1]),
                                       __floats2bfloat162_rn(pp[2], pp[3])};
      low[at] = *reinterpret_cast<const uint2*>(pairs);
    }
  }
}

/// Random values: products of zeros take less power.
__global__ void fill(__nv_bfloat16* x, std::size_t count) {
  for (std::size_t i = std::size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += std::size_t(gridDim.x) * blockDim.x) {
    unsigned z = unsigned(i) * 2654435761U;
    z ^= z >> 13;
    z *= 0x5bd1e995U;
    x[i] = __float2bfloat16(float(z & 0xffff) / 32768.0F - 1.0F);
  }
}

template <class T>
T* allocate(std::size_t count) {
  void* memory = nullptr;
  CHECK(cudaMalloc(&memory, count * sizeof(T)));
  CHECK(cudaMemset(memory, 0, count * sizeof(T)));
  return static_cast<T*>(memory);
}

/// c[m, n] = a[m, k] b[n, k]ᵀ in bf16, row-major.
class Product {
 public:
  Product(cublasLtHandle_t handle, std::int64_t n, std::int64_t k)
      : handle_(handle), flops_(2.0 * kTokens * n * k) {
    CHECK(cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    CHECK(cublasLtMatmulDescSetAttribute(operation_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                         sizeof transposed));
    CHECK(cublasLtMatrixLayoutCreate(&b_, CUDA_R_16BF, k, n, k));
    CHECK(cublasLtMatrixLayoutCreate(&a_, CUDA_R_16BF, k, kTokens, k));
    CHECK(cublasLtMatrixLayoutCreate(&c_, CUDA_R_16BF, n, kTokens, n));
    cublasLtMatmulPreference_t preference;
    CHECK(cublasLtMatmulPreferenceCreate(&preference));
    CHECK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                               &kWorkspace, sizeof kWorkspace));
    cublasLtMatmulHeuristicResult_t found;
    int num_found = 0;
    CHECK(cublasLtMatmulAlgoGetHeuristic(handle, operation_, b_, a_, c_, c_, preference, 1, &found,
                                         &num_found));
    algorithm_ = found.algo;
  }
  double flops() const { return flops_; }
  void run(const void* a, const void* b, void* c, void* workspace, cudaStream_t stream) const {
    const float one = 1.0F, zero = 0.0F;
    CHECK(cublasLtMatmul(handle_, operation_, &one, b, b_, a, a_, &zero, c, c_, c, c_, &algorithm_, workspace,
                         kWorkspace, stream));
  }

 private:
  cublasLtHandle_t handle_;
  double flops_;
  cublasLtMatmulDesc_t operation_;
  cublasLtMatrixLayout_t a_, b_, c_;
  cublasLtMatmulAlgo_t algorithm_;
};

struct Times {
  float products, adamw;  // milliseconds
};

class Bench {
 public:
  Bench() {
    cublasLtHandle_t handle;
    CHECK(cublasLtCreate(&handle));
    // Of DeepSeek-V2-Lite: dense MLP, queries, output projection, shared experts.
    for (const auto& [n, k] :
         {std::pair{21888, 2048}, {2048, 10944}, {3072, 2048}, {2048, 2048}, {5632, 2048}, {2048, 2816}})
      products_.emplace_back(handle, n, k);
    fill<<<1024, 256>>>(a_, kElements);
    fill<<<1024, 256>>>(b_, kElements);
    int lowest = 0, highest = 0;
    CHECK(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
    CHECK(cudaStreamCreateWithPriority(&compute_, cudaStreamNonBlocking, lowest));
    CHECK(cudaStreamCreateWithPriority(&beside_, cudaStreamNonBlocking, highest));
    for (cudaEvent_t* event : {&begin_, &products_done_, &adamw_done_}) CHECK(cudaEventCreate(event));
    CHECK(cudaDeviceSynchronize());
  }

  double flops() const {
    double sum = 0;
    for (const Product& p : products_) sum += p.flops();
    return sum;
  }

  /// Medians of five, after two to warm up; `blocks` 0: no AdamW.
  Times time(int rounds, int blocks) const {
    std::vector<float> products, adamws;
    for (int repeat = -2; repeat < 5; ++repeat) {
      CHECK(cudaDeviceSynchronize());
      CHECK(cudaEventRecord(begin_, compute_));
      CHECK(cudaStreamWaitEvent(beside_, begin_));
      if (blocks > 0) adamw<<<blocks, kThreads, 0, beside_>>>(p_, m_, v_, g_, low_, kVectors);
      for (int r = 0; r < rounds; ++r)
        for (const Product& product : products_) product.run(a_, b_, c_, workspace_, compute_);
      CHECK(cudaEventRecord(products_done_, compute_));
      CHECK(cudaEventRecord(adamw_done_, beside_));
      CHECK(cudaDeviceSynchronize());
      Times t{};
      CHECK(cudaEventElapsedTime(&t.products, begin_, products_done_));
      CHECK(cudaEventElapsedTime(&t.adamw, begin_, adamw_done_));
      if (repeat < 0) continue;
      products.push_back(t.products);
      adamws.push_back(t.adamw);
    }
    std::sort(products.begin(), products.end());
    std::sort(adamws.begin(), adamws.end());
    return {products[2], adamws[2]};
  }

 private:
  std::vector<Product> products_;
  __nv_bfloat16 *a_ = allocate<__nv_bfloat16>(kElements), *b_ = allocate<__nv_bfloat16>(kElements),
                *c_ = allocate<__nv_bfloat16>(kElements);
  std::byte* workspace_ = allocate<std::byte>(kWorkspace);
  float4 *p_ = allocate<float4>(kVectors), *m_ = allocate<float4>(kVectors), *v_ = allocate<float4>(kVectors),
         *g_ = allocate<float4>(kVectors);
  uint2* low_ = allocate<uint2>(kVectors);
  cudaStream_t compute_, beside_;
  cudaEvent_t begin_, products_done_, adamw_done_;
};

}  // namespace

int main() {
  constexpr int kFew = 4, kMany = 20, kAll = 132 * 4;
  const Bench bench;
  const auto rate = [&](int rounds, float milliseconds) {
    return rounds * bench.flops() / milliseconds * 1e-9;
  };
  const auto say_products = [&](int rounds) {
    const float t = bench.time(rounds, 0).products;
    std::printf("products alone, %d rounds: %.1f ms, %.0f TFLOP/s\n", rounds, t, rate(rounds, t));
    return t;
  };
  say_products(kFew);
  const float before = say_products(kMany), alone = bench.time(0, kAll).adamw;
  std::printf("AdamW alone: %.1f ms, %.2f TB/s\n", alone, double(kVectors) * 4 * 30 / alone * 1e-9);
  std::printf("blocks  products ms  AdamW ms  both one after the other ms, by the products before\n");
  for (const int blocks : {16, 24, 32, 48, 64, 96, kAll}) {
    const Times t = bench.time(kMany, blocks);
    std::printf("%6d  %11.1f  %8.1f  %.1f\n", blocks, t.products, t.adamw, before + alone);
  }
  say_products(kMany);
}
