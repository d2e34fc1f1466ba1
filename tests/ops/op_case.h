// SPDX-License-Identifier: Apache-2.0
#pragma once
// One row of the table that tests every op: an op with attributes and inputs, and how exact it must be.

#include <cstdint>
#include <string>
#include <vector>

#include "farskip/graph/graph.h"

namespace farskip::test {

struct OpCase {
  std::string op;
  std::string name;  // what is special about this case
  Attributes attributes;
  std::vector<HostTensor> inputs;  // one without data: the optional input is absent
  /// Outputs a loss may depend on: the gradient is tested for all of them together and each alone. Empty:
  /// not tested (no gradient, or not differentiable at this point).
  std::vector<std::size_t> differentiated = {0};
  /// Inputs of floating-point type through which no gradient flows.
  std::vector<std::size_t> constants = {};
  /// The op's gradient rule needs a gradient of every differentiated output, so none is tested alone.
  bool used_whole = false;
  /// Largest error of an element, relative to its size plus the root mean square of its tensor.
  double tolerance = 2e-6;
  double gradient_tolerance = 1e-5;

  std::string text() const { return op + " {" + attributes.text() + "}: " + name; }
};

/// All cases, from the files cases_*.cpp.
std::vector<OpCase> all_op_cases();
std::vector<OpCase> dense_cases();
std::vector<OpCase> rowwise_cases();
std::vector<OpCase> attention_cases();
std::vector<OpCase> routing_cases();
std::vector<OpCase> optimizer_cases();
std::vector<OpCase> distill_cases();
std::vector<OpCase> inference_cases();
std::vector<OpCase> sampling_cases();

/// Normal random f32 numbers. Tensors of different `seed` differ.
HostTensor random_tensor(Shape shape, std::uint64_t seed, double stddev = 1.0, double mean = 0.0);
/// Uniform random integers in [low, high).
HostTensor random_integers(Shape shape, std::int32_t low, std::int32_t high, std::uint64_t seed);
HostTensor integer_tensor(Shape shape, const std::vector<std::int32_t>& values);
HostTensor float_tensor(Shape shape, const std::vector<float>& values);

/// Naive order of routed rows for indices[T, K] (see sort_by_expert).
struct Order {
  HostTensor row_slot, slot_row, offsets;
};
Order routed_order(const HostTensor& indices, std::int64_t num_experts);
/// [T, K] distinct experts per token, at random.
HostTensor random_choice(std::int64_t tokens, std::int64_t top_k, std::int64_t num_experts,
                         std::uint64_t seed);

}  // namespace farskip::test
