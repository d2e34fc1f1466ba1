// SPDX-License-Identifier: Apache-2.0
#include "backend/cpu/dense/matmul.h"

#include <omp.h>

#include <algorithm>
#include <array>

#include "backend/cpu/micro_kernel.h"
#include "farskip/ops/ops.h"
#include "run_kernel.h"
#include "support/catch.h"

using namespace farskip;
using namespace farskip::test;

namespace {

/// op(a)[m, k] op(b)[k, n] + start, in double.
Doubles slow_product(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
                     const float* a, const float* b, const float* start) {
  Doubles c(static_cast<std::size_t>(m * n));
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t j = 0; j < n; ++j) {
      double sum = start == nullptr ? 0.0 : static_cast<double>(start[i * n + j]);
      for (std::int64_t p = 0; p < k; ++p)
        sum += static_cast<double>(transpose_a ? a[p * m + i] : a[i * k + p]) *
               static_cast<double>(transpose_b ? b[j * k + p] : b[p * n + j]);
      c[static_cast<std::size_t>(i * n + j)] = sum;
    }
  return c;
}

void check_matmul(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k) {
  CAPTURE(transpose_a, transpose_b, m, n, k);
  std::mt19937 random(static_cast<unsigned>(m * 31 + n * 7 + k));
  const HostTensor a = random_floats(transpose_a ? Shape{k, m} : Shape{m, k}, random);
  const HostTensor b = random_floats(transpose_b ? Shape{n, k} : Shape{k, n}, random);
  const HostTensor start = random_floats({m, n}, random);
  KernelRun run{
      "matmul", Attributes::of(ops::Matmul{transpose_a, transpose_b}), {a, b}, {{DType::f32, {m, n}, {}}}};
  const float *x = a.view().as<float>(), *y = b.view().as<float>();
  CHECK(worst_error(run_kernel(run)[0], slow_product(transpose_a, transpose_b, m, n, k, x, y, nullptr)) <
        1e-5);
  const Doubles sum = slow_product(transpose_a, transpose_b, m, n, k, x, y, start.view().as<float>());
  run.inputs.push_back(start);
  CHECK(worst_error(run_kernel(run)[0], sum) < 1e-5);
  run.in_place = {{0, 2}};
  CHECK(worst_error(run_kernel(run)[0], sum) < 1e-5);
}

cpu::Product product_of(std::int64_t m, std::int64_t n, std::int64_t k) {
  cpu::Product product;
  product.m = m;
  product.n = n;
  product.k = k;
  return product;
}

}  // namespace

TEST_CASE("matmul agrees with a product in double for all transposes and odd sizes") {
  const std::vector<std::array<std::int64_t, 3>> shapes = {
      {1, 1, 1},   {1, 703, 65},  {2, 5, 300},   {5, 33, 17},    {3, 129, 1},     {61, 1, 40},
      {67, 31, 2}, {14, 32, 256}, {15, 33, 257}, {350, 530, 70}, {401, 219, 513}, {7, 1100, 130}};
  for (const auto& [m, n, k] : shapes)
    for (const bool transpose_a : {false, true})
      for (const bool transpose_b : {false, true}) check_matmul(transpose_a, transpose_b, m, n, k);
}

TEST_CASE("matmul without rows writes nothing, without depth writes zeros or what it accumulates on") {
  check_matmul(false, true, 0, 9, 4);
  for (const std::int64_t m : {2, 40}) check_matmul(true, false, m, 11, 0);
}

TEST_CASE("the tiles of every shape cover it, stay within the limit and keep all threads busy") {
  for (const int threads : {1, 2, 64}) {
    omp_set_num_threads(threads);
    for (const std::int64_t m : {1, 6, 100, 335, 337, 2048, 4096})
      for (const std::int64_t n : {1, 64, 513, 1408, 10944})
        for (const std::int64_t siblings : {1, 64}) {
          CAPTURE(threads, m, n, siblings);
          const cpu::Tiling t = cpu::choose_tiling(product_of(m, n, 2048), cpu::available_workers(siblings));
          CHECK(t.columns <= cpu::kMaxTileColumns);
          CHECK((t.num_rows * t.rows >= m && (t.num_rows - 1) * t.rows < m));
          CHECK((t.num_columns * t.columns >= n && (t.num_columns - 1) * t.columns < n));
        }
    // Whole rounds of all threads, or nearly so.
    for (const std::int64_t n : {1408, 2048}) {
      const cpu::Product product = product_of(2048, n, 2048);
      const std::int64_t count = cpu::choose_tiling(product, cpu::available_workers()).count();
      const std::int64_t rounds = (count + threads - 1) / threads;
      CHECK(10 * count >= 8 * rounds * threads);
    }
    CHECK(cpu::choose_tiling(product_of(0, 1408, 2048), cpu::available_workers()).count() == 0);
  }
  omp_set_num_threads(omp_get_num_procs());
}

TEST_CASE("an element of a product has the same bits in every tile and next to any number of other rows") {
  std::mt19937 random(3);
  const std::int64_t k = 600, n = 333;
  const HostTensor a = random_floats({700, k}, random);
  for (const bool transpose_b : {false, true}) {
    const HostTensor b = random_floats(transpose_b ? Shape{n, k} : Shape{k, n}, random);
    const auto rows = [&](std::int64_t first, std::int64_t count) {
      HostTensor part(DType::f32, {count, k});
      std::copy_n(a.view().as<float>() + first * k, count * k, part.view().as<float>());
      return run_kernel({"matmul",
                         Attributes::of(ops::Matmul{.transpose_b = transpose_b}),
                         {part, b},
                         {{DType::f32, {count, n}, {}}}})[0];
    };
    const HostTensor all = rows(0, 700);
    for (const auto& [first, count] : {std::pair<std::int64_t, std::int64_t>{0, 4},
                                       {5, 1},
                                       {21, 3},
                                       {24, 7},
                                       {40, 16},
                                       {60, 17},
                                       {13, 100},
                                       {337, 363}}) {
      CAPTURE(transpose_b, first, count);
      const HostTensor some = rows(first, count);
      CHECK(std::equal(some.values<float>().begin(), some.values<float>().end(),
                       all.view().as<float>() + first * n));
    }
  }
}

namespace {

/// Experts with the given numbers of rows, widths N and K'.
void check_grouped(const std::vector<std::int64_t>& rows, std::int64_t n, std::int64_t k) {
  CAPTURE(rows, n, k);
  std::mt19937 random(11);
  const auto experts = static_cast<std::int64_t>(rows.size());
  std::vector<std::int32_t> offsets = {0};
  for (const std::int64_t count : rows) offsets.push_back(offsets.back() + static_cast<std::int32_t>(count));
  const std::int64_t r = offsets.back();
  const HostTensor x = random_floats({r, k}, random), dy = random_floats({r, n}, random);
  const HostTensor w = random_floats({experts, n, k}, random), start = random_floats({experts, n, k}, random);
  const HostTensor ends = integers({experts + 1}, offsets);
  const auto append = [](Doubles& to, const Doubles& from) { to.insert(to.end(), from.begin(), from.end()); };
  Doubles y, dx, dw, dw_sum;
  for (std::int64_t e = 0; e < experts; ++e) {
    const std::int64_t first = offsets[static_cast<std::size_t>(e)], m = rows[static_cast<std::size_t>(e)];
    const float *x_e = x.view().as<float>() + first * k, *dy_e = dy.view().as<float>() + first * n;
    const float *w_e = w.view().as<float>() + e * n * k, *start_e = start.view().as<float>() + e * n * k;
    append(y, slow_product(false, true, m, n, k, x_e, w_e, nullptr));
    append(dx, slow_product(false, false, m, k, n, dy_e, w_e, nullptr));
    append(dw, slow_product(true, false, n, k, m, dy_e, x_e, nullptr));
    append(dw_sum, slow_product(true, false, n, k, m, dy_e, x_e, start_e));
  }
  const auto error = [&](std::string_view op, Attributes attributes, std::vector<HostTensor> inputs,
                         Shape shape, const Doubles& expected,
                         std::map<std::size_t, std::size_t> in_place = {}) {
    return worst_error(
        run_kernel({op, std::move(attributes), std::move(inputs), {{DType::f32, shape, {}}}, in_place})[0],
        expected);
  };
  CHECK(error("grouped_matmul", Attributes::of(ops::GroupedMatmul{true}), {x, w, ends}, {r, n}, y) < 1e-5);
  CHECK(error("grouped_matmul", Attributes::of(ops::GroupedMatmul{false}), {dy, w, ends}, {r, k}, dx) < 1e-5);
  const Attributes none = Attributes::of(NoAttributes{});
  CHECK(error("grouped_matmul_wgrad", none, {dy, x, ends}, {experts, n, k}, dw) < 1e-5);
  CHECK(error("grouped_matmul_wgrad", none, {dy, x, ends, start}, {experts, n, k}, dw_sum) < 1e-5);
  CHECK(error("grouped_matmul_wgrad", none, {dy, x, ends, start}, {experts, n, k}, dw_sum, {{0, 3}}) < 1e-5);
}

}  // namespace

TEST_CASE("grouped products and their weight gradients agree with one product per expert") {
  check_grouped({3, 0, 17, 1, 64}, 37, 29);
  check_grouped({0, 0, 401, 0}, 70, 45);  // all rows to one expert
  check_grouped({0, 0, 0}, 5, 7);         // no rows at all: weight gradients are zeros
  check_grouped({1}, 1, 1);
  check_grouped({300, 2, 0, 5}, 130, 270);  // several tiles an expert
}
