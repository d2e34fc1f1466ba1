// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "farskip/comm/mesh.h"
#include "farskip/state/states.h"

namespace farskip {

/// The states of one role, which ranks have in parts, whole in the host's memory of every rank, under the
/// names that they have here. `model`: all parameters. For what is done with all of them at once, such as a
/// comparison; rows that only one replica keeps (ZeRO) are not put together. Collective.
std::shared_ptr<States> gather_states(const States& states, Role role,
                                      const std::vector<ParameterSpec>& model, const Mesh& mesh);

}  // namespace farskip
