// SPDX-License-Identifier: Apache-2.0
#pragma once
// The matrices of a sub-block that a fold changes.

#include <Eigen/Core>
#include <string>
#include <vector>

#include "farskip/graph/graph.h"
#include "farskip/state/states.h"

namespace farskip {

/// Parameters of a layer whose matrices read the normed stream, and the one whose matrices write what a block
/// adds to it, as layer_name() takes them; a layer has some of the first.
std::vector<std::string> stream_readers(SubBlock kind);
std::string stream_writer(SubBlock kind);

/// W ← W + (D W')ᵀ for each matrix W [out, in] of a parameter, where D [in, in] changes what it reads: W + W
/// Dᵀ.
HostTensor fold_input(Device& device, const TensorView& weight, const Eigen::MatrixXd& change);
/// W ← W + Dᵀ for the matrices W [out, in], one after the other, with D [in, out] of each.
HostTensor fold_output(Device& device, const TensorView& weight, const std::vector<Eigen::MatrixXd>& changes);

}  // namespace farskip
