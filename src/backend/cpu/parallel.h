// SPDX-License-Identifier: Apache-2.0
#pragma once
// The one parallel loop of the CPU kernels. Work is cut into tiles by shape alone and each tile is done
// by one thread in a fixed order, so results do not depend on how many threads there are.

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

#include "backend/cpu/progress.h"

namespace farskip::cpu {

/// f(i) for every i in [0, n), each once, in any order, on any thread. Tiles are handed out one by one, so
/// put the longest first. The first exception of a tile is thrown again here after the loop; tiles not yet
/// started are then left out. Inside f the matrix library runs on the calling thread only.
template <class F>
void parallel_for(std::int64_t n, const F& f) {
  if (n <= 0) return;
  std::atomic<bool> failed = false;
  std::exception_ptr error;
  const auto run = [&](std::int64_t i) noexcept {
    if (failed.load(std::memory_order_relaxed)) return;
    try {
      f(i);
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  };
  // A region of one thread does not count as parallel to the libraries called in it, hence the set call:
  // it lasts until the end of the region. Team sizes other than 1 and all would make libgomp end threads.
#pragma omp parallel num_threads(n == 1 ? 1 : omp_get_max_threads())
  {
    omp_set_num_threads(1);
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < n; ++i) {
      run(i);
      poll_progress();
    }
  }
  if (error) std::rethrow_exception(error);
}

/// f(begin, end) for consecutive ranges of `grain` indices (the last one shorter) that cover [0, n).
template <class F>
void parallel_ranges(std::int64_t n, std::int64_t grain, const F& f) {
  parallel_for((n + grain - 1) / grain, [&](std::int64_t i) { f(i * grain, std::min(n, (i + 1) * grain)); });
}

}  // namespace farskip::cpu
