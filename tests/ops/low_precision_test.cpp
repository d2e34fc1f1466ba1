// SPDX-License-Identifier: Apache-2.0
// Casts, the compute copy of AdamW, and which element types ops take together.
#include <algorithm>
#include <cmath>
#include <limits>

#include "farskip/ops/optimizer_ops.h"
#include "interpreter.h"
#include "op_case.h"
#include "support/catch.h"

namespace farskip::test {
namespace {

std::vector<Buffer> run_op(const std::string& op, const Attributes& attributes,
                           const std::vector<HostTensor>& inputs) {
  OpRun run{op_table().at(op), attributes, {}};
  for (const HostTensor& input : inputs) run.inputs.push_back(input.view());
  const DType dtype = inputs[0].dtype();
  return run.execute(cpu_kernel_table(), dtype, run.output_types());
}

TEST_CASE("a cast to bf16 rounds to the nearest, ties to even, and back is exact") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const HostTensor x =
      float_tensor({12}, {0.0F, -0.0F, 1.0F, 1.00390625F, 1.01171875F, 1.004F, -1.00390625F, 3.0e38F, 3.4e38F,
                          infinity, -infinity, std::numeric_limits<float>::quiet_NaN()});
  const auto low = run_op("cast", Attributes::of(ops::Cast{ops::CastTo::bf16}), {x});
  REQUIRE(low[0].view().dtype == DType::bf16);
  const std::vector<float> expected{0.0F,  -0.0F,         1.0F,     1.0F,     1.015625F, 1.0078125F,
                                    -1.0F, 3.0040553e38F, infinity, infinity, -infinity};
  HostTensor bits(DType::bf16, {12});
  std::copy(low[0].view().bytes().begin(), low[0].view().bytes().end(), bits.bytes().begin());
  const auto back = run_op("cast", Attributes::of(ops::Cast{ops::CastTo::f32}), {bits});
  const float* got = back[0].view().as<float>();
  for (std::size_t i = 0; i < expected.size(); ++i) {
    INFO("element " << i);
    CHECK(got[i] == Catch::Approx(expected[i]).epsilon(1e-6));
    CHECK(std::signbit(got[i]) == std::signbit(expected[i]));
  }
  CHECK(std::isnan(got[11]));
}

TEST_CASE("casts of many elements leave none out") {
  const HostTensor x = random_tensor({37, 1031}, 5);
  const auto low = run_op("cast", Attributes::of(ops::Cast{ops::CastTo::bf16}), {x});
  for (std::int64_t i = 0; i < x.num_elements(); ++i)
    REQUIRE(low[0].view().as<std::uint16_t>()[i] == f32_to_bf16(x.view().as<float>()[i]));
}

TEST_CASE("the compute copy of AdamW is the new parameter rounded, also where nothing changes") {
  for (const float factor : {0.5F, 0.0F}) {
    const Shape shape{3, 701};
    const auto run = [&](bool copy) {
      return run_op("adamw", Attributes::of(ops::AdamW{.weight_decay = 0.1, .low_copy = copy}),
                    {random_tensor(shape, 1), random_tensor(shape, 2),
                     float_tensor({3, 701}, std::vector<float>(2103, 0.5F)), random_tensor(shape, 4),
                     float_tensor({1}, {factor}), float_tensor({4}, {1e-2F, 1.0F, 1.0F, 1.0F})});
    };
    const auto with = run(true), without = run(false);
    REQUIRE(with.size() == 4);
    for (std::size_t i = 0; i < 3; ++i) CHECK(with[i].same_bits(without[i]));
    for (std::int64_t i = 0; i < shape.num_elements(); ++i)
      REQUIRE(with[3].view().as<std::uint16_t>()[i] == f32_to_bf16(with[0].view().as<float>()[i]));
  }
}

/// The types of inputs by letters (L bf16, F f32, I i32, - absent), all of one shape.
std::vector<TensorType> infer(const std::string& op, const Attributes& attributes,
                              const std::vector<std::pair<char, Shape>>& inputs) {
  std::vector<TensorType> types;
  std::vector<const TensorType*> pointers;
  for (const auto& [letter, shape] : inputs)
    types.push_back({letter == 'L' ? DType::bf16 : letter == 'F' ? DType::f32 : DType::i32, shape, {}});
  for (std::size_t i = 0; i < types.size(); ++i)
    pointers.push_back(inputs[i].first == '-' ? nullptr : &types[i]);
  return infer_outputs(op_table().at(op), {attributes, pointers, {}});
}

TEST_CASE("products of low matrices are low, or f32 on request, and are added to their own type") {
  const auto product = [](bool wide) { return Attributes::of(ops::Matmul{.wide = wide}); };
  const Shape s{4, 4};
  CHECK(infer("matmul", product(false), {{'L', s}, {'L', s}})[0].dtype == DType::bf16);
  CHECK(infer("matmul", product(true), {{'L', s}, {'L', s}})[0].dtype == DType::f32);
  CHECK(infer("matmul", product(true), {{'L', s}, {'L', s}, {'F', s}})[0].dtype == DType::f32);
  CHECK(infer("matmul", product(true), {{'F', s}, {'F', s}})[0].dtype == DType::f32);
  CHECK_THROWS_WITH(infer("matmul", product(false), {{'L', s}, {'F', s}}),
                    ContainsSubstring("element types do not fit: bf16[4, 4], f32[4, 4]"));
  CHECK(infer("matmul", product(false), {{'L', s}, {'L', s}, {'L', s}})[0].dtype == DType::bf16);
  CHECK_THROWS_AS(infer("matmul", product(false), {{'L', s}, {'L', s}, {'F', s}}), InternalError);
  CHECK_THROWS_AS(infer("matmul", product(true), {{'L', s}, {'L', s}, {'L', s}}), InternalError);
  CHECK_THROWS_AS(infer("matmul", product(false), {{'I', s}, {'I', s}}), InternalError);
}

TEST_CASE("mixtures that no kernel computes are refused") {
  const Shape s{4, 4}, row{4};
  const auto none = Attributes::of(NoAttributes{});
  const auto norm = Attributes::of(ops::RmsNorm{});
  CHECK(infer("rms_norm", norm, {{'L', s}, {'F', row}})[0].dtype == DType::bf16);
  CHECK(infer("rms_norm", norm, {{'L', s}, {'F', row}})[1].dtype == DType::f32);
  CHECK_THROWS_AS(infer("rms_norm", norm, {{'L', s}, {'L', row}}), InternalError);
  CHECK_THROWS_AS(infer("rms_norm", norm, {{'F', s}, {'L', row}}), InternalError);
  CHECK_THROWS_AS(infer("add", none, {{'L', s}, {'F', s}}), InternalError);
  CHECK_THROWS_AS(infer("swiglu", none, {{'L', s}, {'L', row}}), InternalError);
  CHECK_THROWS_AS(infer("route", Attributes::of(ops::Route{.top_k = 2}), {{'L', s}}), InternalError);
  CHECK_THROWS_AS(
      infer("grouped_matmul", Attributes::of(ops::GroupedMatmul{}), {{'L', s}, {'F', {2, 4, 4}}, {'I', {3}}}),
      InternalError);
  CHECK_THROWS_AS(infer("linear_cross_entropy", none, {{'L', s}, {'F', s}, {'I', row}}), InternalError);
  CHECK_THROWS_AS(infer("sum_of_squares", none, {{'L', s}}), InternalError);
  CHECK_THROWS_AS(infer("adamw", Attributes::of(ops::AdamW{}),
                        {{'L', s}, {'F', s}, {'F', s}, {'F', s}, {'F', {1}}, {'F', {4}}}),
                  InternalError);
  CHECK_THROWS_AS(infer("cast", Attributes::of(ops::Cast{ops::CastTo::f32}), {{'F', s}}), InternalError);
}

/// Inputs of a case as types, in the types that a bf16 graph has them in.
std::vector<TensorType> low_types(const OpCase& c) {
  const OpDef& op = op_table().at(c.op);
  std::vector<TensorType> types;
  for (std::size_t i = 0; i < c.inputs.size(); ++i) {
    types.push_back({c.inputs[i].dtype(), c.inputs[i].shape(), {}});
    if (op.input_type(i) == InputType::compute) types[i].dtype = DType::bf16;
  }
  return types;
}

std::vector<TensorType> infer(const OpCase& c, const std::vector<TensorType>& types) {
  std::vector<const TensorType*> pointers;
  for (std::size_t i = 0; i < types.size(); ++i) pointers.push_back(c.inputs[i].view() ? &types[i] : nullptr);
  return infer_outputs(op_table().at(c.op), {c.attributes, pointers, {}});
}

TEST_CASE("every op takes its inputs in the types that it states, and none of them in another") {
  for (const OpCase& c : all_op_cases()) {
    const OpDef& op = op_table().at(c.op);
    if (!op.accumulates.empty() && c.inputs.size() > op.accumulates[0].input)
      continue;  // of its output's type
    INFO(c.text());
    const std::vector<TensorType> types = low_types(c);
    REQUIRE_NOTHROW(infer(c, types));
    std::size_t compute = 0;
    for (std::size_t i = 0; i < types.size(); ++i)
      compute += c.inputs[i].view() && op.input_type(i) == InputType::compute ? 1 : 0;
    for (std::size_t i = 0; i < types.size(); ++i) {
      const InputType type = op.input_type(i);
      if (!c.inputs[i].view() || type == InputType::any) continue;
      if (type == InputType::compute && compute == 1) continue;  // it says itself what the op computes in
      INFO("input " << i);
      std::vector<TensorType> other = types;
      other[i].dtype = type == InputType::wide ? DType::bf16 : DType::f32;
      CHECK_THROWS_WITH(infer(c, other), ContainsSubstring("element types do not fit"));
    }
  }
}

/// A kernel is looked up by the type of the first input that is no integer.
TEST_CASE("kernels in bf16 are those of ops that state that they take bf16 there") {
  std::size_t found = 0;
  for (const KernelTable* table : {&cpu_kernel_table(), &cuda_kernel_table()})
    for (const auto& [key, kernel] : table->all()) {
      const auto& [name, dtype, device] = key;
      if (!is_low(dtype)) continue;
      ++found;
      INFO(name << (device == DeviceKind::cpu ? " on a CPU" : " on a GPU"));
      const OpDef& op = op_table().at(name);
      const auto first = std::find_if(op.inputs.begin(), op.inputs.end(),
                                      [](InputType type) { return type != InputType::integer; });
      REQUIRE(first != op.inputs.end());
      CHECK(*first != InputType::wide);
    }
  CHECK(found > 0);
}

TEST_CASE("rows that only the device counts go to ops that state that they mind the count") {
  for (const OpCase& c : all_op_cases()) {
    const OpDef& op = op_table().at(c.op);
    if (op.collective) continue;
    INFO(c.text());
    const auto takes = [&](std::size_t i) {
      return std::find(op.bounded.begin(), op.bounded.end(), i) != op.bounded.end();
    };
    std::vector<TensorType> bounded = low_types(c);
    for (std::size_t i = 0; i < bounded.size(); ++i)
      if (takes(i)) bounded[i].count = ValueId(7);
    REQUIRE_NOTHROW(infer(c, bounded));
    for (std::size_t i = 0; i < bounded.size(); ++i) {
      if (takes(i) || !c.inputs[i].view()) continue;
      std::vector<TensorType> other = bounded;
      other[i].count = ValueId(7);
      CHECK_THROWS_WITH(infer(c, other), ContainsSubstring("rows are bounded that must be whole"));
    }
  }
}

}  // namespace
}  // namespace farskip::test
