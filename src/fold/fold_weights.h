// SPDX-License-Identifier: Apache-2.0
#pragma once
// The matrices of a sub-block that a fold changes.

#include <Eigen/Core>
#include <string>
#include <vector>

#include "farskip/comm/communicator.h"
#include "farskip/runtime/context.h"
#include "farskip/state/states.h"

namespace farskip {

/// W ← W + W Dᵀ for each matrix W [out, in] of a parameter, where D [in, in] changes what it reads, on the
/// device of `context`. Collective: each rank of `world` computes some rows, and all get all.
HostTensor fold_input(const Context& context, const TensorView& weight, const Eigen::MatrixXd& change,
                      const Communicator& world);
/// W ← W + Dᵀ for the matrices W [out, in], one after the other, with D [in, out] of each.
HostTensor fold_output(Device& device, const TensorView& weight, const std::vector<Eigen::MatrixXd>& changes);

}  // namespace farskip
