// Large dense products on a GPU: their algorithm is chosen by time, and no bit may depend on that.
#include <cstring>

#include "farskip/backend/device.h"
#include "farskip/ops/ops.h"
#include "ops/op_case.h"
#include "support/catch.h"

namespace farskip::test {
namespace {

struct Problem {
  std::int64_t m, n, k;
  ops::Matmul attributes;
  bool accumulate;
};

/// A device of its own (so that nothing is known of the problem yet) with the operands of one product.
class Product {
 public:
  explicit Product(const Problem& p)
      : device_(make_cuda_device()), attributes_(Attributes::of(p.attributes)) {
    const auto stored = [](bool transposed, std::int64_t rows, std::int64_t columns) {
      return transposed ? Shape{columns, rows} : Shape{rows, columns};
    };
    add(convert_dtype(random_tensor(stored(p.attributes.transpose_a, p.m, p.k), 1), DType::bf16));
    add(convert_dtype(random_tensor(stored(p.attributes.transpose_b, p.k, p.n), 2), DType::bf16));
    HostTensor sum = random_tensor({p.m, p.n}, 3);
    if (!p.attributes.wide) sum = convert_dtype(sum, DType::bf16);
    add(sum);
    output_ = inputs_.back();  // in place
    if (!p.accumulate) inputs_.pop_back();
    kernel_ = &device_->kernels().at("matmul", DType::bf16, DeviceKind::cuda);
    workspace_bytes_ = kernel_->workspace({attributes_, {}, {}});
    memory_.push_back(device_->allocate(workspace_bytes_));
  }

  /// Launched at once, or in a recording, where nothing can be measured.
  HostTensor run(bool recorded) {
    std::unique_ptr<Recording> recording;
    if (recorded) device_->begin_recording();
    kernel_->run({attributes_,
                  inputs_,
                  {&output_, 1},
                  {memory_.back().get(), workspace_bytes_},
                  device_->compute_context()});
    if (recorded) {
      recording = device_->end_recording();
      recording->replay();
    }
    HostTensor result(output_.dtype, output_.shape);
    device_->copy_out(result.bytes().data(), output_.data, output_.num_bytes());
    return result;
  }

 private:
  void add(const HostTensor& tensor) {
    memory_.push_back(device_->allocate(tensor.view().num_bytes()));
    device_->copy_in(memory_.back().get(), tensor.view().data, tensor.view().num_bytes());
    inputs_.push_back({memory_.back().get(), tensor.dtype(), tensor.shape()});
  }

  std::shared_ptr<Device> device_;
  Attributes attributes_;
  std::vector<std::shared_ptr<std::byte[]>> memory_;
  std::vector<TensorView> inputs_;
  TensorView output_;
  const Kernel* kernel_ = nullptr;
  std::size_t workspace_bytes_ = 0;
};

}  // namespace

TEST_CASE("a dense product has the bits of the first algorithm, whichever was the quickest") {
  if (const std::string problem = why_no_cuda_device(); !problem.empty()) {
    fmt::print("skipped: {}\n", problem);
    return;
  }
  const std::vector<Problem> problems{{4096, 5632, 2048, {.transpose_b = true}, false},
                                      {4096, 2048, 1408, {.transpose_b = true}, true},
                                      {4096, 2816, 2048, {}, false},
                                      {2048, 1536, 4096, {.transpose_a = true, .wide = true}, true},
                                      {10240, 2048, 2048, {.transpose_a = true, .wide = true}, false},
                                      {4000, 4104, 520, {.transpose_b = true}, true}};
  for (const Problem& p : problems) {
    CAPTURE(p.m, p.n, p.k, p.accumulate);
    const HostTensor chosen = Product(p).run(false), first = Product(p).run(true);
    REQUIRE(chosen.bytes().size() == first.bytes().size());
    CHECK(std::memcmp(chosen.bytes().data(), first.bytes().data(), first.bytes().size()) == 0);
  }
}

}  // namespace farskip::test
