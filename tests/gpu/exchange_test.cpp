// Routed rows between emulated ranks on a GPU against the mirror of them on the CPU: the same rows, counts
// and flags to the bit, launched one by one, recorded and replayed, and however often the bytes cross.
#include <cstring>

#include "farskip/base/random.h"
#include "farskip/comm/mirror.h"
#include "farskip/ops/ops.h"
#include "farskip/runtime/executor.h"
#include "farskip/train/device_tensors.h"
#include "farskip/train/devices.h"
#include "support/catch.h"

namespace farskip {
namespace {

constexpr int kPeers = 4;

struct Case {
  DType dtype = DType::f32;
  std::int64_t rows = 0, width = 0, groups = 0, max_rows = 0;  // width 0: a vector
  std::vector<std::int32_t> offsets{};                         // [kPeers * groups + 1]
};

Shape rows_shape(const Case& c) {
  return c.width == 0 ? Shape{c.rows} : Shape{c.rows, c.width};
}

Graph build_graph(const Case& c) {
  Graph graph;
  const ValueId rows = graph.add_external(ExternalKind::input, "rows", {c.dtype, rows_shape(c), {}});
  const ValueId offsets =
      graph.add_external(ExternalKind::input, "offsets", {DType::i32, Shape{kPeers * c.groups + 1}, {}});
  Builder b{graph, {}};
  const ops::RowExchange attributes{
      .peers = kPeers, .groups = c.groups, .max_rows = c.max_rows, .rows = c.rows};
  const ops::ReceivedRows received = ops::exchange_rows(b, rows, offsets, attributes);
  const ops::ExpertOrder order = ops::order_by_expert(b, received.counts, attributes);
  const ValueId sorted = ops::gather_rows(b, received.slabs, order.source);
  const ValueId slabs = ops::scatter_rows(b, sorted, order.source, kPeers * c.max_rows);
  const ValueId back = ops::return_rows(b, slabs, received.counts, offsets, attributes);
  graph.add_output("counts", received.counts);
  graph.add_output("overflow", received.overflow);
  graph.add_output("num_rows", order.num_rows);
  graph.add_output("sorted", sorted);
  graph.add_output("back", back);
  return graph;
}

HostTensor random_rows(const Case& c) {
  HostTensor rows(c.dtype, rows_shape(c));
  std::size_t at = 0;
  for (std::byte& byte : rows.bytes())  // small exponents: no NaN
    byte = static_cast<std::byte>(static_cast<unsigned>(uniform_double(11, 0, at++) * 0x3f));
  return rows;
}

struct Results {
  HostTensor counts, overflow, num_rows, sorted, back;
};

class Run {
 public:
  Run(const Case& c, const std::shared_ptr<Device>& device, const Mesh& mesh, Waits waits)
      : device_(device), mesh_(mesh), arena_(device) {
    Graph graph = build_graph(c);
    Plan plan = make_serial_plan(graph, workspace_rule(*device), waits);
    executor_ = std::make_unique<Executor>(std::move(graph), std::move(plan), device->kernels(), arena_,
                                           RankContext{&mesh_});
    HostTensor offsets(DType::i32, Shape{kPeers * c.groups + 1});
    std::memcpy(offsets.bytes().data(), c.offsets.data(), offsets.bytes().size());
    bind("rows", random_rows(c));
    bind("offsets", offsets);
  }

  Results operator()() {
    executor_->run();
    const auto read = [&](const char* name) { return executor_->read_output(name); };
    return {read("counts"), read("overflow"), read("num_rows"), read("sorted"), read("back")};
  }

 private:
  void bind(const char* name, const HostTensor& tensor) {
    TensorView view = tensor.view();
    buffers_.push_back(allocate_on(*device_, view.num_bytes()));
    device_->copy_in(buffers_.back().memory.get(), view.data, view.num_bytes());
    view.data = buffers_.back().memory.get();
    executor_->bind(name, view);
  }

  std::shared_ptr<Device> device_;
  Mesh mesh_;
  Arena arena_;
  std::unique_ptr<Executor> executor_;
  std::vector<DeviceBuffer> buffers_;
};

bool same(const HostTensor& a, const HostTensor& b, std::size_t bytes) {
  return std::memcmp(a.bytes().data(), b.bytes().data(), bytes) == 0;
}

void check_same(const Results& got, const Results& want) {
  CHECK(same(got.counts, want.counts, want.counts.bytes().size()));
  CHECK(same(got.overflow, want.overflow, want.overflow.bytes().size()));
  CHECK(same(got.num_rows, want.num_rows, want.num_rows.bytes().size()));
  const auto rows = static_cast<std::size_t>(want.num_rows.values<std::int32_t>()[0]);
  const auto all = static_cast<std::size_t>(want.sorted.shape()[0]);
  CHECK(same(got.sorted, want.sorted, want.sorted.bytes().size() / all * rows));
  CHECK(same(got.back, want.back, want.back.bytes().size()));
}

TEST_CASE("routed rows of emulated ranks travel as those of the mirror do") {
  if (const std::string why = why_no_cuda_device(); !why.empty()) {
    WARN("SKIP: " << why);
    return;
  }
  const std::vector<Case> cases{
      {DType::f32, 40, 12, 2, 40, {0, 3, 9, 9, 20, 21, 30, 40, 40}},
      {DType::f32, 37, 5, 1, 20, {0, 0, 17, 37, 37}},                  // empty peers, odd width
      {DType::f32, 64, 7, 2, 11, {0, 2, 12, 20, 31, 50, 52, 60, 64}},  // two peers have too many
      {DType::f32, 900, 0, 3, 300, {0, 1, 5, 9, 200, 299, 301, 500, 600, 601, 601, 750, 900}},
      {DType::f32, 3000, 512, 2, 2000, {0, 700, 1000, 1001, 1500, 1500, 2300, 2900, 3000}},  // several chunks
  };
  const auto device = make_cuda_device();
  for (const double payload : {1.0, 0.37, 2.6})
    for (const Waits waits : {Waits::at_once, Waits::late})
      for (const Case& c : cases) {
        CAPTURE(payload, c.rows, c.width);
        const Results want = Run(c, make_cpu_device(), make_mirror_mesh({kPeers, 0, kPeers}), waits)();
        Run gpu(c, device, make_emulated_mesh(kPeers, kPeers, payload, *device), waits);
        for (int run = 0; run < 3; ++run) check_same(gpu(), want);
      }
}

}  // namespace
}  // namespace farskip
