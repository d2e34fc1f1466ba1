// SPDX-License-Identifier: Apache-2.0
#include "farskip/fold/residual_stream.h"

#include "farskip/program/model.h"
#include "support/catch.h"
#include "support/support.h"

namespace farskip {
namespace {

TEST_CASE("a residual stream is the sum of what a block reads, in every wiring") {
  const ModelConfig config = read_hub_config(test::fixtures() / "deepseek_v2");
  constexpr std::int64_t tokens = 5, hidden = 3;
  for (const auto& [name, mode] : farskip_mode_names) {
    const LayerGraph layers = wire_model(config, {mode, {}, 3}).layers;
    ResidualStream stream(layers);
    // Contribution i is 2^i in every element, so that a sum tells what is in it, exactly.
    const auto value = [](int i) { return static_cast<float>(std::uint64_t{1} << i); };
    REQUIRE(layers.blocks.size() < 24);
    for (int i = 0; i + 1 < static_cast<int>(layers.blocks.size()); ++i) {
      INFO(fmt::format("{} block {}", name, i));
      if (i > 0) {
        float expected = 0, all = 0;
        for (const int read : layers.reads(i)) expected += value(read);
        for (int before = 0; before < i; ++before) all += value(before);
        const HostTensor rows(DType::f32, Shape{2, hidden});
        stream.read(i, 3, rows.view());
        for (const float x : rows.values<float>()) CHECK(x == expected);
        stream.read_all(3, rows.view());
        for (const float x : rows.values<float>()) CHECK(x == all);
      }
      HostTensor contribution(DType::f32, Shape{tokens, hidden});
      for (float& x : contribution.values<float>()) x = value(i);
      stream.add(std::move(contribution));
    }
  }
}

}  // namespace
}  // namespace farskip
