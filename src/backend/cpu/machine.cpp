// SPDX-License-Identifier: Apache-2.0
#include "backend/cpu/machine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "backend/cpu/dense/matmul.h"
#include "backend/cpu/parallel.h"
#include "base/environment.h"
#include "farskip/base/error.h"

namespace farskip::cpu {
namespace {

template <class F>
double best_seconds(const F& f) {
  double best = 1e30;
  for (int i = 0; i < 3; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

}  // namespace

const char* instruction_set() {
#if defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__)
  return "AVX2";
#elif defined(__AVX__)
  return "AVX";
#else
  return "baseline";
#endif
}

Measured measure_machine() {
  Measured measured;
  measured.threads = omp_get_max_threads();
  constexpr std::int64_t n = 1024;
  std::vector<float> a(n * n, 0.5F), b(n * n, 0.25F), c(n * n);
  const Product product{
      .m = n, .n = n, .k = n, .a = a.data(), .lda = n, .b = b.data(), .ldb = n, .c = c.data(), .ldc = n};
  measured.matmul_gflops = 2e-9 * n * n * n / best_seconds([&] { multiply(product); });

  constexpr std::int64_t kBytes = std::int64_t{128} << 20, kPieces = 64;
  std::vector<char> from(kBytes, 1), to(kBytes);
  measured.copy_gb_per_second = 2e-9 * kBytes / best_seconds([&] {
                                  parallel_for(kPieces, [&](std::int64_t i) {
                                    const std::int64_t piece = kBytes / kPieces;
                                    std::memcpy(to.data() + i * piece, from.data() + i * piece, piece);
                                  });
                                });
  return measured;
}

int check_threads() {
  constexpr int most = 1024;  // the OpenMP library keeps a team's threads on the stack
  const int threads = omp_get_max_threads();
  if (threads > std::max(most, usable_cores(0)))
    throw UsageError(fmt::format(
        "OMP_NUM_THREADS is {}, and at most {} threads compute; this process may use {} processors", threads,
        most, usable_cores(0)));
  std::atomic<bool> all_there = false;
  std::vector<std::jthread> others;
  try {
    // All but this one; one that watches over the job, and one that writes checkpoints.
    while (static_cast<int>(others.size()) < threads + 1) others.emplace_back([&] { all_there.wait(false); });
  } catch (...) {
    all_there = true;
    all_there.notify_all();
    rethrow_as_error();
  }
  all_there = true;
  all_there.notify_all();
  return threads;
}

int share_cores(int num_ranks, int cores) {
  if (num_ranks > 1 && !environment_variable("OMP_NUM_THREADS"))
    omp_set_num_threads(std::max(1, std::min(cores / num_ranks, usable_cores(0))));
  return omp_get_max_threads();
}

}  // namespace farskip::cpu
