// SPDX-License-Identifier: Apache-2.0
// The ops that move data between ranks, through plan and executor, against plain loops over what all ranks
// hold.

#include "ops/collective_ops.h"

#include <numeric>
#include <random>
#include <set>
#include <string>

#include "rank_graph.h"
#include "support/catch.h"

namespace farskip::test {
namespace {

struct MeshShape {
  int ranks, expert;
  MeshPosition position(int rank) const { return {ranks, rank, expert}; }
};
const std::vector<MeshShape>& mesh_shapes() {
  static const std::vector<MeshShape> shapes{{1, 1}, {2, 1}, {2, 2}, {3, 1}, {3, 3}, {4, 1}, {4, 2}, {4, 4}};
  return shapes;
}
std::string text_of(const MeshShape& mesh, MeshAxis axis, Waits waits) {
  return fmt::format("{} ranks, expert {}, axis {}, waits {}", mesh.ranks, mesh.expert,
                     enum_names(MeshAxis())[static_cast<std::size_t>(axis)],
                     waits == Waits::late ? "late" : "at once");
}

/// The ranks of rank's group, in order.
std::vector<int> peers_of(const MeshShape& mesh, int rank, MeshAxis axis) {
  std::vector<int> peers;
  const MeshAxis other = axis == MeshAxis::expert ? MeshAxis::data : MeshAxis::expert;
  for (int r = 0; r < mesh.ranks; ++r)
    if (axis == MeshAxis::world || mesh.position(r).rank(other) == mesh.position(rank).rank(other))
      peers.push_back(r);
  return peers;
}
/// Even parts, but of a number of rows that is divisible by three: then the last rank has none, and the first
/// what it would have had.
RowCut cut_of(const Shape& shape, MeshAxis axis, int ranks) {
  RowCut cut = cut_evenly(axis, row_count(shape), ranks);
  if (row_count(shape) % 3 == 0 && ranks > 1) {
    const std::int64_t moved = cut.part(ranks - 1).count;
    for (int r = 1; r <= ranks; ++r) cut.bounds[static_cast<std::size_t>(r)] += r < ranks ? moved : 0;
  }
  return cut;
}

ops::Replicas replicas(const MeshPosition& at, MeshAxis axis) {
  return {.axis = axis, .size = at.size(axis), .rank = at.rank(axis)};
}

/// Calls check(mesh, axis, waits) for all of them.
template <class Check>
void for_each_group(const Check& check) {
  for (const MeshShape& mesh : mesh_shapes())
    for (const MeshAxis axis : {MeshAxis::world, MeshAxis::expert, MeshAxis::data})
      for (const Waits waits : {Waits::at_once, Waits::late}) {
        INFO(text_of(mesh, axis, waits));
        check(mesh, axis, waits);
      }
}

/// What `rank` holds: not round numbers, so that the order of a sum shows.
template <class T>
HostTensor held_tensor(DType dtype, const Shape& shape, int rank, std::size_t index) {
  HostTensor tensor(dtype, shape);
  std::mt19937 random(static_cast<unsigned>(rank) * 1000U + static_cast<unsigned>(index));
  std::normal_distribution<T> normal;
  for (T& x : tensor.values<T>()) x = normal(random);
  return tensor;
}

/// The sum over ranks, in their order.
template <class T>
HostTensor sum_of(DType dtype, const Shape& shape, const std::vector<int>& ranks, std::size_t index) {
  HostTensor sum = held_tensor<T>(dtype, shape, ranks[0], index);
  for (std::size_t r = 1; r < ranks.size(); ++r) {
    const HostTensor next = held_tensor<T>(dtype, shape, ranks[r], index);
    for (std::size_t i = 0; i < next.values<T>().size(); ++i) sum.values<T>()[i] += next.values<T>()[i];
  }
  return sum;
}

/// Rows of a tensor as a matrix, or elements of a vector.
TensorView rows_of(const TensorView& tensor, const Range& rows) {
  return {tensor.as<float>() + rows.first * row_size(tensor.shape), tensor.dtype,
          shape_of_rows(tensor.shape, rows.count)};
}

/// Vectors, matrices, stacks of matrices, fewer rows than ranks, nothing.
const std::vector<std::vector<Shape>>& shape_lists() {
  static const std::vector<std::vector<Shape>> lists{
      {Shape{7}},
      {Shape{5, 3}},
      {Shape{2, 3, 5}},
      {Shape{1, 4}},
      {Shape{7}, Shape{5, 3}, Shape{2, 3, 5}, Shape{1}, Shape{2, 9}, Shape{0, 4}, Shape{1, 6}}};
  return lists;
}

template <class T>
void check_all_reduce(DType dtype, const MeshShape& shape, MeshAxis axis, Waits waits, bool in_place) {
  for (const std::vector<Shape>& shapes : shape_lists()) {
    const auto results = on_ranks(shape.ranks, [&](const Communicator& world) {
      const Mesh mesh(world, shape.expert);
      RankGraph g;
      std::vector<HostTensor> held;
      std::vector<ValueId> values;
      for (std::size_t i = 0; i < shapes.size(); ++i) {
        held.push_back(held_tensor<T>(dtype, shapes[i], world.rank(), i));
        values.push_back(g.add(in_place ? ExternalKind::state : ExternalKind::input, fmt::format("x{}", i),
                               held[i].view()));
      }
      const auto sums = ops::all_reduce(g.b, values, replicas(mesh.position(), axis));
      for (std::size_t i = 0; i < shapes.size(); ++i) {
        if (in_place) g.graph.add_update(values[i], sums[i]);
        g.graph.add_output(fmt::format("y{}", i), sums[i]);
      }
      Tensors out = g.run(mesh, waits);
      for (std::size_t i = 0; i < shapes.size(); ++i) out[fmt::format("x{}", i)] = held[i];
      return out;
    });
    for (int rank = 0; rank < shape.ranks; ++rank)
      for (std::size_t i = 0; i < shapes.size(); ++i) {
        INFO("rank " << rank << ", tensor " << i << " of shape " << shapes[i].text());
        const Tensors& out = results[static_cast<std::size_t>(rank)];
        const HostTensor sum = sum_of<T>(dtype, shapes[i], peers_of(shape, rank, axis), i);
        CHECK(same_bits(out.at(fmt::format("y{}", i)), sum));
        CHECK(same_bits(out.at(fmt::format("x{}", i)),
                        in_place ? sum : held_tensor<T>(dtype, shapes[i], rank, i)));
      }
  }
}

TEST_CASE("all_reduce gives every rank of the group the sums in rank order, beside and in its inputs") {
  for_each_group([](const MeshShape& mesh, MeshAxis axis, Waits waits) {
    for (const bool in_place : {false, true}) {
      INFO((in_place ? "in place" : "beside"));
      check_all_reduce<float>(DType::f32, mesh, axis, waits, in_place);
      check_all_reduce<double>(DType::f64, mesh, axis, waits, in_place);
    }
  });
}

/// As a training step has it: a gradient is added to its accumulator, and the shard, which lies in that
/// accumulator's own rows, becomes the sum of these. Otherwise the shards lie elsewhere.
TEST_CASE("reduce_scatter gives each rank its rows of the sums, elsewhere and in the rows themselves") {
  for_each_group([](const MeshShape& shape, MeshAxis axis, Waits waits) {
    for (const bool in_place : {false, true})
      for (const std::vector<Shape>& shapes : shape_lists()) {
        const auto results = on_ranks(shape.ranks, [&](const Communicator& world) {
          const Mesh mesh(world, shape.expert);
          const MeshPosition at = mesh.position();
          RankGraph g;
          std::vector<HostTensor> held;
          std::vector<ValueId> values;
          for (std::size_t i = 0; i < shapes.size(); ++i) {
            held.push_back(held_tensor<float>(DType::f32, shapes[i], world.rank(), i));
            values.push_back(g.add(ExternalKind::state, fmt::format("x{}", i), held[i].view()));
          }
          ops::Replicas attributes = replicas(at, axis);
          for (const Shape& one : shapes) attributes.add(cut_of(one, axis, at.size(axis)));
          const auto sums = ops::reduce_scatter(g.b, values, attributes);
          for (std::size_t i = 0; i < shapes.size(); ++i) {
            if (in_place) {
              const Range own = cut_of(shapes[i], axis, at.size(axis)).part(at.rank(axis));
              g.graph.add_update(
                  g.add(ExternalKind::state, fmt::format("shard{}", i), rows_of(held[i].view(), own)),
                  sums[i]);
            }
            g.graph.add_output(fmt::format("y{}", i), sums[i]);
          }
          Tensors out = g.run(mesh, waits);
          if (!in_place)
            for (std::size_t i = 0; i < shapes.size(); ++i) out[fmt::format("x{}", i)] = held[i];
          return out;
        });
        for (int rank = 0; rank < shape.ranks; ++rank)
          for (std::size_t i = 0; i < shapes.size(); ++i) {
            INFO("rank " << rank << ", tensor " << i << " of shape " << shapes[i].text());
            const Tensors& out = results[static_cast<std::size_t>(rank)];
            const MeshPosition at = shape.position(rank);
            const HostTensor sum = sum_of<float>(DType::f32, shapes[i], peers_of(shape, rank, axis), i);
            const Range own = cut_of(shapes[i], axis, at.size(axis)).part(at.rank(axis));
            CHECK(same_bits(out.at(fmt::format("y{}", i)), copy_tensor(rows_of(sum.view(), own))));
            if (!in_place)
              CHECK(same_bits(out.at(fmt::format("x{}", i)),
                              held_tensor<float>(DType::f32, shapes[i], rank, i)));
          }
      }
  });
}

TEST_CASE("all_gather puts tensors together from the rows of the ranks, elsewhere and around them") {
  for_each_group([](const MeshShape& shape, MeshAxis axis, Waits waits) {
    for (const bool in_place : {false, true})
      for (const std::vector<Shape>& shapes : shape_lists()) {
        // The tensor that a group holds together is named by its first rank.
        const auto whole = [&](int rank, std::size_t i) {
          return held_tensor<float>(DType::f32, shapes[i], peers_of(shape, rank, axis)[0], i);
        };
        const auto results = on_ranks(shape.ranks, [&](const Communicator& world) {
          const Mesh mesh(world, shape.expert);
          const MeshPosition at = mesh.position();
          ops::Replicas attributes = replicas(at, axis);
          RankGraph g;
          std::vector<HostTensor> memory;
          std::vector<ValueId> parts;
          for (std::size_t i = 0; i < shapes.size(); ++i) {
            const HostTensor full = whole(world.rank(), i);
            const Range own = cut_of(shapes[i], axis, at.size(axis)).part(at.rank(axis));
            const TensorView from = rows_of(full.view(), own);
            memory.emplace_back(DType::f32, in_place ? shapes[i] : from.shape);
            std::memset(memory[i].bytes().data(), 0xff, memory[i].bytes().size());
            const TensorView part = in_place ? rows_of(memory[i].view(), own) : memory[i].view();
            if (from.num_bytes() > 0) std::memcpy(part.data, from.data, from.num_bytes());
            parts.push_back(g.add(ExternalKind::state, fmt::format("own{}", i), part));
            attributes.add(cut_of(shapes[i], axis, at.size(axis)));
          }
          const auto gathered = ops::all_gather(g.b, parts, attributes);
          for (std::size_t i = 0; i < shapes.size(); ++i) {
            if (in_place)
              g.graph.add_update(g.add(ExternalKind::state, fmt::format("whole{}", i),
                                       rows_of(memory[i].view(), {0, row_count(shapes[i])})),
                                 gathered[i]);
            g.graph.add_output(fmt::format("y{}", i), gathered[i]);
          }
          return g.run(mesh, waits, 2);
        });
        for (int rank = 0; rank < shape.ranks; ++rank)
          for (std::size_t i = 0; i < shapes.size(); ++i) {
            INFO("rank " << rank << ", tensor " << i << " of shape " << shapes[i].text());
            const HostTensor expected = whole(rank, i);
            CHECK(same_bits(results[static_cast<std::size_t>(rank)].at(fmt::format("y{}", i)),
                            copy_tensor(rows_of(expected.view(), {0, row_count(shapes[i])}))));
          }
      }
  });
}

// ---- rows to experts and back

struct Routing {
  std::int64_t groups, width, max_rows;         // width 0: a vector of rows
  std::vector<std::vector<std::int32_t>> rows;  // by rank: rows for each expert

  std::int64_t row_count(int rank) const {
    const auto& of_rank = rows[static_cast<std::size_t>(rank)];
    return std::accumulate(of_rank.begin(), of_rank.end(), std::int64_t{0});
  }
  std::int32_t offset(int rank, std::int64_t expert) const {
    const auto& of_rank = rows[static_cast<std::size_t>(rank)];
    return std::accumulate(of_rank.begin(), of_rank.begin() + expert, 0);
  }
  /// Rows that get from one rank to one peer: the first max_rows of those it has.
  std::int64_t sent(int from, std::int64_t peer) const {
    return std::min<std::int64_t>(max_rows, offset(from, (peer + 1) * groups) - offset(from, peer * groups));
  }
  HostTensor held(int rank) const {
    return held_tensor<float>(DType::f32, width == 0 ? Shape{row_count(rank)} : Shape{row_count(rank), width},
                              rank, 7);
  }
};

/// Rows for each expert: none, few or many, at random.
Routing random_routing(int ranks, int peers, std::int64_t groups, std::int64_t width, bool fits,
                       unsigned seed) {
  std::mt19937 random(seed);
  Routing routing{groups, width, 0, {}};
  for (int r = 0; r < ranks; ++r) {
    routing.rows.emplace_back();
    for (std::int64_t e = 0; e < peers * groups; ++e) {
      const auto kind = random() % 3;
      routing.rows.back().push_back(
          static_cast<std::int32_t>(kind == 0 ? 0 : random() % (kind == 1 ? 4 : 40)));
    }
  }
  for (int r = 0; r < ranks; ++r)
    for (int p = 0; p < peers; ++p)
      routing.max_rows = std::max<std::int64_t>(
          routing.max_rows, routing.offset(r, (p + 1) * groups) - routing.offset(r, p * groups));
  if (!fits) routing.max_rows = routing.max_rows / 2;
  return routing;
}

/// Sends the rows, doubles them there (while a product runs here), and brings them back.
Tensors exchange_on_rank(const Communicator& world, int expert_size, const Routing& routing, Waits waits) {
  const Mesh mesh(world, expert_size);
  const int rank = world.rank();
  const auto experts = static_cast<std::int64_t>(routing.rows[0].size());
  const HostTensor rows = routing.held(rank);
  HostTensor offsets(DType::i32, {experts + 1});
  for (std::int64_t e = 0; e <= experts; ++e)
    offsets.values<std::int32_t>()[static_cast<std::size_t>(e)] = routing.offset(rank, e);
  const HostTensor square = held_tensor<float>(DType::f32, {48, 48}, rank, 8);
  RankGraph g;
  const ops::RowExchange attributes{expert_size, routing.groups, routing.max_rows, routing.row_count(rank)};
  const ValueId x = g.add(ExternalKind::input, "rows", rows.view());
  const ValueId o = g.add(ExternalKind::input, "offsets", offsets.view());
  const ValueId s = g.add(ExternalKind::input, "square", square.view());
  const ops::ReceivedRows received = ops::exchange_rows(g.b, x, o, attributes);
  const ValueId product = ops::linear(g.b, s, s);
  const ValueId doubled = ops::add(g.b, received.slabs, received.slabs);
  const ValueId back = ops::return_rows(g.b, doubled, received.counts, o, attributes);
  g.graph.add_output("product", ops::linear(g.b, product, s));
  g.graph.add_output("slabs", received.slabs);
  g.graph.add_output("counts", received.counts);
  g.graph.add_output("overflow", received.overflow);
  g.graph.add_output("back", back);
  return g.run(mesh, waits, 2);
}

/// Counts and rows that `rank` should have received from its peer number p, who is rank `from`.
void check_slab(const Routing& routing, const Tensors& out, std::int64_t own, int from, std::int64_t p) {
  const std::int64_t size = std::max<std::int64_t>(1, routing.width), sent = routing.sent(from, own);
  const std::int32_t first = routing.offset(from, own * routing.groups);
  for (std::int64_t g = 0; g < routing.groups; ++g) {
    const std::int64_t begin = routing.offset(from, own * routing.groups + g) - first;
    const std::int64_t end = routing.offset(from, own * routing.groups + g + 1) - first;
    CHECK(out.at("counts").values<std::int32_t>()[static_cast<std::size_t>(p * routing.groups + g)] ==
          std::min(end, sent) - std::min(begin, sent));
  }
  const HostTensor held = routing.held(from);
  const auto expected = held.values<float>().subspan(static_cast<std::size_t>(first * size),
                                                     static_cast<std::size_t>(sent * size));
  const auto slab = out.at("slabs").values<float>().subspan(
      static_cast<std::size_t>(p * routing.max_rows * size), static_cast<std::size_t>(sent * size));
  CHECK(std::equal(slab.begin(), slab.end(), expected.begin()));
}

void check_exchange(const MeshShape& shape, const Routing& routing, Waits waits) {
  const auto results = on_ranks(shape.ranks, [&](const Communicator& world) {
    return exchange_on_rank(world, shape.expert, routing, waits);
  });
  for (int rank = 0; rank < shape.ranks; ++rank) {
    INFO("rank " << rank);
    const Tensors& out = results[static_cast<std::size_t>(rank)];
    const std::vector<int> peers = peers_of(shape, rank, MeshAxis::expert);
    for (std::size_t p = 0; p < peers.size(); ++p)
      check_slab(routing, out, shape.position(rank).rank(MeshAxis::expert), peers[p],
                 static_cast<std::int64_t>(p));
    const std::int64_t size = std::max<std::int64_t>(1, routing.width);
    HostTensor back = routing.held(rank);
    bool overflow = false;
    for (std::int64_t p = 0; p < shape.expert; ++p) {
      const std::int64_t first = routing.offset(rank, p * routing.groups), sent = routing.sent(rank, p);
      const std::int64_t end = routing.offset(rank, (p + 1) * routing.groups);
      overflow = overflow || sent < end - first;
      for (std::int64_t i = first * size; i < end * size; ++i)
        back.values<float>()[static_cast<std::size_t>(i)] *= i < (first + sent) * size ? 2.0F : 0.0F;
    }
    CHECK(out.at("overflow").values<std::int32_t>()[0] == (overflow ? 1 : 0));
    REQUIRE(out.at("back").shape() == back.shape());
    CHECK(std::equal(back.values<float>().begin(), back.values<float>().end(),
                     out.at("back").values<float>().begin()));
  }
}

TEST_CASE("rows get to their experts and back, those that do not fit come back as zero") {
  unsigned seed = 1;
  for (const MeshShape& mesh : mesh_shapes())
    for (const Waits waits : {Waits::at_once, Waits::late})
      for (const auto& [groups, width] : {std::pair{1, 5}, {3, 1}, {2, 0}, {4, 17}})
        for (const bool fits : {true, false}) {
          INFO(text_of(mesh, MeshAxis::expert, waits)
               << ", " << groups << " experts each, rows of " << width << (fits ? "" : ", too many rows"));
          check_exchange(mesh, random_routing(mesh.ranks, mesh.expert, groups, width, fits, ++seed), waits);
        }
}

TEST_CASE("all rows may go to one rank, and some ranks may have none") {
  for (const Waits waits : {Waits::at_once, Waits::late}) {
    check_exchange({4, 4}, {1, 3, 9, {{0, 0, 5, 0}, {0, 0, 9, 0}, {0, 0, 0, 0}, {0, 0, 1, 0}}}, waits);
    check_exchange({4, 4}, {1, 3, 4, {{0, 0, 5, 0}, {0, 0, 9, 0}, {0, 0, 0, 0}, {0, 0, 1, 0}}}, waits);
    check_exchange({3, 3}, {2, 2, 4, std::vector(3, std::vector<std::int32_t>(6, 0))}, waits);
  }
}

TEST_CASE("every collective of the catalogue has a test") {
  // The last two, which only a GPU's graphs have: tests/gpu/exchange_test.cpp.
  const std::set<std::string> tested{"all_reduce",  "reduce_scatter", "all_gather",  "exchange_rows",
                                     "return_rows", "exchange_slabs", "return_slabs"};
  for (const auto& [name, op] : op_table().all()) {
    INFO(name);
    CHECK((!op.collective || tested.contains(name)));
  }
}

}  // namespace
}  // namespace farskip::test
