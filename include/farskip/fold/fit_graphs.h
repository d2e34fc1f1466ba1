// SPDX-License-Identifier: Apache-2.0
#pragma once
// The sums that a fit is made of, as graphs over the tokens of some sequences. Externals beside those said:
// input "row_weight" f32 [T], by which the rows of both sides of a fit are multiplied, and "negative_weight",
// minus that.

#include "farskip/model/lower.h"

namespace farskip {

/// A fit of the teacher's normed input z_t of a block by the student's, z_s. Inputs "student", "teacher" [T,
/// H]: the streams; the parameters are those of lower_block. Outputs, x = z_s and r = z_t − z_s: "gram" XᵀX
/// [H, H], "cross" XᵀR [H, H], "residual_squares" ‖R‖² [1], "target_squares" ‖Z_t‖² [1].
Graph input_fit_graph(const ModelConfig& config, const LayerBlock& block, const LowerOptions& options);

/// A fit of what the stream still lacks behind a block. Inputs "stream" [T, H], what the block reads, and
/// "target" [T, H], what it should add. Outputs, x what its last matrix reads and r = target − what it adds:
/// "gram" [I, I], "cross" [I, H], "residual_squares" ‖R‖² [1].
///
/// Routed experts: "gram" [E, I, I] and "cross" [E, I, H] of each expert over its own rows, each of which
/// takes a share of the token's r: the weight of the expert among the experts of the token. Input
/// "slot_weight" f32 [T*K] has the weight of each token K times.
Graph output_fit_graph(const ModelConfig& config, const LayerBlock& block, const LowerOptions& options);

}  // namespace farskip
