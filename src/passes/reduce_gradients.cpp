// SPDX-License-Identifier: Apache-2.0
#include "passes/reduce_gradients.h"

#include <algorithm>
#include <map>

#include "farskip/model/parameters.h"
#include "ops/collective_ops.h"

namespace farskip {
namespace {

struct Gradient {
  std::string name;
  ValueId accumulator, value;
  NodeId producer;
  RowCut owners;
};
struct Bucket {
  MeshAxis axis = MeshAxis::batch;
  std::vector<Gradient> gradients;
  std::size_t bytes = 0;
};

class Reducer {
 public:
  Reducer(const Graph& graph, const ReductionOptions& options) : graph_(graph), options_(options) {}

  Graph run(std::span<const ReplicatedGradient> gradients) {
    for (const MeshAxis axis : {MeshAxis::batch, MeshAxis::data})
      if (options_.mesh.size(axis) > 1) make_buckets(gradients, axis);
    std::unordered_set<ValueId> without;
    if (options_.kept == KeptSum::accumulated_rows)
      for (const auto& [node, bucket] : buckets_)
        for (const Gradient& g : bucket.gradients) without.insert(g.accumulator);
    Graph out(graph_.ops());
    GraphCopier copy(graph_, out, {}, without);
    for (std::size_t n = 0; n < graph_.nodes().size(); ++n) {
      copy.copy(NodeId(n));
      const auto [first, last] = buckets_.equal_range(NodeId(n));
      for (auto it = first; it != last; ++it) reduce(it->second, out, copy);
    }
    accumulate(out);
    copy.finish();
    for (const StateUpdate& u : updates_) out.add_update(u.from, u.to);
    return out;
  }

 private:
  void make_buckets(std::span<const ReplicatedGradient> gradients, MeshAxis axis) {
    std::vector<Gradient> list;
    for (const ReplicatedGradient& g : gradients) {
      if (g.owners.axis != axis) continue;
      const ValueId accumulator = *graph_.find_external(g.accumulator);
      const auto update = std::find_if(graph_.updates().begin(), graph_.updates().end(),
                                       [&](const StateUpdate& u) { return u.from == accumulator; });
      FARSKIP_CHECK(update != graph_.updates().end() && graph_.value(update->to).producer,
                    "{} gets no new value", g.accumulator);
      list.push_back({g.accumulator, accumulator, update->to, graph_.value(update->to).producer, g.owners});
    }
    std::stable_sort(list.begin(), list.end(),
                     [](const Gradient& a, const Gradient& b) { return a.producer < b.producer; });
    const std::size_t full = bucket_size(list);
    Bucket bucket{axis, {}, 0};
    for (Gradient& g : list) {
      const std::size_t bytes = graph_.type(g.value).num_bytes();
      if (bytes >= full) {
        close({axis, {g}, bytes});
        continue;
      }
      bucket.bytes += bytes;
      bucket.gradients.push_back(std::move(g));
      if (bucket.bytes < full) continue;
      close(std::move(bucket));
      bucket = {axis, {}, 0};
    }
    if (!bucket.gradients.empty()) close(std::move(bucket));
  }

  /// Nothing is left to run under the last bucket, so that it should be a small part of all.
  std::size_t bucket_size(std::span<const Gradient> list) const {
    constexpr std::size_t fewest_buckets = 8, least_bytes = std::size_t{256} << 10;
    std::size_t all = 0;
    for (const Gradient& g : list) all += graph_.type(g.value).num_bytes();
    return std::min(options_.bucket_bytes, std::max(least_bytes, all / fewest_buckets));
  }

  void close(Bucket bucket) {
    const NodeId last = bucket.gradients.back().producer;
    buckets_.emplace(last, std::move(bucket));
  }

  void reduce(const Bucket& bucket, Graph& out, GraphCopier& copy) {
    const MeshPosition& mesh = options_.mesh;
    ops::Replicas attributes{
        .axis = bucket.axis, .size = mesh.size(bucket.axis), .rank = mesh.rank(bucket.axis)};
    Builder b{out, graph_.node(bucket.gradients.back().producer).scope};
    std::vector<ValueId> values;
    for (const Gradient& g : bucket.gradients) values.push_back(copy(g.value));
    if (options_.kept == KeptSum::whole) {
      const auto sums = ops::all_reduce(b, values, attributes);
      for (std::size_t i = 0; i < sums.size(); ++i) copy.map(bucket.gradients[i].value, sums[i]);
      return;
    }
    for (const Gradient& g : bucket.gradients) attributes.add(g.owners);
    const auto sums = ops::reduce_scatter(b, values, attributes);
    accumulate(out);
    for (std::size_t i = 0; i < sums.size(); ++i)
      updates_.push_back(
          {out.add_external(ExternalKind::state, own_rows_name(bucket.gradients[i].name), out.type(sums[i])),
           sums[i]});
    scope_ = b.scope;
  }

  /// Of the bucket before: were it right behind its transport, the order of the graph would wait for that.
  void accumulate(Graph& out) {
    if (options_.kept == KeptSum::accumulated_rows && options_.accumulate)
      for (std::size_t i = num_accumulated_; i < updates_.size(); ++i) {
        Builder b{out, scope_};
        updates_[i].to = ops::add(b, updates_[i].from, updates_[i].to);
      }
    num_accumulated_ = updates_.size();
  }

  const Graph& graph_;
  const ReductionOptions& options_;
  std::multimap<NodeId, Bucket> buckets_;  // by the node that completes them
  std::vector<StateUpdate> updates_;       // of own rows
  std::size_t num_accumulated_ = 0;        // of the updates
  Scope scope_;                            // of the last bucket
};

}  // namespace

Graph reduce_gradients(const Graph& graph, std::span<const ReplicatedGradient> gradients,
                       const ReductionOptions& options) {
  if (options.mesh.world_size == 1) return graph;
  return Reducer(graph, options).run(gradients);
}

}  // namespace farskip
