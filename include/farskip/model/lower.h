#pragma once
// Lowering: LayerGraph → Graph, forward only, shapes known.

#include "farskip/model/layer_graph.h"
#include "farskip/model/parameters.h"

namespace farskip {

struct LowerOptions {
  std::int64_t batch = 1;            // B sequences
  std::int64_t sequence_length = 1;  // S
  bool logits = false;               // output "logits" [B*S, V] instead of the loss
  bool balance_loss = false;         // output "balance_loss": Σ over layers and sequences, see ops.h
  bool document_mask = false;        // input "document_start"
  DType dtype = DType::f32;          // of parameters and activations
};

/// Externals: inputs "tokens" i32[B*S], "targets" i32[B*S] (-1: not counted; absent with `logits`),
/// "document_start" i32[B*S] with document_mask; every parameter of list_parameters under its name.
/// Outputs: "loss_sum" [1], "num_correct" i32[1] (or "logits"); "balance_loss" [1] if asked for and any
/// layer has experts; "expert_offsets.<layer>" i32[E+1] for each layer with experts.
Graph lower(const ModelConfig& config, const LayerGraph& layers, const LowerOptions& options);

}  // namespace farskip
