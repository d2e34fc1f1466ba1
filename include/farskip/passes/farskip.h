#pragma once
#include "farskip/model/layer_graph.h"

namespace farskip {

/// Rewires a standard LayerGraph as FarSkip-Collective (Dukler et al.): in the chosen layers the attention
/// of layer k omits the routed output of layer k-1 (modes attention, full), and the MLP or MoE of layer k
/// omits the attention output of layer k (modes mlp, full). Only what blocks read changes: no block is
/// added, moved or removed, and no parameter changes.
LayerGraph rewire_farskip(const LayerGraph& graph, const FarSkipConfig& config);

}  // namespace farskip
