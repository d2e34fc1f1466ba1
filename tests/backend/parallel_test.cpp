// SPDX-License-Identifier: Apache-2.0
#include "backend/cpu/parallel.h"

#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

#include "backend/cpu/micro_kernel.h"
#include "support/catch.h"

using namespace farskip::cpu;

TEST_CASE("parallel_for visits every index once") {
  for (const int threads : {1, 2, 3, 7}) {
    omp_set_num_threads(threads);
    for (const std::int64_t n : {0, 1, 2, 5, 1000}) {
      std::vector<int> visits(static_cast<std::size_t>(n), 0);
      parallel_for(n, [&](std::int64_t i) { ++visits[static_cast<std::size_t>(i)]; });
      CHECK(visits == std::vector<int>(static_cast<std::size_t>(n), 1));
    }
  }
  omp_set_num_threads(omp_get_num_procs());
}

TEST_CASE("parallel_ranges covers all indices, the last range shorter") {
  std::vector<int> visits(103, 0);
  parallel_ranges(103, 10, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
  });
  CHECK(visits == std::vector<int>(103, 1));
}

TEST_CASE("an exception of a tile comes out of parallel_for, and the loop can be used again") {
  CHECK_THROWS_WITH(parallel_for(100,
                                 [](std::int64_t i) {
                                   if (i == 37) throw std::runtime_error("tile 37");
                                 }),
                    ContainsSubstring("tile 37"));
  std::atomic<int> count = 0;
  parallel_for(100, [&](std::int64_t) { ++count; });
  CHECK(count == 100);
}

TEST_CASE("parallel_for leaves the caller's thread count alone and runs libraries on one thread") {
  omp_set_num_threads(3);
  for (const std::int64_t n : {1, 4}) {
    parallel_for(n, [&](std::int64_t) {
      int inner = 0;
#pragma omp parallel reduction(+ : inner)
      inner += 1;
      if (inner != 1 || omp_get_max_threads() != 1) throw std::runtime_error("nested threads");
    });
    CHECK(omp_get_max_threads() == 3);
  }
  omp_set_num_threads(omp_get_num_procs());
}

TEST_CASE("a matrix product inside parallel_for has the same bits for every thread count") {
  const std::int64_t m = 70, n = 333, k = 517, tiles = 5;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> a(static_cast<std::size_t>(m * k)), b(static_cast<std::size_t>(k * n));
  for (float& x : a) x = normal(random);
  for (float& x : b) x = normal(random);
  const auto product = [&](int threads, std::int64_t count) {
    omp_set_num_threads(threads);
    std::vector<float> c(static_cast<std::size_t>(count * m * n));
    parallel_for(count, [&](std::int64_t i) {
      multiply_tile(false, false, m, n, k, a.data(), k, b.data(), n, false, c.data() + i * m * n, n);
    });
    return c;
  };
  const std::vector<float> one = product(1, 1);
  for (const int threads : {1, 2, 3, 7})
    for (const std::int64_t count : {std::int64_t{1}, tiles}) {
      const std::vector<float> c = product(threads, count);
      for (std::int64_t i = 0; i < count; ++i)
        CHECK(std::memcmp(c.data() + i * m * n, one.data(), one.size() * sizeof(float)) == 0);
    }
  omp_set_num_threads(omp_get_num_procs());
}
