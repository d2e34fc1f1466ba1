// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "farskip/model/layer_graph.h"

namespace farskip {

/// Rewires a standard LayerGraph. A sub-block of the stream is an attention, or an MLP or MoE (shared and
/// routed experts together); the one before the MLP of layer k is its attention, the one before that
/// attention is the MLP of layer k-1. In the chosen layers
///   attention  the attention omits the routed output of the sub-block before it (FarSkip, Dukler et al.);
///   mlp        the MLP or MoE omits the attention before it;
///   full       both: FarSkip-Collective;
///   ladder     each omits the sub-block before it (Ladder-residual, Zhang et al. 2025);
///   parallel   attention and MLP read the same stream, as in GPT-J: the same lists as mlp;
///   shortcut   only the routed experts omit the attention before them (as in ScMoE, Cai et al. 2024);
///   delay      each omits the last `delay` sub-blocks before it.
/// The embedding is never omitted, and the head reads all. Only what blocks read changes: no block is added,
/// moved or removed, and no parameter changes. Equations: docs/wirings.md.
LayerGraph rewire_farskip(const LayerGraph& graph, const FarSkipConfig& config);

}  // namespace farskip
