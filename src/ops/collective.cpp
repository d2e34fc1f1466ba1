// SPDX-License-Identifier: Apache-2.0
// Sums over replicas, and tensors put together from the rows that each replica keeps.
#include "ops/collective_ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

namespace {

constexpr std::size_t kMostTensors = 4096;

double total_bytes(std::span<const TensorType> types) {
  double bytes = 0;
  for (const TensorType& type : types) bytes += static_cast<double>(type.num_bytes());
  return bytes;
}
double total_bytes(std::span<const TensorType* const> types) {
  double bytes = 0;
  for (const TensorType* type : types) bytes += static_cast<double>(type->num_bytes());
  return bytes;
}
/// Share of the data that a rank sends in one half of an all-reduce.
double sent_share(const OpTypes& t) {
  const auto size = static_cast<double>(t.get<Replicas>().size);
  return (size - 1) / size;
}

MeshAxis axis(const Attributes& attributes) {
  return attributes.get<Replicas>().axis;
}

/// One message for all of them.
void sum_over_ranks(GradientCall& g) {
  std::vector<std::size_t> read;
  std::vector<ValueId> gradients;
  for (std::size_t i = 0; g.in(i); ++i)
    if (g.needs(i) && g.dout(i)) {
      read.push_back(i);
      gradients.push_back(g.dout(i));
    }
  if (read.empty()) return;
  const std::vector<ValueId> sums = all_reduce(g.builder(), gradients, g.get<Replicas>());
  for (std::size_t i = 0; i < read.size(); ++i) g.set(read[i], sums[i]);
}

/// The gradient of a rank's part is that of its rows of each whole tensor.
void take_own_rows(GradientCall& g) {
  const auto& a = g.get<Replicas>();
  for (std::size_t i = 0; g.in(i); ++i) {
    if (!g.needs(i) || !g.dout(i)) continue;
    const Range own = a.part(i, a.rank);
    std::vector<std::int64_t> rows;
    std::size_t place = 0;
    if (own.first > 0) rows.push_back(own.first);
    place = rows.size();
    rows.push_back(own.count);
    if (own.end() < a.num_rows(i)) rows.push_back(a.num_rows(i) - own.end());
    g.set(i, rows.size() == 1 ? g.dout(i) : split_rows(g.builder(), g.dout(i), std::move(rows))[place]);
  }
}

std::vector<TensorType> same_types(const OpTypes& t) {
  std::vector<TensorType> out;
  for (const TensorType* type : t.inputs) out.push_back(like(*type));
  return out;
}

std::vector<TensorType> reduce_scatter_types(const OpTypes& t) {
  const auto& a = t.get<Replicas>();
  FARSKIP_SHAPE(a.num_cuts() == t.inputs.size(), "reduce_scatter", t);
  std::vector<TensorType> out;
  for (std::size_t i = 0; i < t.inputs.size(); ++i) {
    FARSKIP_SHAPE(row_count(t.shape(i)) == a.num_rows(i), "reduce_scatter", t);
    out.push_back({t.in(i).dtype, shape_of_rows(t.shape(i), a.part(i, a.rank).count), {}});
  }
  return out;
}

std::vector<TensorType> all_gather_types(const OpTypes& t) {
  const auto& a = t.get<Replicas>();
  FARSKIP_SHAPE(a.num_cuts() == t.inputs.size() && (a.matrices.empty() || a.matrices.size() == a.num_cuts()),
                "all_gather", t);
  std::vector<TensorType> out;
  for (std::size_t i = 0; i < t.inputs.size(); ++i) {
    const Range own = a.part(i, a.rank);
    FARSKIP_SHAPE(
        row_count(t.shape(i)) == own.count && t.shape(i).num_elements() == own.count * row_size(t.shape(i)),
        "all_gather", t);
    const std::int64_t matrices = a.matrices.empty() ? 0 : a.matrices[i];
    FARSKIP_SHAPE(matrices == 0 || (t.shape(i).rank() == 2 && a.num_rows(i) % matrices == 0), "all_gather",
                  t);
    out.push_back({t.in(i).dtype,
                   matrices == 0 ? shape_of_rows(t.shape(i), a.num_rows(i))
                                 : Shape{matrices, a.num_rows(i) / matrices, row_size(t.shape(i))},
                   {}});
  }
  return out;
}

}  // namespace

void register_collective(OpTable& table);
void register_collective(OpTable& table) {
  table.add({.name = "all_reduce",
             .parse_attributes = &Attributes::parse<Replicas>,
             .min_inputs = 1,
             .max_inputs = kMostTensors,
             .inputs = {In::any},
             .infer = same_types,
             .gradient =
                 [](GradientCall& g) {
                   for (std::size_t i = 0; g.in(i); ++i) g.set(i, g.dout(i));
                 },
             .cost = [](const OpTypes& t) -> OpCost {
               return {.wire_bytes = 2 * sent_share(t) * total_bytes(t.inputs)};
             },
             .in_place_each = true,
             .collective = true,
             .axis = axis});

  table.add({.name = "fan_out",
             .parse_attributes = &Attributes::parse<Replicas>,
             .min_inputs = 1,
             .max_inputs = kMostTensors,
             .inputs = {In::any},
             .infer = same_types,
             .gradient = sum_over_ranks,
             .cheap = true});

  table.add({.name = "reduce_scatter",
             .parse_attributes = &Attributes::parse<Replicas>,
             .min_inputs = 1,
             .max_inputs = kMostTensors,
             .inputs = {In::any},
             .infer = reduce_scatter_types,
             .cost = [](const OpTypes& t) -> OpCost {
               return {.wire_bytes = sent_share(t) * total_bytes(t.inputs)};
             },
             .collective = true,
             .axis = axis});

  table.add({.name = "all_gather",
             .parse_attributes = &Attributes::parse<Replicas>,
             .min_inputs = 1,
             .max_inputs = kMostTensors,
             .inputs = {In::any},
             .infer = all_gather_types,
             .gradient = take_own_rows,
             .cost = [](const OpTypes& t) -> OpCost {
               return {.wire_bytes = sent_share(t) * total_bytes(t.outputs)};
             },
             .collective = true,
             .axis = axis});
}

namespace ops {
std::vector<ValueId> all_reduce(Builder& b, std::vector<ValueId> tensors, const Replicas& attributes) {
  return b.emit("all_reduce", attributes, std::move(tensors));
}
std::vector<ValueId> fan_out(Builder& b, std::vector<ValueId> tensors, const Replicas& attributes) {
  return b.emit("fan_out", attributes, std::move(tensors));
}
std::vector<ValueId> reduce_scatter(Builder& b, std::vector<ValueId> tensors, const Replicas& attributes) {
  return b.emit("reduce_scatter", attributes, std::move(tensors));
}
std::vector<ValueId> all_gather(Builder& b, std::vector<ValueId> parts, const Replicas& attributes) {
  return b.emit("all_gather", attributes, std::move(parts));
}
}  // namespace ops
}  // namespace farskip
