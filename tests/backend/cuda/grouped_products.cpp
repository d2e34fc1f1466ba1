// The ops of the experts' products in bf16 on a GPU: results to the bit against the plain f32 kernel, on
// whole numbers whose sums are exact; then times of the tensor-core kernel at the sizes of DeepSeek-V2-Lite,
// in turns with a dense product of as many operations.
//
//   cuda_grouped_products [--time]
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>

#include "backend/cuda/grouped_tiles.h"
#include "backend/cuda/product.h"
#include "farskip/backend/device.h"
#include "farskip/ops/ops.h"

namespace farskip {
namespace {

using cuda::GroupedProduct;
using Run = void (*)(const GroupedProduct&);

struct Direction {
  const char* name;
  Run run;
};
constexpr Direction kForward{"forward", cuda::run_grouped_tiles_forward};
constexpr Direction kDgrad{"dgrad", cuda::run_grouped_tiles_dgrad};
constexpr Direction kWgrad{"wgrad", cuda::run_grouped_tiles_wgrad};

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

struct Case {
  const Direction& direction;
  const Problem& problem;
  bool accumulate = false;
};

/// Shapes of a, b, d of one direction.
struct Shapes {
  Shape a, b, d;
  Shapes(const Direction& direction, const Problem& p) {
    const bool wgrad = &direction == &kWgrad;
    a = {p.all_rows(), wgrad ? p.n : p.k};
    b = wgrad                     ? Shape{p.all_rows(), p.k}
        : &direction == &kForward ? Shape{p.experts(), p.n, p.k}
                                  : Shape{p.experts(), p.k, p.n};
    d = wgrad ? Shape{p.experts(), p.n, p.k} : Shape{p.all_rows(), p.n};
  }
};

bool same_bits(const HostTensor& x, const HostTensor& y, std::int64_t bytes) {
  return std::memcmp(x.view().data, y.view().data, static_cast<std::size_t>(bytes)) == 0;
}

/// True where the bf16 kernel's result is that of the f32 one, and nothing beyond the rows in use was
/// touched.
bool check(Device& device, const Case& c) {
  const bool wgrad = &c.direction == &kWgrad;
  const Problem& p = c.problem;
  std::mt19937 random(7);
  const Shapes shapes(c.direction, p);
  const HostTensor a = whole_numbers(shapes.a, p.used_rows(), random);
  const HostTensor b = whole_numbers(shapes.b, wgrad ? p.used_rows() : p.experts(), random);
  const HostTensor before = whole_numbers(shapes.d, shapes.d[0], random);
  const OnDevice offsets(device, integers(p.offsets()));
  const OnDevice a32(device, a), b32(device, b), before32(device, before),
      expected32(device, poisoned(DType::f32, shapes.d));
  const OnDevice a16(device, convert_dtype(a, DType::bf16)), b16(device, convert_dtype(b, DType::bf16)),
      d(device, poisoned(wgrad ? DType::f32 : DType::bf16, shapes.d));
  const Attributes attributes =
      wgrad ? Attributes() : Attributes::of(ops::GroupedMatmul{&c.direction == &kForward});
  std::vector<TensorView> plain{a32.view(), b32.view(), offsets.view()},
      inputs{a16.view(), b16.view(), offsets.view()};
  if (c.accumulate)
    for (auto* list : {&plain, &inputs}) list->push_back(before32.view());
  const char* op = wgrad ? "grouped_matmul_wgrad" : "grouped_matmul";
  run_op(device, op, DType::f32, attributes, plain, expected32.view());
  for (int repeat = 0; repeat < 2; ++repeat) run_op(device, op, DType::bf16, attributes, inputs, d.view());
  const HostTensor sums = expected32.copy(), result = d.copy();
  const HostTensor expected = wgrad ? expected32.copy() : convert_dtype(sums, DType::bf16);
  const std::int64_t used =
      wgrad ? static_cast<std::int64_t>(result.bytes().size()) : p.used_rows() * p.n * 2;
  const bool right = same_bits(result, expected, used);
  const auto rest = result.view().bytes().subspan(static_cast<std::size_t>(used));
  const bool untouched =
      std::all_of(rest.begin(), rest.end(), [](std::byte x) { return x == std::byte{0xff}; });
  if (!right || !untouched)
    fmt::print("WRONG {}: {}{}{}\n", c.direction.name, p.text(), c.accumulate ? ", accumulated" : "",
               untouched ? "" : ", rows not in use were written");
  return right && untouched;
}

bool check_all(Device& device) {
  std::vector<Problem> problems{
      {{128, 256}, 256, 64},       {{1}, 8, 8},
      {{0, 0, 5, 0}, 264, 72},     {{127, 129, 1, 0, 300, 64, 63, 65}, 512, 136, 200},
      {{0}, 64, 64, 10},           {{700, 0, 33, 1100}, 1408, 2048, 7},
      {{4, 2000, 129}, 2816, 264}, {{257, 384}, 136, 520},
  };
  problems.push_back({std::vector<std::int64_t>(130, 3), 128, 128, 1});
  // As many experts as the tensor-core kernel takes, and more: those are the plain kernel's.
  problems.push_back({std::vector<std::int64_t>(cuda::kMaxTileExperts, 2), 64, 72, 1});
  problems.push_back({std::vector<std::int64_t>(cuda::kMaxTileExperts + 1, 2), 64, 72, 1});
  bool good = true;
  for (const Problem& p : problems) {
    for (const Direction* direction : {&kForward, &kDgrad}) good = check(device, {*direction, p}) && good;
    for (const bool accumulate : {false, true}) good = check(device, {kWgrad, p, accumulate}) && good;
  }
  fmt::print("{} problems: {}\n", problems.size(), good ? "all right" : "WRONG");
  return good;
}

// ---- times ---------------------------------------------------------------------------------------

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::vector<std::int64_t> rows_of(std::int64_t rows, std::int64_t experts, bool skewed) {
  double total = 0, sum = 0;
  for (std::int64_t e = 0; e < experts; ++e) total += skewed ? 1.0 / static_cast<double>(e + 1) : 1.0;
  std::vector<std::int64_t> result;
  std::int64_t before = 0;
  for (std::int64_t e = 0; e < experts; ++e) {
    sum += skewed ? 1.0 / static_cast<double>(e + 1) : 1.0;
    const auto end = std::llround(static_cast<double>(rows) * sum / total);
    result.push_back(end - before);
    before = end;
  }
  return result;
}

HostTensor random_block(std::int64_t count) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  HostTensor values(DType::f32, {count});
  for (float& x : values.values<float>()) x = normal(random);
  return convert_dtype(values, DType::bf16);
}

void time_direction(Device& device, const Direction& direction, const Problem& p, const char* name) {
  const Shapes shapes(direction, p);
  const bool wgrad = &direction == &kWgrad;
  const HostTensor block = random_block(1'000'003);
  const auto fill = [&](const Shape& shape) {
    const auto bytes = static_cast<std::size_t>(shape.num_elements()) * 2;
    auto memory = device.allocate(bytes);
    for (std::size_t at = 0; at < bytes; at += block.view().num_bytes())
      device.copy_in(memory.get() + at, block.view().data, std::min(block.view().num_bytes(), bytes - at));
    return memory;
  };
  const auto a = fill(shapes.a), b = fill(shapes.b);
  const auto d = device.allocate(static_cast<std::size_t>(shapes.d.num_elements()) * (wgrad ? 4 : 2));
  // A dense product of as many operations.
  const auto dense_b = fill({p.n, p.k}), dense_a = fill({p.all_rows(), p.k});
  const auto dense_d = device.allocate(static_cast<std::size_t>(p.all_rows() * p.n) * 2);
  const OnDevice offsets(device, integers(p.offsets()));
  const auto dense_workspace = device.allocate(cuda::kProductWorkspace);
  const GroupedProduct product{*device.compute_context(),
                               offsets.view().as<const std::int32_t>(),
                               p.all_rows(),
                               p.experts(),
                               p.n,
                               p.k,
                               a.get(),
                               b.get(),
                               nullptr,
                               d.get()};
  const std::vector<std::function<void()>> runs{[&] { direction.run(product); },
                                                [&] {
                                                  cuda::multiply(
                                                      *device.compute_context(),
                                                      {.transpose_b = true,
                                                       .m = p.all_rows(),
                                                       .n = p.n,
                                                       .k = p.k,
                                                       .in = DType::bf16,
                                                       .out = DType::bf16,
                                                       .a = dense_a.get(),
                                                       .lda = p.k,
                                                       .b = dense_b.get(),
                                                       .ldb = p.k,
                                                       .c = dense_d.get(),
                                                       .ldc = p.n},
                                                      {dense_workspace.get(), cuda::kProductWorkspace});
                                                }};
  std::vector<std::vector<double>> seconds(runs.size());
  const auto marks = device.make_time_marks(2);
  for (int round = -2; round < 15; ++round)
    for (std::size_t i = 0; i < runs.size(); ++i) {
      runs[i]();
      marks->set(0);
      for (int repeat = 0; repeat < 3; ++repeat) runs[i]();
      marks->set(1);
      if (const double each = marks->seconds(0, 1) / 3; round >= 0) seconds[i].push_back(each);
    }
  const double flops =
      2.0 * static_cast<double>(p.used_rows()) * static_cast<double>(p.n) * static_cast<double>(p.k);
  const auto rate = [&](std::size_t i) { return flops / median(seconds[i]) * 1e-12; };
  fmt::print("{:10} {:8} n {:5} k {:5}: {:6.1f}, dense {:6.1f} TFLOP/s\n", name, direction.name, p.n, p.k,
             rate(0), rate(1));
}

void time_all(Device& device) {
  for (const bool skewed : {false, true}) {
    const char* name = skewed ? "skewed" : "balanced";
    for (const auto& [n, k] : {std::pair<std::int64_t, std::int64_t>{2816, 2048}, {2048, 1408}}) {
      const Problem p{rows_of(98304, 64, skewed), n, k, 0}, back{p.rows, k, n, 0};
      time_direction(device, kForward, p, name);
      time_direction(device, kDgrad, back, name);
      time_direction(device, kWgrad, p, name);
    }
  }
}

}  // namespace
}  // namespace farskip

int main(int argc, char** argv) {
  try {
    const auto device = farskip::make_cuda_device();
    fmt::print("{}\n", device->name());
    if (!farskip::check_all(*device)) return 1;
    if (argc > 1 && std::string_view(argv[1]) == "--time") farskip::time_all(*device);
    return 0;
  } catch (const farskip::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return static_cast<int>(error.code());
  }
}
