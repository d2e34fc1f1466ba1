// SPDX-License-Identifier: Apache-2.0
#include "run_kernel.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "support/catch.h"

namespace farskip::test {
namespace {

constexpr std::size_t kGuard = 256;
constexpr unsigned char kPoison = 0xff;  // four of them are a NaN

/// Memory with a guard behind it.
struct Guarded {
  HostTensor memory;
  std::size_t size;

  explicit Guarded(std::size_t bytes)
      : memory(DType::u8, {static_cast<std::int64_t>(bytes + kGuard)}), size(bytes) {
    std::memset(memory.bytes().data(), kPoison, bytes + kGuard);
  }
  bool intact() {
    return std::all_of(memory.bytes().begin() + static_cast<std::ptrdiff_t>(size), memory.bytes().end(),
                       [](std::byte b) { return b == std::byte{kPoison}; });
  }
};

HostTensor copy_of(const TensorView& view) {
  HostTensor copy(view.dtype, view.shape);
  if (view.num_bytes() > 0) std::memcpy(copy.bytes().data(), view.data, view.num_bytes());
  return copy;
}

std::size_t workspace_bytes(const Kernel& kernel, const KernelRun& run) {
  if (kernel.workspace == nullptr) return 0;
  std::vector<TensorType> types(run.inputs.size());
  std::vector<const TensorType*> pointers;
  for (std::size_t i = 0; i < run.inputs.size(); ++i) {
    types[i] = {run.inputs[i].dtype(), run.inputs[i].shape(), {}};
    pointers.push_back(run.inputs[i].view() ? &types[i] : nullptr);
  }
  return kernel.workspace({run.attributes, pointers, run.outputs});
}

std::vector<HostTensor> run_once(const Kernel& kernel, const KernelRun& run) {
  std::vector<HostTensor> input_copies;
  std::vector<TensorView> inputs, outputs;
  for (const HostTensor& input : run.inputs) {
    input_copies.push_back(input.view() ? copy_of(input.view()) : input);
    inputs.push_back(input_copies.back().view());
  }
  std::vector<Guarded> memory;
  for (std::size_t i = 0; i < run.outputs.size(); ++i) {
    memory.emplace_back(run.outputs[i].num_bytes());
    TensorView view{memory.back().memory.bytes().data(), run.outputs[i].dtype, run.outputs[i].shape};
    if (const auto it = run.in_place.find(i); it != run.in_place.end()) view.data = inputs[it->second].data;
    outputs.push_back(view);
  }
  Guarded workspace(workspace_bytes(kernel, run));
  kernel.run({run.attributes, inputs, outputs, workspace.memory.bytes().first(workspace.size)});
  CHECK(workspace.intact());
  std::vector<HostTensor> results;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    CHECK(memory[i].intact());
    results.push_back(copy_of(outputs[i]));
  }
  return results;
}

}  // namespace

HostTensor floats(Shape shape, const std::vector<float>& values) {
  HostTensor tensor(DType::f32, std::move(shape));
  std::copy(values.begin(), values.end(), tensor.values<float>().begin());
  return tensor;
}

HostTensor integers(Shape shape, const std::vector<std::int32_t>& values) {
  HostTensor tensor(DType::i32, std::move(shape));
  std::copy(values.begin(), values.end(), tensor.values<std::int32_t>().begin());
  return tensor;
}

HostTensor random_floats(Shape shape, std::mt19937& random, float scale) {
  HostTensor tensor(DType::f32, std::move(shape));
  std::normal_distribution<float> normal(0.0F, scale);
  for (float& x : tensor.values<float>()) x = normal(random);
  return tensor;
}

std::vector<HostTensor> run_kernel(const KernelRun& run) {
  const Kernel& kernel = cpu_kernel_table().at(run.op, DType::f32, DeviceKind::cpu);
  std::vector<HostTensor> first;
  for (const int threads : {1, 2, 3, 7}) {
    omp_set_num_threads(threads);
    std::vector<HostTensor> results = run_once(kernel, run);
    if (first.empty()) {
      first = std::move(results);
      continue;
    }
    for (std::size_t i = 0; i < results.size(); ++i) {
      INFO(run.op << ", output " << i << ", " << threads << " threads");
      CHECK(std::equal(results[i].bytes().begin(), results[i].bytes().end(), first[i].bytes().begin()));
    }
  }
  omp_set_num_threads(omp_get_num_procs());
  return first;
}

Doubles doubles(const HostTensor& tensor) {
  const auto values = tensor.values<float>();
  return {values.begin(), values.end()};
}

double worst_error(const HostTensor& actual, const Doubles& expected) {
  const auto values = actual.values<float>();
  if (values.size() != expected.size()) return std::numeric_limits<double>::infinity();
  double largest = 1e-30, worst = 0;
  for (const double x : expected) largest = std::max(largest, std::abs(x));
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(static_cast<double>(values[i]) - expected[i]);
    if (std::isnan(error)) return std::numeric_limits<double>::infinity();
    worst = std::max(worst, error);
  }
  return worst / largest;
}

Doubles finite_differences(const std::function<double(const Doubles&)>& f, Doubles x, double step) {
  Doubles slopes(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double at = x[i];
    x[i] = at + step;
    const double above = f(x);
    x[i] = at - step;
    const double below = f(x);
    x[i] = at;
    slopes[i] = (above - below) / (2 * step);
  }
  return slopes;
}

}  // namespace farskip::test
