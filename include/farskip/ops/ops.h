// SPDX-License-Identifier: Apache-2.0
#pragma once
// Ops of a model and its losses: attributes, and the function that emits each. Those of other families are in
// collective_ops.h (between ranks), optimizer_ops.h, distill_ops.h and inference_ops.h. The rules (shape,
// gradient, cost) stand in src/ops/FAMILY.cpp, named below, the kernels in src/backend/cpu/FAMILY.cpp and
// src/backend/cuda/FAMILY.cu.
//
// Shape letters: T tokens of the micro-batch (B sequences of S), H hidden, V vocabulary, E experts, K
// experts per token (top-k), R routed rows (T*K), I expert width, A attention heads, G key-value heads,
// D query/key head size, Dv value head size. Matrices are row-major; "x[T, H]" is f32 unless said.
//
// In a graph that computes in bf16, "low" values are bf16: activations, their gradients, and the copies of
// matrices that products read. What else such a graph has stays f32 (each op says which), above all the
// gradient of every parameter (GradientCall::is_parameter). Ops for which nothing is said take all low or all
// f32, and give the same.

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "farskip/base/mesh_position.h"
#include "farskip/graph/graph.h"

namespace farskip::ops {

// ---- dense/embedding.cpp -------------------------------------------------------------------------

/// It says which part of a vocabulary the rows of a matrix are, where it is cut over ranks.
struct VocabularyPart {
  std::int64_t first = 0;  // id of the first row
  std::int64_t of = 0;  // ids of the whole vocabulary; rows for none of them are padding. 0: it is all here
  static void fields(auto& self, auto&& f) {
    f("first", self.first);
    f("of", self.of);
  }
  /// Ids of all ranks, and ids here, for a matrix of so many rows.
  std::int64_t size(std::int64_t rows) const { return of == 0 ? rows : of; }
  Range own(std::int64_t rows) const {
    return {first, std::clamp<std::int64_t>(size(rows) - first, 0, rows)};
  }
};

/// table[V, H], tokens i32[T] → [T, H]: row tokens[t] of the table, zeros where another part has it. The
/// gradient is f32.
ValueId embedding(Builder& b, ValueId table, ValueId tokens, const VocabularyPart& part = {});

struct EmbeddingGrad {
  std::int64_t rows = 0;  // of the table
  std::int64_t first = 0, of = 0;
  static void fields(auto& self, auto&& f) {
    f("rows", self.rows);
    f("first", self.first);
    f("of", self.of);
  }
  VocabularyPart part() const { return {first, of}; }
};
// op "embedding_grad": dy[T, H], tokens i32[T], [accumulate [V, H]] → dtable[V, H]; rows of one token id
// are summed in order of t.

// ---- dense/elementwise.cpp -----------------------------------------------------------------------

enum class CastTo : std::uint8_t { f32, bf16 };
constexpr auto enum_names(CastTo) {
  return std::array<std::string_view, 2>{"f32", "bf16"};
}
struct Cast {
  CastTo dtype = CastTo::f32;
  static void fields(auto& self, auto&& f) { f("dtype", self.dtype); }
};
/// x of any shape, f32 → bf16 (rounded to nearest even) or bf16 → f32. x itself where it is of that type.
ValueId cast(Builder& b, ValueId x, DType dtype);

/// a + b, same shape. In place in a or b.
ValueId add(Builder& b, ValueId x, ValueId y);

struct Clamp {
  double limit = 0.0;
  static void fields(auto& self, auto&& f) { f("limit", self.limit); }
};
/// x with every element cut to [-limit, limit]. In place.
ValueId clamp(Builder& b, ValueId x, double limit);
// op "clamp_grad" {limit}: dy, x → dx: dy where x was not cut, its bounds included. In place in dy.

struct Ones {
  std::int64_t size = 0;
  static void fields(auto& self, auto&& f) { f("size", self.size); }
};
/// → f32 [size] of ones: the weight of a norm that has none.
ValueId ones(Builder& b, std::int64_t size);

/// x[T, D], scale f32[T] or [T, 1] → x with each row times its scale. In place.
ValueId scale_rows(Builder& b, ValueId x, ValueId scale);
// op "scale_rows_grad": dy[T, D], x[T, D], scale f32[T] → (dx, dscale f32[T]). In place: dx in dy.
/// x[T, N], b[N] → x with b added to each row. In place in x. Of a low x: b and its gradient are f32.
ValueId add_bias(Builder& b, ValueId x, ValueId bias);
// op "add_bias_grad": dy[T, N], [accumulate db[N]] → db[N], the sums of columns.
/// x[T, N*D], gate[T, N*D] → x · sigmoid(gate), element by element. In place in x.
ValueId sigmoid_gate(Builder& b, ValueId x, ValueId gate);
// op "sigmoid_gate_grad": dy, x, gate → (dx, dgate). In place: dx in dy, dgate in gate.

// ---- dense/matmul.cpp ----------------------------------------------------------------------------

struct Matmul {
  bool transpose_a = false, transpose_b = false;
  bool wide = false;  // of low a and b: the product is f32, as for the gradient of a parameter
  static void fields(auto& self, auto&& f) {
    f("transpose_a", self.transpose_a);
    f("transpose_b", self.transpose_b);
    f("wide", self.wide);
  }
};
// op "matmul": a, b (both low or both f32), [accumulate [M, N], of the product's type] → op(a)[M, K] ·
// op(b)[K, N] (+ accumulate; rounded once).
ValueId matmul(Builder& b, ValueId x, ValueId y, Matmul attributes = {});
/// x[T, in], w[out, in] → x · wᵀ [T, out].
inline ValueId linear(Builder& b, ValueId x, ValueId w) {
  return matmul(b, x, w, {.transpose_a = false, .transpose_b = true});
}

// ---- dense/norm.cpp ------------------------------------------------------------------------------

struct RmsNorm {
  double eps = 1e-6;
  static void fields(auto& self, auto&& f) { f("eps", self.eps); }
};
/// x[T, N*D], w[D] → (y[T, N*D], rstd[T, N]): each group of D elements is divided by its root mean square
/// (rstd = 1/sqrt(mean(x²) + eps)) and multiplied by w. N = 1 for a layer norm, the heads for a q/k norm.
/// Of a low x: w, its gradient and rstd are f32.
ValueId rms_norm(Builder& b, ValueId x, ValueId w, double eps);
// op "rms_norm_grad" {eps}: dy[T, N*D], x[T, N*D], w[D], rstd[T, N], [accumulate dw[D]], [accumulate dx] →
// (dx, dw[D]). In place: dx in dy or in what it is added to.

// ---- dense/rope.cpp ------------------------------------------------------------------------------

enum class RopeScaling : std::uint8_t { none, yarn, linear, llama3 };
constexpr auto enum_names(RopeScaling) {
  return std::array<std::string_view, 4>{"none", "yarn", "linear", "llama3"};
}

/// Frequencies of rotary embedding. linear: all divided by factor (position interpolation, arXiv 2306.15595).
/// yarn (arXiv 2309.00071, as in DeepSeek-V2) and llama3 (Llama 3.1) divide those that turn less than
/// beta_slow times over the original positions and keep those that turn more than beta_fast times; between
/// the two, yarn blends linearly in the index of the pair, llama3 in the number of turns.
struct RopeTable {
  std::int64_t positions = 0;  // rows: positions 0 .. positions-1, or as they are given
  std::int64_t dim = 0;        // rotated elements of a head, even
  double theta = 10000.0;
  RopeScaling scaling = RopeScaling::none;
  double factor = 1.0;
  std::int64_t original_positions = 0;
  double beta_fast = 32.0, beta_slow = 1.0;
  double attention_factor = 1.0;  // multiplies cos and sin
  static void fields(auto& self, auto&& f) {
    f("positions", self.positions);
    f("dim", self.dim);
    f("theta", self.theta);
    f("scaling", self.scaling);
    f("factor", self.factor);
    f("original_positions", self.original_positions);
    f("beta_fast", self.beta_fast);
    f("beta_slow", self.beta_slow);
    f("attention_factor", self.attention_factor);
  }
};
/// [positions i32[P]] → [P, dim]: cos of the dim/2 angles, then sin of them. Computed in f64, stored as f32.
ValueId rope_table(Builder& b, const RopeTable& attributes, ValueId positions = {});

struct Rope {
  std::int64_t head_dim = 0;  // x has N heads of this size in a row
  std::int64_t offset = 0;    // first rotated element of a head
  std::int64_t dim = 0;       // rotated elements
  bool interleaved = false;   // pairs (2i, 2i+1); otherwise (i, i + dim/2)
  bool inverse = false;       // rotates by minus the angle: the gradient
  static void fields(auto& self, auto&& f) {
    f("head_dim", self.head_dim);
    f("offset", self.offset);
    f("dim", self.dim);
    f("interleaved", self.interleaved);
    f("inverse", self.inverse);
  }
};
/// x[T, N*head_dim], table[S, dim] → same shape; token t has position t mod S. Rotated in place within the
/// head: element order is kept for both pairings. In place in x.
ValueId rope(Builder& b, ValueId x, ValueId table, const Rope& attributes);

struct AttentionTemperature {
  std::int64_t tokens = 0, sequence_length = 0;  // T, S; T is a multiple of S
  std::int64_t floor = 1;                        // positions that share a temperature
  double scale = 0.0;
  static void fields(auto& self, auto&& f) {
    f("tokens", self.tokens);
    f("sequence_length", self.sequence_length);
    f("floor", self.floor);
    f("scale", self.scale);
  }
};
/// [positions i32[T]] → f32 [T]: 1 + scale · ln(1 + ⌊(p + 1) / floor⌋) for the position p of each token (by
/// default that in its sequence), by which Llama 4 scales queries that are not rotated (arXiv 2501.19399).
/// Computed in f64.
ValueId attention_temperature(Builder& b, const AttentionTemperature& attributes, ValueId positions = {});

// ---- attention/attention.cpp ---------------------------------------------------------------------

struct Attention {
  std::int64_t sequence_length = 0;  // S; T is a multiple of it
  std::int64_t heads = 0;            // A
  std::int64_t kv_heads = 0;         // G, divides A: head a reads key-value head a / (A/G)
  double scale = 1.0;                // softmax(scale · q kᵀ)
  std::int64_t chunk = 0;            // > 0: position i attends only inside [i - i mod chunk, i]
  bool deterministic = true;         // false: a gradient whose sums have no fixed order is welcome
  static void fields(auto& self, auto&& f) {
    f("sequence_length", self.sequence_length);
    f("heads", self.heads);
    f("kv_heads", self.kv_heads);
    f("scale", self.scale);
    f("chunk", self.chunk);
    f("deterministic", self.deterministic);
  }
};
struct AttentionResult {
  ValueId out, lse;
};
/// Causal attention. q[T, A*D], k[T, G*D], v[T, G*Dv], [document_start i32[T]] → (out[T, A*Dv],
/// lse[T, A]: log of the softmax denominator, natural). Position i attends to j in
/// [max(document_start[i], chunk start), i]. Never forms [S, S] of a head in memory. lse is f32.
AttentionResult attention(Builder& b, ValueId q, ValueId k, ValueId v, ValueId document_start,
                          const Attention& attributes);
// op "attention_grad" (same attributes): dout, q, k, v, out, lse, [document_start] → dq, dk, dv.

// ---- attention/mla.cpp ---------------------------------------------------------------------------

struct MlaKeyValue {
  std::int64_t heads = 0, nope_dim = 0, rope_dim = 0, v_dim = 0;
  static void fields(auto& self, auto&& f) {
    f("heads", self.heads);
    f("nope_dim", self.nope_dim);
    f("rope_dim", self.rope_dim);
    f("v_dim", self.v_dim);
  }
};
/// kv[T, A*(nope+v)], k_rope[T, rope] → (k[T, A*(nope+rope)], v[T, A*v]): head a of k is the nope part of
/// head a of kv followed by k_rope, which all heads share.
std::pair<ValueId, ValueId> mla_key_value(Builder& b, ValueId kv, ValueId k_rope,
                                          const MlaKeyValue& attributes);
// op "mla_key_value_grad" (same attributes): dk, dv → (dkv, dk_rope: summed over heads in order).

// ---- dense/columns.cpp ---------------------------------------------------------------------------

struct SplitColumns {
  std::vector<std::int64_t> widths;
  static void fields(auto& self, auto&& f) { f("widths", self.widths); }
};
/// x[T, Σ widths] → one [T, width] each.
std::vector<ValueId> split_columns(Builder& b, ValueId x, std::vector<std::int64_t> widths);
struct ColumnRange {
  std::int64_t first = 0, count = 0, of = 0;
  static void fields(auto& self, auto&& f) {
    f("first", self.first);
    f("count", self.count);
    f("of", self.of);
  }
};
/// x[T, of] → [T, count]: columns from `first` on. op "place_columns" (same attributes): [T, count] → [T,
/// of], 0 in all other columns. Each is the other's gradient.
ValueId take_columns(Builder& b, ValueId x, const ColumnRange& attributes);
/// The reverse ("concat_columns", up to 8 inputs).
ValueId concat_columns(Builder& b, std::vector<ValueId> parts);
struct SideBySide {
  std::int64_t parts = 1, columns = 0;
  static void fields(auto& self, auto&& f) {
    f("parts", self.parts);
    f("columns", self.columns);
  }
};
/// x[parts·T, W], matrices [T, W] one below the other → [T, columns]: one beside the other, without the last
/// columns where `columns` is less than parts·W. Not differentiable.
ValueId side_by_side(Builder& b, ValueId x, const SideBySide& attributes);

// ---- dense/rows.cpp ------------------------------------------------------------------------------

inline constexpr std::size_t kMostRowParts = 16;
struct SplitRows {
  std::vector<std::int64_t> rows;
  static void fields(auto& self, auto&& f) { f("rows", self.rows); }
};
/// x[Σ rows, …] → one [rows, …] each, of any type.
std::vector<ValueId> split_rows(Builder& b, ValueId x, std::vector<std::int64_t> rows);
/// The reverse ("concat_rows", up to kMostRowParts inputs).
ValueId concat_rows(Builder& b, std::vector<ValueId> parts);

// ---- dense/activation.cpp ------------------------------------------------------------------------

/// x[T, 2I] (gate, then up), [row_weight [T]] → silu(gate) * up * row_weight, [T, I]. row_weight is f32.
ValueId swiglu(Builder& b, ValueId x, ValueId row_weight = {});
// op "swiglu_grad": dy[T, I], x[T, 2I], [row_weight [T]] → (dx[T, 2I], d_row_weight[T]). The second output
// exists only with row_weight. In place: dx in x.

// ---- experts/router.cpp --------------------------------------------------------------------------

enum class ScoreFunction : std::uint8_t { softmax, sigmoid };
constexpr auto enum_names(ScoreFunction) {
  return std::array<std::string_view, 2>{"softmax", "sigmoid"};
}
/// How a group of experts is scored for group-limited routing: DeepSeek-V2 takes the best expert, V3 the
/// sum of the two best.
enum class GroupScore : std::uint8_t { max, top2_sum };
constexpr auto enum_names(GroupScore) {
  return std::array<std::string_view, 2>{"max", "top2_sum"};
}

struct Route {
  std::int64_t top_k = 1;                        // K
  ScoreFunction score = ScoreFunction::softmax;  // over all experts, before the choice
  std::int64_t num_groups = 1, top_groups = 1;   // group-limited: only experts of the best groups
  GroupScore group_score = GroupScore::max;
  bool normalize = false;  // weights divided by (their sum + 1e-20)
  double scaling = 1.0;    // then multiplied by this
  bool by_logits = false;  // logits in place of scores choose (same order, but scores may tie); no groups
  static void fields(auto& self, auto&& f) {
    f("top_k", self.top_k);
    f("score", self.score);
    f("num_groups", self.num_groups);
    f("top_groups", self.top_groups);
    f("group_score", self.group_score);
    f("normalize", self.normalize);
    f("scaling", self.scaling);
    f("by_logits", self.by_logits);
  }
};
struct RouteResult {
  ValueId indices, weights, scores;
};
/// logits[T, E], [selection bias [E]] → (indices i32[T, K], weights[T, K], scores[T, E]). The bias takes
/// part in choosing (experts and groups) only. Indices by descending choice score, ties to the lower
/// index. Indices carry no gradient.
RouteResult route(Builder& b, ValueId logits, ValueId selection_bias, const Route& attributes);
// op "route_grad" (same attributes): d_weights[T, K] or absent, d_scores[T, E] or absent, scores, indices
// → dlogits[T, E].

// ---- experts/balance.cpp -------------------------------------------------------------------------

struct BalanceLoss {
  std::int64_t sequence_length = 0;
  bool normalize_scores = false;  // sigmoid scores are divided by their sum first
  static void fields(auto& self, auto&& f) {
    f("sequence_length", self.sequence_length);
    f("normalize_scores", self.normalize_scores);
  }
};
/// scores[T, E], indices i32[T, K] → [1]: Σ over sequences of Σ_e f_e · P_e with f_e = E/(K·S) · (times e
/// was chosen in the sequence), P_e = mean score of e over the sequence (DeepSeek-V2, eq. 23-25, per
/// sequence, so that it does not depend on the layout). f carries no gradient.
ValueId balance_loss(Builder& b, ValueId scores, ValueId indices, const BalanceLoss& attributes);
// op "balance_loss_grad" (same attributes): dloss[1], scores, indices → dscores.

// ---- experts/dispatch.cpp ------------------------------------------------------------------------

struct SortByExpert {
  std::int64_t num_experts = 0;
  static void fields(auto& self, auto&& f) { f("num_experts", self.num_experts); }
};
struct RoutedOrder {
  ValueId row_slot, slot_row, offsets;
};
/// indices i32[T, K] → (row_slot i32[R]: routed row r comes from slot t*K+k, slot_row i32[R]: the inverse,
/// offsets i32[E+1]: rows of expert e are [offsets[e], offsets[e+1])). Rows are grouped by expert, in
/// order of slots within an expert (a stable counting sort).
RoutedOrder sort_by_expert(Builder& b, ValueId indices, std::int64_t num_experts);

struct OwnExperts {
  std::int64_t first = 0, count = 0;
  static void fields(auto& self, auto&& f) {
    f("first", self.first);
    f("count", self.count);
  }
};
/// The same order for the rows of some experts alone: row_slot i32[R] row-counted, slot_row -1 where a slot's
/// expert is none of them, offsets i32[count + 1].
RoutedOrder own_experts(Builder& b, const RoutedOrder& order, const OwnExperts& attributes);

struct TopK {
  std::int64_t top_k = 1;
  static void fields(auto& self, auto&& f) { f("top_k", self.top_k); }
};
/// x[T, H], order → [R, H]: row r is x[row_slot[r] / K].
ValueId dispatch_rows(Builder& b, ValueId x, const RoutedOrder& order, std::int64_t top_k);
/// y[R, H], order → [T, H]: Σ_k y[slot_row[t*K+k]], in order of k; a slot without a row counts as 0. Each is
/// the other's gradient.
ValueId combine_rows(Builder& b, ValueId y, const RoutedOrder& order, std::int64_t top_k);
struct PermuteValues {
  std::int64_t columns = 0;  // 0: the result is [R]; otherwise [R / columns, columns]
  static void fields(auto& self, auto&& f) { f("columns", self.columns); }
};
/// values f32[any shape of R elements], index i32[R], inverse i32[R] → R elements: out[i] =
/// values[index[i]], or 0 where that is -1. The gradient swaps index and inverse.
ValueId permute_values(Builder& b, ValueId values, ValueId index, ValueId inverse,
                       PermuteValues attributes = {});

// ---- experts/grouped_matmul.cpp ------------------------------------------------------------------

struct GroupedMatmul {
  bool transpose_w = true;
  static void fields(auto& self, auto&& f) { f("transpose_w", self.transpose_w); }
};
/// x[R, K'], w[E, N, K'], offsets i32[E+1] → [R, N]: rows of expert e times w[e]ᵀ. transpose_w = false:
/// x[R, N], w[E, N, K'] → [R, K'], rows times w[e]. Experts without rows are fine. The gradient of w is f32.
ValueId grouped_matmul(Builder& b, ValueId x, ValueId w, ValueId offsets, GroupedMatmul attributes = {});
// op "grouped_matmul_wgrad": dy[R, N], x[R, K'], offsets, [accumulate [E, N, K']] → dw[E, N, K'].

// ---- heads/loss.cpp ------------------------------------------------------------------------------

struct LossResult {
  ValueId loss_sum, num_correct;
};
/// Cross-entropy fused with the head: h[T, H], w[V, H], targets i32[T] (-1: not counted) → (loss_sum [1]:
/// Σ over counted tokens of logsumexp(h wᵀ) - (h wᵀ)[target], num_correct i32[1]: counted tokens whose
/// target has the largest logit). Works on blocks of tokens: no [T, V] buffer exists. h and w may be low, the
/// loss and dw are f32.
LossResult linear_cross_entropy(Builder& b, ValueId h, ValueId w, ValueId targets);
/// The same for each token: losses[T], wide, 0 where the target is not counted. Not differentiable.
ValueId token_losses(Builder& b, ValueId h, ValueId w, ValueId targets);
// op "linear_cross_entropy_grad": dloss[1], h, w, targets, [accumulate dw] → (loss_sum, num_correct, dh,
// dw): recomputes the forward, so that one pass over the logits serves both (passes/fuse_loss.h).

// ---- heads/head_stats.cpp ------------------------------------------------------------------------
//
// The same over a vocabulary that is cut over P ranks: each says of its logits what the loss needs, all
// gather that, and each then has the loss of the whole.

/// What a part of a vocabulary says of each token, zeros where it is not counted.
struct HeadStats {
  ValueId sums;   // wide [T, 2]: log Σ exp over the logits of the part; the target's logit, 0 where another
                  // part has it
  ValueId fixed;  // wide [T, 2]: the largest logit; what rounding has left of the first sum, which may be so
                  // large that e to its power is off by 1e-5. No gradient flows through these
};
inline constexpr std::int64_t kNumHeadSums = 2, kNumHeadFixed = 2;
/// h[T, H], w[V', H], targets i32[T] → the above.
HeadStats head_stats(Builder& b, ValueId h, ValueId w, ValueId targets, const VocabularyPart& part);
// op "head_stats_grad" (same attributes): dsums[T, 2], h, w, targets, [accumulate dw] → (dh, dw).

struct JointParts {
  std::int64_t rows = 0;  // of the vocabulary in each part but the last, which may have fewer
  static void fields(auto& self, auto&& f) { f("rows", self.rows); }
};
/// sums[P·T, 2] and fixed[P·T, 2] of all parts, one below the other, targets i32[T] → as
/// linear_cross_entropy.
LossResult joint_cross_entropy(Builder& b, const HeadStats& stats, ValueId targets,
                               const JointParts& attributes);
// op "joint_cross_entropy_grad" (same attributes): dloss[1], sums, fixed, targets → dsums[P·T, 2].
/// The same → as token_losses.
ValueId joint_token_losses(Builder& b, const HeadStats& stats, ValueId targets, const JointParts& attributes);

}  // namespace farskip::ops
