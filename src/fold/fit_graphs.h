// SPDX-License-Identifier: Apache-2.0
#pragma once
// The sums that a fit is made of, as graphs over the tokens of some sequences. Each run adds to states, which
// begin as zeros. Inputs beside those said: "row_mask" f32 [T], 1 for the tokens that count and 0 for others,
// and "negative_mask", minus that.

#include "farskip/model/lower.h"

namespace farskip {

/// A fit of the teacher's normed input z_t of a block by the student's, z_s. Inputs "student", "teacher" [T,
/// H]: the streams; the parameters are those of lower_block. States, x = z_s and r = z_t − z_s: "gram" XᵀX
/// [H, H], "cross" XᵀR [H, H]. Outputs of this run: "residual_squares" ‖R‖² [1], "target_squares" ‖Z_t‖² [1].
Graph input_fit_graph(const ModelConfig& config, const LayerBlock& block, const LowerOptions& options);

/// A fit of what the stream still lacks behind a block. Inputs "stream" [T, H], what the block reads,
/// "teacher" [T, H], the teacher's stream behind the block, and "student" [T, H], the student's without it.
/// x is what the block's last matrix reads and r what separates the streams, both divided by the root mean
/// square of the teacher's. States "gram" [I, I], "cross" [I, H]; output "residual_squares" ‖R‖² [1].
///
/// Routed experts: "gram" [E, I, I] and "cross" [E, I, H] of each expert over its own rows, each of which
/// takes a share of the token's r: the weight of the expert among the experts of the token.
Graph output_fit_graph(const ModelConfig& config, const LayerBlock& block, const LowerOptions& options);

/// What separates two streams, "student" and "teacher" [T, H], both divided by the root mean square of the
/// teacher's: output "residual_squares" [1].
Graph stream_error_graph(const ModelConfig& config, const LowerOptions& options);

}  // namespace farskip
