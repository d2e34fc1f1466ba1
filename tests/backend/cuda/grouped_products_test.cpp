// SPDX-License-Identifier: Apache-2.0
// The ops of the experts' products in bf16 on a GPU: results to the bit against the plain f32 kernel, on
// whole numbers whose sums are exact.
#include <algorithm>
#include <cstring>
#include <functional>
#include <random>

#include "backend/cuda/experts/grouped_tiles.h"
#include "farskip/backend/device.h"
#include "farskip/ops/ops.h"
#include "support/catch.h"
#include "support/skip.h"

namespace farskip::test {
namespace {

enum class Direction { forward, dgrad, wgrad };
/// Whether a weight gradient is added to what stands elsewhere, or in its own place.
enum class Sum { none, beside, in_place };
constexpr const char* kNames[] = {"forward", "dgrad", "wgrad"};

struct Problem {
  std::vector<std::int64_t> rows;  // of each expert
  std::int64_t n = 0, k = 0, unused_rows = 0;

  std::vector<std::int32_t> offsets() const {
    std::vector<std::int32_t> result{0};
    for (const std::int64_t r : rows) result.push_back(result.back() + static_cast<std::int32_t>(r));
    return result;
  }
  std::int64_t used_rows() const { return offsets().back(); }
  std::int64_t all_rows() const { return used_rows() + unused_rows; }
  std::int64_t experts() const { return static_cast<std::int64_t>(rows.size()); }
  std::string text() const {
    return fmt::format("{} experts, {} rows of {}, n {}, k {}", experts(), used_rows(), all_rows(), n, k);
  }
};

/// Device memory that holds a host tensor's copy.
class OnDevice {
 public:
  OnDevice(Device& device, const HostTensor& tensor)
      : device_(device),
        memory_(device.allocate(tensor.view().num_bytes())),
        dtype_(tensor.dtype()),
        shape_(tensor.shape()) {
    device.copy_in(memory_.get(), tensor.view().data, tensor.view().num_bytes());
  }
  TensorView view() const { return {memory_.get(), dtype_, shape_}; }
  HostTensor copy() const {
    HostTensor out(dtype_, shape_);
    device_.copy_out(out.bytes().data(), memory_.get(), out.view().num_bytes());
    return out;
  }

 private:
  Device& device_;
  std::shared_ptr<std::byte[]> memory_;
  DType dtype_;
  Shape shape_;
};

HostTensor poisoned(DType dtype, Shape shape) {
  HostTensor tensor(dtype, std::move(shape));
  std::memset(tensor.bytes().data(), 0xff, tensor.bytes().size());
  return tensor;
}

/// Whole numbers from -3 to 3; rows from `used` on are NaN.
HostTensor whole_numbers(Shape shape, std::int64_t used, std::mt19937& random) {
  HostTensor tensor = poisoned(DType::f32, shape);
  const auto values = tensor.values<float>();
  const std::int64_t row = tensor.num_elements() / std::max<std::int64_t>(shape[0], 1);
  for (std::int64_t i = 0; i < used * row; ++i)
    values[static_cast<std::size_t>(i)] = static_cast<float>(static_cast<int>(random() % 7) - 3);
  return tensor;
}

HostTensor integers(const std::vector<std::int32_t>& values) {
  HostTensor tensor(DType::i32, {static_cast<std::int64_t>(values.size())});
  std::copy(values.begin(), values.end(), tensor.values<std::int32_t>().begin());
  return tensor;
}

void run_op(Device& device, const char* op, DType dtype, const Attributes& attributes,
            const std::vector<TensorView>& inputs, const TensorView& output) {
  const Kernel& kernel = device.kernels().at(op, dtype, DeviceKind::cuda);
  kernel.run({attributes, inputs, {&output, 1}, {}, device.compute_context()});
}

/// Shapes of a, b, d of one direction.
struct Shapes {
  Shape a, b, d;
  Shapes(Direction direction, const Problem& p) {
    const bool wgrad = direction == Direction::wgrad;
    a = {p.all_rows(), wgrad ? p.n : p.k};
    b = wgrad                             ? Shape{p.all_rows(), p.k}
        : direction == Direction::forward ? Shape{p.experts(), p.n, p.k}
                                          : Shape{p.experts(), p.k, p.n};
    d = wgrad ? Shape{p.experts(), p.n, p.k} : Shape{p.all_rows(), p.n};
  }
};

bool same_bits(const HostTensor& x, const HostTensor& y, std::int64_t bytes) {
  return std::memcmp(x.view().data, y.view().data, static_cast<std::size_t>(bytes)) == 0;
}

/// The bf16 kernel's result is that of the f32 one, and nothing beyond the rows in use is touched.
void check_product(Device& device, Direction direction, const Problem& p, Sum sum = Sum::none) {
  const bool wgrad = direction == Direction::wgrad;
  CAPTURE(kNames[static_cast<int>(direction)], p.text(), static_cast<int>(sum));
  std::mt19937 random(7);
  const Shapes shapes(direction, p);
  const HostTensor a = whole_numbers(shapes.a, p.used_rows(), random);
  const HostTensor b = whole_numbers(shapes.b, wgrad ? p.used_rows() : p.experts(), random);
  const HostTensor before = whole_numbers(shapes.d, shapes.d[0], random);
  const OnDevice offsets(device, integers(p.offsets()));
  const OnDevice a32(device, a), b32(device, b), before32(device, before),
      expected32(device, poisoned(DType::f32, shapes.d));
  const OnDevice a16(device, convert_dtype(a, DType::bf16)), b16(device, convert_dtype(b, DType::bf16)),
      d(device, poisoned(wgrad ? DType::f32 : DType::bf16, shapes.d));
  const Attributes attributes =
      wgrad ? Attributes() : Attributes::of(ops::GroupedMatmul{direction == Direction::forward});
  std::vector<TensorView> plain{a32.view(), b32.view(), offsets.view()},
      inputs{a16.view(), b16.view(), offsets.view()};
  if (sum != Sum::none) {
    plain.push_back(before32.view());
    inputs.push_back(sum == Sum::beside ? before32.view() : d.view());
  }
  const char* op = wgrad ? "grouped_matmul_wgrad" : "grouped_matmul";
  run_op(device, op, DType::f32, attributes, plain, expected32.view());
  for (int repeat = 0; repeat < 2; ++repeat) {
    if (sum == Sum::in_place) device.copy_within(d.view().data, before32.view().data, d.view().num_bytes());
    run_op(device, op, DType::bf16, attributes, inputs, d.view());
  }
  const HostTensor sums = expected32.copy(), result = d.copy();
  const HostTensor expected = wgrad ? expected32.copy() : convert_dtype(sums, DType::bf16);
  const std::int64_t used =
      wgrad ? static_cast<std::int64_t>(result.bytes().size()) : p.used_rows() * p.n * 2;
  CHECK(same_bits(result, expected, used));
  const auto rest = result.view().bytes().subspan(static_cast<std::size_t>(used));
  CHECK(std::all_of(rest.begin(), rest.end(), [](std::byte x) { return x == std::byte{0xff}; }));
}

}  // namespace

namespace {

std::vector<Problem> problems() {
  std::vector<Problem> all{
      {{128, 256}, 256, 64},       {{1}, 8, 8},
      {{0, 0, 5, 0}, 264, 72},     {{127, 129, 1, 0, 300, 64, 63, 65}, 512, 136, 200},
      {{0}, 64, 64, 10},           {{700, 0, 33, 1100}, 1408, 2048, 7},
      {{4, 2000, 129}, 2816, 264}, {{257, 384}, 136, 520},
  };
  all.push_back({std::vector<std::int64_t>(130, 3), 128, 128, 1});
  // As many experts as the tensor-core kernel takes, and more: those are the plain kernel's.
  all.push_back({std::vector<std::int64_t>(cuda::kMaxTileExperts, 2), 64, 72, 1});
  all.push_back({std::vector<std::int64_t>(cuda::kMaxTileExperts + 1, 2), 64, 72, 1});
  return all;
}

void with_gpu(const std::function<void(Device&)>& f) {
  if (const std::string problem = why_no_cuda_device(); !problem.empty()) skip(problem);
  f(*make_cuda_device());
}

}  // namespace

TEST_CASE("products of experts in bf16 are those of f32 to the bit on whole numbers") {
  with_gpu([](Device& device) {
    for (const Problem& p : problems())
      for (const Direction direction : {Direction::forward, Direction::dgrad})
        check_product(device, direction, p);
  });
}

TEST_CASE("weight gradients of experts in bf16 are those of f32 to the bit on whole numbers") {
  with_gpu([](Device& device) {
    for (const Problem& p : problems())
      for (const Sum sum : {Sum::none, Sum::beside, Sum::in_place})
        check_product(device, Direction::wgrad, p, sum);
  });
}

}  // namespace farskip::test
