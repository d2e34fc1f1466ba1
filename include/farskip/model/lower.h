// SPDX-License-Identifier: Apache-2.0
#pragma once
// Lowering: LayerGraph → Graph, forward only, shapes known.

#include <optional>

#include "farskip/model/cache.h"
#include "farskip/model/layer_graph.h"
#include "farskip/model/parameters.h"

namespace farskip {

/// What a graph ends in.
enum class HeadOutput {
  loss,          // "loss_sum" [1], "num_correct" i32[1]
  token_losses,  // "token_losses" [B*S]: 0 where the target is not counted
  logits,        // "logits" [B*S, V]
  hidden         // what a comparison of two models reads
};

struct LowerOptions {
  std::int64_t batch = 1;            // B sequences
  std::int64_t sequence_length = 1;  // S
  HeadOutput head = HeadOutput::loss;
  std::vector<std::int64_t>
      streams{};                      // with `hidden`: layers after which the residual stream is one of them
  bool contributions = false;         // with `hidden`: what each block adds to the stream is one of them
  bool balance_loss = false;          // output "balance_loss": Σ over layers and sequences, see ops.h
  bool document_mask = false;         // input "document_start"
  DType dtype = DType::f32;           // f32, f64, or bf16: what it computes in
  std::optional<CacheShape> cache{};  // over a cache; batch 1, sequence_length and `tokens` are one number
  MeshPosition mesh{};                // whose axis `tensor` cuts heads, MLPs and experts
  bool deterministic = true;  // false: kernels that do not repeat their bits may be taken (ops::Attention)
};

/// Inputs of a run over a cache: where its tokens stand (ops::CachePlace), the row of the cache of each
/// (negative: none), and of which tokens logits are wanted.
inline constexpr std::string_view kBlockTable = "block_table", kSequences = "sequences",
                                  kPositions = "positions", kCacheRows = "cache_rows",
                                  kOutputRows = "output_rows";

/// Externals: inputs "tokens" i32[B*S], "targets" i32[B*S] (-1: not counted; absent with `logits`),
/// "document_start" i32[B*S] with document_mask; every parameter of list_parameters under its read_name. In
/// bf16 these are bf16 where the parameter has a compute copy, else f32; activations with the residual stream
/// are bf16, but router, balance loss and losses (and logits) f32. Outputs: "loss_sum" [1], "num_correct"
/// i32[1] (or what else HeadOutput names); "balance_loss" [1] if asked for and any layer has experts;
/// "expert_offsets.<layer>" i32[E+1] for each layer with experts. With `cache` (and a head of logits or
/// token_losses): the inputs above instead of document starts, the caches of list_caches as state, and
/// targets, "logits" or "token_losses" of `outputs` tokens. With `hidden`, instead of the loss: "hidden"
/// [B*S, H], which the head reads; "router_logits.<layer>" [B*S, E] and "router_choice.<layer>" i32[B*S, K]
/// for each layer with experts; "stream.<layer>" [B*S, H]; "contribution.<block>" [B*S,
/// H].
///
/// Over several ranks of the axis tensor, parameters have the shapes of local_parameters(), and what each
/// rank gives to the residual stream is summed (all_reduce), so that the stream is whole on all of them.
/// Caches have the heads of the rank.
Graph lower(const ModelConfig& config, const LayerGraph& layers, const LowerOptions& options);

/// One sub-block alone, as lower() has it. Externals: input "stream" [B*S, H], which it reads (the embedding
/// has "tokens" instead, the head also "targets"); every parameter of its layer, of all blocks outside of
/// layers where it has none. Outputs: "out" [B*S, H], what it adds to the stream; "inner", what its last
/// matrix reads: concatenated heads [B*S, A*Dv], gated activations [B*S, I], those of routed experts
/// [B*S*K, I] in the order of sort_by_expert; of those also "router_logits" [B*S, E] and
/// "expert_offsets.<layer>". The head has the outputs that lower() gives it.
Graph lower_block(const ModelConfig& config, const LayerBlock& block, const LowerOptions& options);

/// The norm of what a sub-block of a layer reads, for layer_name().
std::string_view norm_suffix(SubBlock kind);
/// How the routers of a model choose.
ops::Route routing(const MoeConfig& moe);

}  // namespace farskip
