// SPDX-License-Identifier: Apache-2.0
#pragma once
// Ops that move data between ranks, and those that put it in order for that (part of the catalogue of ops.h,
// the same letters).

#include <cstdint>
#include <vector>

#include "farskip/base/mesh_position.h"
#include "farskip/ops/ops.h"

namespace farskip::ops {

// ---- experts/routed_rows.cpp ---------------------------------------------------------------------
//
// Experts spread over P ranks ("peers"), G of them on each (E = P * G). Rows for one peer are bounded by
// `max_rows`: dim 0 of everything received is P * max_rows, in slabs of one peer each.

struct RowExchange {
  std::int64_t peers = 1, groups = 1, max_rows = 0;
  std::int64_t rows = 0;  // R: rows sent by this rank
  static void fields(auto& self, auto&& f) {
    f("peers", self.peers);
    f("groups", self.groups);
    f("max_rows", self.max_rows);
    f("rows", self.rows);
  }
  friend bool operator==(const RowExchange&, const RowExchange&) = default;
};
struct ReceivedRows {
  ValueId slabs, counts, overflow;
};
/// Collective over `expert`. rows[R, H] (or [R]) grouped by expert, offsets i32[E+1] → (slabs [P*max_rows,
/// H]: slab p holds the rows from rank p, grouped by local expert, counts i32[P*G] of them, overflow i32[1]:
/// 1 where some peer would have got more than max_rows; what does not fit stays here, and the step must be
/// repeated with a larger bound).
ReceivedRows exchange_rows(Builder& b, ValueId rows, ValueId offsets, const RowExchange& attributes);
/// Collective over `expert`, the way back and the gradient of the above: slabs, counts, offsets → [R, H].
/// Rows that had not fit are 0.
ValueId return_rows(Builder& b, ValueId slabs, ValueId counts, ValueId offsets,
                    const RowExchange& attributes);

struct ExpertOrder {
  ValueId source, offsets, num_rows;
};
/// counts i32[P*G] → (source i32[P*max_rows], row-counted: the row of the slabs that is row r when all rows
/// are grouped by local expert, peers in order within an expert; offsets i32[G+1]; num_rows i32[1]).
ExpertOrder order_by_expert(Builder& b, ValueId counts, const RowExchange& attributes);

struct ScatterRows {
  std::int64_t rows = 0;
  static void fields(auto& self, auto&& f) { f("rows", self.rows); }
};
/// x[N, H] (or [N]), source i32[M] row-counted → [M, H]: out[r] = x[source[r]], counted as source is.
ValueId gather_rows(Builder& b, ValueId x, ValueId source);
// op "scatter_rows" {rows}: y[M, H], source → [rows, H]: out[source[r]] = y[r]; other rows are not written.
// Each is the other's gradient.
ValueId scatter_rows(Builder& b, ValueId y, ValueId source, std::int64_t rows);

// ---- experts/slabs.cpp ---------------------------------------------------------------------------
//
// The same rows where what is sent, too, stands in slabs (passes/rows_in_slabs.h): slab p of P * max_rows
// rows is for peer p. Slots (token t's choice k: t*K+k) are put there and taken from there directly.

struct SlabPlaces {
  ValueId places, counts, overflow;
};
/// slot_row i32[R], offsets i32[E+1] (of sort_by_expert) → (places i32[R]: the slab row of each slot, -1
/// where it does not fit; counts i32[P*G] of what is sent to each group; overflow i32[1], as exchange_rows
/// has it).
SlabPlaces slab_places(Builder& b, ValueId slot_row, ValueId offsets, const RowExchange& attributes);

struct SlabRows {
  std::int64_t top_k = 1;    // K; 0: each element of a slot is a row by itself
  std::int64_t rows = 0;     // of all slabs, P * max_rows
  std::int64_t columns = 0;  // of values that are taken from slabs, as PermuteValues
  static void fields(auto& self, auto&& f) {
    f("top_k", self.top_k);
    f("rows", self.rows);
    f("columns", self.columns);
  }
};
/// x[T, H], places → [rows, H]: row places[t*K+k] is x[t]; values of R elements (top_k 0) → [rows]. Rows that
/// no slot has are not written.
ValueId put_into_slabs(Builder& b, ValueId x, ValueId places, const SlabRows& attributes);
/// slabs[rows, H], places → [T, H]: Σ_k slabs[places[t*K+k]], in order of k; slabs[rows] (top_k 0) → R
/// elements. What did not fit counts as 0.
ValueId take_from_slabs(Builder& b, ValueId slabs, ValueId places, const SlabRows& attributes);

/// Collective over `expert`: slab p of the result is what rank p has in its slab for this rank. counts
/// i32[P*G] → those of the result.
struct MovedSlabs {
  ValueId slabs, counts;
};
MovedSlabs exchange_slabs(Builder& b, ValueId slabs, ValueId counts, const RowExchange& attributes);
/// The same where the counts are known.
ValueId return_slabs(Builder& b, ValueId slabs, const RowExchange& attributes);

// ---- collective.cpp ------------------------------------------------------------------------------
//
// Several tensors at once, as one message a peer. Those that are dealt out are cut by rows, a vector by
// elements.

struct Replicas {
  MeshAxis axis = MeshAxis::world;
  std::int64_t size = 1, rank = 0;
  /// reduce_scatter, all_gather: RowCut::bounds of each whole tensor, one after the other.
  std::vector<std::int64_t> bounds{};
  /// all_gather: how many matrices lie below each other in each whole tensor, which is then
  /// [matrices, rows, row size]; 0: a matrix or a vector. Empty: all are.
  std::vector<std::int64_t> matrices{};
  static void fields(auto& self, auto&& f) {
    f("axis", self.axis);
    f("size", self.size);
    f("rank", self.rank);
    f("bounds", self.bounds);
    f("matrices", self.matrices);
  }
  void add(const RowCut& cut) { bounds.insert(bounds.end(), cut.bounds.begin(), cut.bounds.end()); }
  std::size_t num_cuts() const { return bounds.size() / static_cast<std::size_t>(size + 1); }
  /// Rows of whole tensor `tensor`, and those of them that rank r has.
  std::int64_t num_rows(std::size_t tensor) const { return bound(tensor, size); }
  Range part(std::size_t tensor, std::int64_t r) const {
    return {bound(tensor, r), bound(tensor, r + 1) - bound(tensor, r)};
  }
  std::int64_t bound(std::size_t tensor, std::int64_t r) const {
    return bounds[tensor * static_cast<std::size_t>(size + 1) + static_cast<std::size_t>(r)];
  }
};
/// Tensors → their sums over the ranks of the axis, bf16 summed in f32. In place. The gradient is that of the
/// sums: whatever reads them is the same on every rank.
std::vector<ValueId> all_reduce(Builder& b, std::vector<ValueId> tensors, const Replicas& attributes);
/// Tensors as they are, where each rank of the axis goes on with a part of what follows: the gradient is the
/// sum of the ranks' gradients. Nothing runs in the forward (passes/drop_fan_out.h).
std::vector<ValueId> fan_out(Builder& b, std::vector<ValueId> tensors, const Replicas& attributes);
/// Tensors f32 → this rank's rows of their sums: [count, row size], or [count] of a vector.
std::vector<ValueId> reduce_scatter(Builder& b, std::vector<ValueId> tensors, const Replicas& attributes);
/// This rank's rows of several tensors → the whole tensors: [rows, row size], [rows], or with `matrices`. The
/// gradient is that of the rank's rows, as what reads the whole is the same on every rank.
std::vector<ValueId> all_gather(Builder& b, std::vector<ValueId> parts, const Replicas& attributes);

}  // namespace farskip::ops
