// SPDX-License-Identifier: Apache-2.0
#include "op_case.h"

#include <algorithm>
#include <numeric>

#include "farskip/base/random.h"

namespace farskip::test {
namespace {

constexpr std::uint64_t kSeed = 20260101;

}  // namespace

std::vector<OpCase> all_op_cases() {
  std::vector<OpCase> all;
  for (const auto& family : {dense_cases(), rowwise_cases(), attention_cases(), routing_cases(),
                             optimizer_cases(), distill_cases(), inference_cases(), sampling_cases()})
    all.insert(all.end(), family.begin(), family.end());
  return all;
}

HostTensor random_tensor(Shape shape, std::uint64_t seed, double stddev, double mean) {
  HostTensor tensor(DType::f32, std::move(shape));
  fill_normal(kSeed, seed, 0, mean, stddev, tensor.values<float>());
  return tensor;
}

HostTensor random_integers(Shape shape, std::int32_t low, std::int32_t high, std::uint64_t seed) {
  HostTensor tensor(DType::i32, std::move(shape));
  std::uint64_t counter = 0;
  for (std::int32_t& value : tensor.values<std::int32_t>())
    value = low + static_cast<std::int32_t>(uniform_double(kSeed, seed, counter++) * (high - low));
  return tensor;
}

HostTensor integer_tensor(Shape shape, const std::vector<std::int32_t>& values) {
  HostTensor tensor(DType::i32, std::move(shape));
  FARSKIP_CHECK(tensor.values<std::int32_t>().size() == values.size(), "{} values", values.size());
  std::copy(values.begin(), values.end(), tensor.values<std::int32_t>().begin());
  return tensor;
}

HostTensor float_tensor(Shape shape, const std::vector<float>& values) {
  HostTensor tensor(DType::f32, std::move(shape));
  FARSKIP_CHECK(tensor.values<float>().size() == values.size(), "{} values", values.size());
  std::copy(values.begin(), values.end(), tensor.values<float>().begin());
  return tensor;
}

Order routed_order(const HostTensor& indices, std::int64_t num_experts) {
  const auto experts = indices.values<std::int32_t>();
  const auto rows = static_cast<std::int64_t>(experts.size());
  Order order{HostTensor(DType::i32, {rows}), HostTensor(DType::i32, {rows}),
              HostTensor(DType::i32, {num_experts + 1})};
  const auto row_slot = order.row_slot.values<std::int32_t>();
  std::iota(row_slot.begin(), row_slot.end(), 0);
  std::stable_sort(row_slot.begin(), row_slot.end(), [&](std::int32_t a, std::int32_t b) {
    return experts[static_cast<std::size_t>(a)] < experts[static_cast<std::size_t>(b)];
  });
  for (std::size_t r = 0; r < row_slot.size(); ++r)
    order.slot_row.values<std::int32_t>()[static_cast<std::size_t>(row_slot[r])] =
        static_cast<std::int32_t>(r);
  for (std::int64_t e = 0; e <= num_experts; ++e)
    order.offsets.values<std::int32_t>()[static_cast<std::size_t>(e)] = static_cast<std::int32_t>(
        std::count_if(experts.begin(), experts.end(), [&](auto x) { return x < e; }));
  return order;
}

HostTensor random_choice(std::int64_t tokens, std::int64_t top_k, std::int64_t num_experts,
                         std::uint64_t seed) {
  HostTensor choice(DType::i32, {tokens, top_k});
  std::vector<std::int32_t> experts(static_cast<std::size_t>(num_experts));
  std::iota(experts.begin(), experts.end(), 0);
  std::uint64_t counter = 0;
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t k = 0; k < top_k; ++k) {
      const double at = uniform_double(kSeed, seed, counter++) * static_cast<double>(num_experts - k);
      std::swap(experts[static_cast<std::size_t>(k)],
                experts[static_cast<std::size_t>(k) + static_cast<std::size_t>(at)]);
      choice.values<std::int32_t>()[static_cast<std::size_t>(t * top_k + k)] =
          experts[static_cast<std::size_t>(k)];
    }
  return choice;
}

}  // namespace farskip::test
