// SPDX-License-Identifier: Apache-2.0
#include "engine/router_bias.h"

#include <numeric>

namespace farskip {

void move_router_biases(States& states, const std::map<int, std::vector<double>>& expert_rows, double rate) {
  const auto step = static_cast<float>(rate);
  for (const StateSpec& state : states.specs()) {
    if (state.role != Role::weight || !state.parameter->spec.is_router_bias()) continue;
    const std::vector<double>& rows = expert_rows.at(state.parameter->spec.layer);
    const double mean = std::accumulate(rows.begin(), rows.end(), 0.0) / static_cast<double>(rows.size());
    const TensorView bias = states.at(state.name);
    HostTensor moved = copy_to_host(states.device(), bias);
    for (std::size_t e = 0; e < rows.size(); ++e)
      if (rows[e] != mean) moved.values<float>()[e] += rows[e] < mean ? step : -step;
    states.device().copy_in(bias.data, moved.view().data, bias.num_bytes());
  }
}

}  // namespace farskip
