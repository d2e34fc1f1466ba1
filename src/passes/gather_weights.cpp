// SPDX-License-Identifier: Apache-2.0
#include "passes/gather_weights.h"

#include <map>
#include <tuple>

#include "farskip/model/parameters.h"
#include "ops/collective_ops.h"

namespace farskip {
namespace {

/// Readers that share a gathered tensor.
using Use = std::tuple<std::int16_t, std::int16_t, Phase>;  // model, micro-batch, phase
Use use_of(const Scope& scope) {
  return {scope.model, scope.micro_batch, scope.phase};
}

/// Small tensors with one key travel together.
using BucketKey = std::tuple<Use, std::int32_t, SubBlock, MeshAxis, DType>;

class WeightGatherer {
 public:
  WeightGatherer(const Graph& graph, std::span<const TensorInParts> tensors, const MeshPosition& mesh,
                 std::size_t bucket_bytes)
      : graph_(graph), mesh_(mesh), bucket_bytes_(bucket_bytes) {
    for (const TensorInParts& tensor : tensors)
      if (const auto value = graph.find_external(tensor.name); value && mesh.size(tensor.rows.axis) > 1)
        tensors_[*value] = &tensor;
  }

  Graph run() {
    std::unordered_set<ValueId> replaced;
    for (const auto& [value, tensor] : tensors_) replaced.insert(value);
    GraphCopier copy(graph_, out_, {}, replaced);
    for (const External& e : graph_.externals())
      if (const auto it = tensors_.find(e.value); it != tensors_.end()) add_part(e, it->second->rows);
    find_buckets();
    for (std::size_t n = 0; n < graph_.nodes().size(); ++n) {
      for (const ValueId v : graph_.nodes()[n].inputs)
        if (tensors_.contains(v)) copy.map(v, gathered(v, graph_.nodes()[n].scope));
      copy.copy(NodeId(n));
    }
    copy.finish();
    return std::move(out_);
  }

 private:
  struct Bucket {
    Scope scope;
    std::vector<ValueId> tensors;
    std::size_t bytes = 0;
  };

  void add_part(const External& whole, const RowCut& rows) {
    const TensorType& type = graph_.type(whole.value);
    const std::int64_t own = rows.part(mesh_.rank(rows.axis)).count;
    parts_[whole.value] = out_.add_external(whole.kind, own_rows_name(whole.name),
                                            {type.dtype, shape_of_rows(type.shape, own), {}});
  }

  /// Fills buckets in order of the first readers.
  void find_buckets() {
    std::map<BucketKey, std::size_t> open;
    for (const Node& node : graph_.nodes())
      for (const ValueId v : node.inputs) {
        const auto it = tensors_.find(v);
        if (it == tensors_.end() || bucket_of_.contains({v, use_of(node.scope)})) continue;
        const std::size_t bytes = graph_.type(v).num_bytes();
        const BucketKey key{use_of(node.scope), node.scope.layer, node.scope.block, it->second->rows.axis,
                            graph_.type(v).dtype};
        const bool is_large = bytes >= bucket_bytes_;
        auto bucket = open.find(key);
        if (is_large || bucket == open.end() || buckets_[bucket->second].bytes >= bucket_bytes_) {
          buckets_.push_back({node.scope, {}, 0});
          if (!is_large) bucket = open.insert_or_assign(key, buckets_.size() - 1).first;
        }
        const std::size_t index = is_large ? buckets_.size() - 1 : bucket->second;
        buckets_[index].tensors.push_back(v);
        buckets_[index].bytes += bytes;
        bucket_of_[{v, use_of(node.scope)}] = index;
      }
  }

  /// The whole tensor, for a reader at this place.
  ValueId gathered(ValueId tensor, const Scope& scope) {
    const std::size_t index = bucket_of_.at({tensor, use_of(scope)});
    std::map<ValueId, ValueId>& wholes = gathered_[index];
    if (wholes.empty()) gather(buckets_[index], wholes);
    return wholes.at(tensor);
  }

  void gather(const Bucket& bucket, std::map<ValueId, ValueId>& wholes) {
    const MeshAxis axis = tensors_.at(bucket.tensors.front())->rows.axis;
    ops::Replicas attributes{.axis = axis, .size = mesh_.size(axis), .rank = mesh_.rank(axis)};
    std::vector<ValueId> parts;
    for (const ValueId v : bucket.tensors) {
      const Shape& shape = graph_.type(v).shape;
      attributes.add(tensors_.at(v)->rows);
      attributes.matrices.push_back(shape.rank() > 2 ? shape[0] : 0);
      parts.push_back(parts_.at(v));
    }
    Builder b{out_, bucket.scope};
    const std::vector<ValueId> whole = ops::all_gather(b, parts, attributes);
    for (std::size_t i = 0; i < whole.size(); ++i) {
      FARSKIP_CHECK(out_.type(whole[i]) == graph_.type(bucket.tensors[i]), "{} is gathered in another shape",
                    tensors_.at(bucket.tensors[i])->name);
      wholes[bucket.tensors[i]] = whole[i];
    }
  }

  const Graph& graph_;
  const MeshPosition mesh_;
  const std::size_t bucket_bytes_;
  Graph out_{graph_.ops()};
  std::map<ValueId, const TensorInParts*> tensors_;
  std::map<ValueId, ValueId> parts_;
  std::vector<Bucket> buckets_;
  std::map<std::pair<ValueId, Use>, std::size_t> bucket_of_;
  std::map<std::size_t, std::map<ValueId, ValueId>> gathered_;  // by bucket: whole tensors in the new graph
};

}  // namespace

Graph gather_weights(const Graph& graph, std::span<const TensorInParts> tensors, const MeshPosition& mesh,
                     std::size_t bucket_bytes) {
  return WeightGatherer(graph, tensors, mesh, bucket_bytes).run();
}

}  // namespace farskip
