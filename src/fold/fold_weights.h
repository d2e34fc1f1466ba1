// SPDX-License-Identifier: Apache-2.0
#pragma once
// The matrices of a sub-block that a fold changes.

#include <Eigen/Core>
#include <string>
#include <vector>

#include "farskip/graph/graph.h"
#include "farskip/state/states.h"

namespace farskip {

/// W ← W + (D W')ᵀ for each matrix W [out, in] of a parameter, where D [in, in] changes what it reads: W + W
/// Dᵀ.
HostTensor fold_input(Device& device, const TensorView& weight, const Eigen::MatrixXd& change);
/// W ← W + Dᵀ for the matrices W [out, in], one after the other, with D [in, out] of each.
HostTensor fold_output(Device& device, const TensorView& weight, const std::vector<Eigen::MatrixXd>& changes);

}  // namespace farskip
