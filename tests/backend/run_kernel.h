// SPDX-License-Identifier: Apache-2.0
#pragma once
// Runs one CPU kernel on host tensors: outputs and workspace full of NaN before, guarded after.

#include <functional>
#include <map>
#include <random>
#include <string_view>
#include <vector>

#include "farskip/backend/kernel.h"

namespace farskip::test {

HostTensor floats(Shape shape, const std::vector<float>& values);
HostTensor integers(Shape shape, const std::vector<std::int32_t>& values);
/// Standard normal, times `scale`.
HostTensor random_floats(Shape shape, std::mt19937& random, float scale = 1.0F);

struct KernelRun {
  std::string_view op;
  Attributes attributes;
  std::vector<HostTensor> inputs;                    // without elements or shape: absent
  std::vector<TensorType> outputs;                   // dtype and shape
  std::map<std::size_t, std::size_t> in_place = {};  // output → input whose buffer it lives in
};
/// Runs it under 1, 2, 3 and 7 threads; fails the test unless all give the same bits and leave what lies
/// behind the outputs and the workspace alone.
std::vector<HostTensor> run_kernel(const KernelRun& run);

using Doubles = std::vector<double>;
Doubles doubles(const HostTensor& tensor);
/// Largest |actual - expected| relative to the largest |expected|; a NaN counts as infinite.
double worst_error(const HostTensor& actual, const Doubles& expected);

/// d f / d x[i] for every i by central differences.
Doubles finite_differences(const std::function<double(const Doubles&)>& f, Doubles x, double step = 1e-4);

}  // namespace farskip::test
