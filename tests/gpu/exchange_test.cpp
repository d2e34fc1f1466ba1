// SPDX-License-Identifier: Apache-2.0
// Routed rows between emulated ranks on a GPU against the mirror of them on the CPU: the same rows, counts
// and flags to the bit, launched one by one, recorded and replayed, and however often the bytes cross.
#include <cstring>

#include "comm/mirror.h"
#include "engine/devices.h"
#include "farskip/base/random.h"
#include "farskip/engine/batch.h"
#include "farskip/engine/engine.h"
#include "farskip/runtime/executor.h"
#include "ops/collective_ops.h"
#include "support/catch.h"
#include "support/skip.h"

namespace farskip {
namespace {

constexpr int kPeers = 4;

/// Tokens with a row of `width` each, or (width 0) with one value a choice.
struct Case {
  DType dtype = DType::f32;
  std::int64_t tokens = 0, top_k = 1, width = 0, groups = 0, max_rows = 0;
  std::vector<std::int32_t> rows{};  // [kPeers * groups] to each expert, tokens * top_k in all
};

Shape input_shape(const Case& c) {
  return c.width == 0 ? Shape{c.tokens, c.top_k} : Shape{c.tokens, c.width};
}

Graph build_graph(const Case& c) {
  Graph graph;
  const ValueId x = graph.add_external(ExternalKind::input, "rows", {c.dtype, input_shape(c), {}});
  const ValueId indices =
      graph.add_external(ExternalKind::input, "indices", {DType::i32, Shape{c.tokens, c.top_k}, {}});
  Builder b{graph, {}};
  const ops::RowExchange attributes{
      .peers = kPeers, .groups = c.groups, .max_rows = c.max_rows, .rows = c.tokens * c.top_k};
  const ops::RoutedOrder slots = ops::sort_by_expert(b, indices, kPeers * c.groups);
  const ValueId rows = c.width == 0 ? ops::permute_values(b, x, slots.row_slot, slots.slot_row)
                                    : ops::dispatch_rows(b, x, slots, c.top_k);
  const ops::ReceivedRows received = ops::exchange_rows(b, rows, slots.offsets, attributes);
  const ops::ExpertOrder order = ops::order_by_expert(b, received.counts, attributes);
  const ValueId sorted = ops::gather_rows(b, received.slabs, order.source);
  const ValueId slabs = ops::scatter_rows(b, sorted, order.source, kPeers * c.max_rows);
  const ValueId back = ops::return_rows(b, slabs, received.counts, slots.offsets, attributes);
  graph.add_output("counts", received.counts);
  graph.add_output("overflow", received.overflow);
  graph.add_output("num_rows", order.num_rows);
  graph.add_output("sorted", sorted);
  graph.add_output("back", c.width == 0
                               ? ops::permute_values(b, back, slots.slot_row, slots.row_slot, {c.top_k})
                               : ops::combine_rows(b, back, slots, c.top_k));
  return graph;
}

/// Experts of all slots, mixed.
HostTensor choose_experts(const Case& c) {
  std::vector<std::int32_t> experts;
  for (std::size_t e = 0; e < c.rows.size(); ++e)
    experts.insert(experts.end(), static_cast<std::size_t>(c.rows[e]), static_cast<std::int32_t>(e));
  for (std::size_t i = experts.size(); i > 1; --i)
    std::swap(experts[i - 1],
              experts[static_cast<std::size_t>(uniform_double(12, 0, i) * static_cast<double>(i))]);
  HostTensor indices(DType::i32, Shape{c.tokens, c.top_k});
  REQUIRE(experts.size() * sizeof(std::int32_t) == indices.bytes().size());
  std::memcpy(indices.bytes().data(), experts.data(), indices.bytes().size());
  return indices;
}

HostTensor random_rows(const Case& c) {
  HostTensor rows(c.dtype, input_shape(c));
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
    Graph graph = run_pipeline(build_graph(c), pipeline_for(device->kind(), {}), Logger(LogLevel::off));
    Plan plan = make_serial_plan(graph, workspace_rule(*device), waits);
    executor_ = std::make_unique<Executor>(std::move(graph), std::move(plan), device->kernels(), arena_,
                                           RankContext{&mesh_});
    bind("rows", random_rows(c));
    bind("indices", choose_experts(c));
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
  if (const std::string why = why_no_cuda_device(); !why.empty()) test::skip(why);
  const std::vector<Case> cases{
      {DType::f32, 20, 2, 12, 2, 40, {3, 6, 0, 11, 1, 9, 10, 0}},
      {DType::f32, 37, 1, 5, 1, 20, {0, 17, 20, 0}},               // empty peers, odd width
      {DType::f32, 32, 2, 7, 2, 11, {2, 10, 8, 11, 19, 2, 8, 4}},  // two peers have too many
      {DType::f32, 300, 3, 0, 3, 300, {1, 4, 4, 191, 99, 2, 199, 100, 1, 0, 149, 150}},
      {DType::f32, 32, 2, 0, 2, 11, {2, 10, 8, 11, 19, 2, 8, 4}},
      {DType::f32, 1000, 3, 512, 2, 2000, {700, 300, 1, 499, 0, 800, 600, 100}},  // several chunks
  };
  const auto device = make_cuda_device();
  for (const double payload : {1.0, 0.37, 2.6})
    for (const Waits waits : {Waits::at_once, Waits::late})
      for (const Case& c : cases) {
        CAPTURE(payload, c.tokens, c.width);
        const Results want = Run(c, make_cpu_device(), make_mirror_mesh({kPeers, 0, kPeers}), waits)();
        Run gpu(c, device, make_emulated_mesh(kPeers, {.expert = kPeers}, payload, *device), waits);
        for (int run = 0; run < 3; ++run) check_same(gpu(), want);
      }
}

}  // namespace
}  // namespace farskip
