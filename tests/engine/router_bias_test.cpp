// SPDX-License-Identifier: Apache-2.0
#include "engine/router_bias.h"

#include "farskip/model/model_config.h"
#include "support/catch.h"
#include "support/states.h"
#include "support/support.h"

namespace farskip {
namespace {

TEST_CASE("biases of routers move towards a balanced load, by a fixed step, and nothing else moves") {
  const fs::path folder = test::fixtures() / "deepseek_v3";
  const auto states = test::load_weights(folder);
  const TensorMap before = read_states(*states, Role::weight);
  std::map<int, std::vector<double>> rows;
  for (const int layer : {1, 2, 3}) rows[layer] = std::vector<double>(16, 10.0);
  rows[1][3] = 25.0;  // the mean is 10: of these, one gets too many, two too few
  rows[1][4] = 0.0;
  rows[1][9] = 5.0;
  rows[2][0] = 26.0;  // the mean is 11: all others get too few
  move_router_biases(*states, rows, 0.25);
  const TensorMap after = read_states(*states, Role::weight);
  for (const auto& [name, tensor] : before) {
    INFO(name);
    const HostTensor& moved = after.at(name);
    for (std::int64_t i = 0; i < tensor.num_elements(); ++i) {
      float by = 0.0F;
      if (name == "model.layers.1.mlp.gate.e_score_correction_bias")
        by = i == 3 ? -0.25F : i == 4 || i == 9 ? 0.25F : 0.0F;
      if (name == "model.layers.2.mlp.gate.e_score_correction_bias") by = i == 0 ? -0.25F : 0.25F;
      const auto at = static_cast<std::size_t>(i);
      if (moved.values<float>()[at] != tensor.values<float>()[at] + by) FAIL("element " << i);
    }
  }
}

}  // namespace
}  // namespace farskip
