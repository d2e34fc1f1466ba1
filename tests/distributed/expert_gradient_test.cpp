// SPDX-License-Identifier: Apache-2.0
// A routed block with its experts spread over ranks, forward and backward, against the block on one rank.

#include <cmath>
#include <random>

#include "autograd/gradient.h"
#include "farskip/ops/ops.h"
#include "passes/shard_experts.h"
#include "rank_graph.h"
#include "support/catch.h"

namespace farskip::test {
namespace {

struct Block {
  std::int64_t experts, tokens, top_k, hidden = 7, inner = 5;
};

HostTensor random_tensor(const Shape& shape, unsigned seed) {
  HostTensor tensor(DType::f32, shape);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (float& x : tensor.values<float>()) x = normal(random);
  return tensor;
}

/// Distinct experts for each token; of rank 1 all tokens choose the last ones.
HostTensor choice_of(const Block& block, int rank) {
  HostTensor choice(DType::i32, {block.tokens, block.top_k});
  std::mt19937 random(static_cast<unsigned>(rank) + 50U);
  std::int32_t* out = choice.values<std::int32_t>().data();
  for (std::int64_t t = 0; t < block.tokens; ++t) {
    const auto first = rank == 1
                           ? block.experts - block.top_k
                           : static_cast<std::int64_t>(random() % static_cast<unsigned long>(block.experts));
    for (std::int64_t k = 0; k < block.top_k; ++k)
      *out++ = static_cast<std::int32_t>((first + k) % block.experts);
  }
  return choice;
}

/// What a rank's tokens are and which gradient comes back for them; weights are the same everywhere.
Tensors externals_of(const Block& b, int rank) {
  const auto seed = 100U * static_cast<unsigned>(rank);
  return {{"x", random_tensor({b.tokens, b.hidden}, seed + 1)},
          {"weight", random_tensor({b.tokens, b.top_k}, seed + 2)},
          {"choice", choice_of(b, rank)},
          {"dy", random_tensor({b.tokens, b.hidden}, seed + 3)},
          {"up", random_tensor({b.experts, 2 * b.inner, b.hidden}, 7)},
          {"down", random_tensor({b.experts, b.hidden, b.inner}, 8)}};
}

/// Outputs "y" and "d<name>" of x, weight, up and down, on the experts that are here.
Tensors run_block(const Block& block, const Mesh& mesh, int data_of, std::int64_t max_rows, Waits waits) {
  Tensors tensors = externals_of(block, data_of);
  Graph whole;
  Builder b{whole, {0, 0, 0, SubBlock::routed, Phase::forward}};
  std::map<std::string, ValueId> in;
  for (const auto& [name, tensor] : tensors)
    in[name] =
        whole.add_external(name == "up" || name == "down" ? ExternalKind::parameter : ExternalKind::input,
                           name, {tensor.dtype(), tensor.shape(), {}});
  const ops::RoutedOrder order = ops::sort_by_expert(b, in["choice"], block.experts);
  const ValueId weight = ops::permute_values(b, in["weight"], order.row_slot, order.slot_row);
  const ValueId rows = ops::dispatch_rows(b, in["x"], order, block.top_k);
  const ValueId gate_up = ops::grouped_matmul(b, rows, in["up"], order.offsets);
  const ValueId out = ops::grouped_matmul(b, ops::swiglu(b, gate_up, weight), in["down"], order.offsets);
  whole.add_output("y", ops::combine_rows(b, out, order, block.top_k));

  RankGraph g;
  const int peers = mesh.expert().size();
  g.graph = shard_experts(whole, {.peers = peers, .max_rows = max_rows});
  std::vector<ValueId> wanted;
  const std::vector<std::string> names{"x", "weight", "up", "down"};
  for (const std::string& name : names) wanted.push_back(*g.graph.find_external(name));
  const auto gradients = differentiate(
      g.graph, std::vector<Objective>{{*g.graph.find_output("y"), *g.graph.find_external("dy")}}, wanted);
  for (std::size_t i = 0; i < names.size(); ++i) g.graph.add_output("d" + names[i], gradients[i]);
  for (auto& [name, tensor] : tensors) {
    TensorView view = tensor.view();
    if (name == "up" || name == "down") {  // of the own experts
      const std::int64_t here = block.experts / peers, size = view.shape[1] * view.shape[2];
      view = {view.as<float>() + mesh.expert().rank() * here * size, DType::f32,
              Shape{here, view.shape[1], view.shape[2]}};
    }
    g.bound.emplace(name, view);
  }
  return g.run(mesh, waits, 2);
}

double relative_error(const float* got, const float* want, std::int64_t count) {
  double worst = 0, largest = 1e-30;
  for (std::int64_t i = 0; i < count; ++i) {
    const double difference = static_cast<double>(got[i]) - static_cast<double>(want[i]);
    worst = std::max(worst, std::isfinite(difference) ? std::abs(difference) : 1e30);
    largest = std::max(largest, std::abs(static_cast<double>(want[i])));
  }
  return worst / largest;
}

TEST_CASE("experts on several ranks have together the gradients they have on one, and so have the tokens") {
  for (const int peers : {2, 3, 4})
    for (const Waits waits : {Waits::at_once, Waits::late})
      for (const std::int64_t slack : {0, 5}) {
        const Block block{.experts = 12, .tokens = 9, .top_k = 3};
        INFO(peers << " ranks, " << (waits == Waits::late ? "late" : "at once") << ", slack " << slack);
        const std::int64_t max_rows = block.tokens * block.top_k + slack;
        const auto sharded = on_ranks(peers, [&](const Communicator& world) {
          return run_block(block, Mesh(world, peers), world.rank(), max_rows, waits);
        });
        std::vector<float> up(static_cast<std::size_t>(12 * 10 * 7), 0),
            down(static_cast<std::size_t>(12 * 7 * 5), 0);
        for (int rank = 0; rank < peers; ++rank) {
          INFO("rank " << rank);
          const Tensors whole = run_block(block, make_self_mesh(), rank, 0, Waits::at_once);
          const Tensors& mine = sharded[static_cast<std::size_t>(rank)];
          CHECK(mine.at("row_overflow.0").values<std::int32_t>()[0] == 0);
          for (const char* name : {"y", "dx", "dweight"}) {
            INFO(name);
            const HostTensor &got = mine.at(name), &want = whole.at(name);
            REQUIRE(got.shape() == want.shape());
            CHECK(relative_error(got.values<float>().data(), want.values<float>().data(),
                                 want.num_elements()) < 2e-6);
          }
          for (auto& [name, sum] : {std::pair{"dup", &up}, {"ddown", &down}})
            for (std::size_t i = 0; i < sum->size(); ++i) (*sum)[i] += whole.at(name).values<float>()[i];
        }
        for (int rank = 0; rank < peers; ++rank)
          for (const auto& [name, sum] : {std::pair{"dup", &up}, {"ddown", &down}}) {
            INFO(name << " of rank " << rank);
            const HostTensor& got = sharded[static_cast<std::size_t>(rank)].at(name);
            REQUIRE(got.num_elements() * peers == static_cast<std::int64_t>(sum->size()));
            CHECK(relative_error(got.values<float>().data(), sum->data() + rank * got.num_elements(),
                                 got.num_elements()) < 5e-6);
          }
      }
}

TEST_CASE("where rows do not fit, the rank that has too many of them says so") {
  const Block block{.experts = 8, .tokens = 10, .top_k = 2};
  for (const std::int64_t max_rows : {20, 19}) {  // rank 1 sends all of its 20 rows to the last rank
    const auto results = on_ranks(4, [&](const Communicator& world) {
      return run_block(block, Mesh(world, 4), world.rank(), max_rows, Waits::late);
    });
    CHECK(results[1].at("row_overflow.0").values<std::int32_t>()[0] == (max_rows < 20 ? 1 : 0));
    CHECK(results[0].at("row_overflow.0").values<std::int32_t>()[0] == 0);
  }
}

}  // namespace
}  // namespace farskip::test
