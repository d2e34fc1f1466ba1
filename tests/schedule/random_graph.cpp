// SPDX-License-Identifier: Apache-2.0
#include "random_graph.h"

#include "ops/collective_ops.h"

namespace farskip::test {
namespace {

class RandomGraph {
 public:
  explicit RandomGraph(std::mt19937& random) : random_(random) {
    for (const char* name : {"x", "z"})
      values_.push_back(graph_.add_external(ExternalKind::input, name, {DType::f32, Shape{8, 8}, {}}));
    for (int i = 0; i < 3; ++i)
      states_.push_back(
          graph_.add_external(ExternalKind::state, fmt::format("s{}", i), {DType::f32, Shape{8, 8}, {}}));
  }

  Graph run() {
    for (int i = 0; i < 20; ++i) add_node();
    graph_.add_output("y", values_.back());
    graph_.add_output("p", pick());
    for (const ValueId state : states_) {  // whose old version nobody reads from here on
      const ValueId sum = ops::add(b_, state, pick());
      graph_.add_update(state, random_() % 2 == 0 ? ops::all_reduce(b_, {sum}, replicas())[0] : sum);
    }
    return std::move(graph_);
  }

 private:
  static ops::Replicas replicas() { return {.axis = MeshAxis::world, .size = 2, .rank = 0}; }
  ValueId pick() { return values_[random_() % values_.size()]; }

  void add_node() {
    switch (random_() % 7) {
      case 0:
        return values_.push_back(ops::add(b_, pick(), random_() % 4 == 0 ? states_[random_() % 3] : pick()));
      case 1:
        return values_.push_back(ops::linear(b_, pick(), pick()));
      case 2:
        return values_.push_back(ops::all_reduce(b_, {pick()}, replicas())[0]);
      case 3: {
        const auto sums = ops::all_reduce(b_, {pick(), pick()}, replicas());
        values_.insert(values_.end(), sums.begin(), sums.end());
        return;
      }
      case 4:  // four sequences: a plan may run them one by one
        return values_.push_back(
            ops::attention(b_, pick(), pick(), pick(), {},
                           {.sequence_length = 2, .heads = 2, .kv_heads = 2, .scale = 0.5})
                .out);
      default: {
        const RowCut cut = cut_evenly(MeshAxis::world, 8, 2);
        ops::Replicas both = replicas(), attributes = replicas();
        both.add(cut);
        both.add(cut);
        auto parts = ops::reduce_scatter(b_, {pick(), pick()}, both);
        if (random_() % 2 == 0) parts[0] = ops::add(b_, parts[0], parts[1]);
        attributes.add(cut);
        values_.push_back(ops::all_gather(b_, {parts[0]}, attributes)[0]);
      }
    }
  }

  std::mt19937& random_;
  Graph graph_;
  Builder b_{graph_, {}};
  std::vector<ValueId> values_, states_;
};

}  // namespace

Graph make_random_graph(std::mt19937& random) {
  return RandomGraph(random).run();
}

}  // namespace farskip::test
