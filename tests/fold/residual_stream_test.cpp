// SPDX-License-Identifier: Apache-2.0
#include "fold/residual_stream.h"

#include "farskip/program/model.h"
#include "support/catch.h"
#include "support/context.h"
#include "support/support.h"

namespace farskip {
namespace {

TEST_CASE("a residual stream is the sum of what a block reads, in every wiring") {
  const ModelConfig config = read_hub_config(test::fixtures() / "deepseek_v2");
  constexpr std::int64_t tokens = 6, hidden = 3, rows = 2;
  const Context context = test::quiet_context();
  for (const auto& [name, mode] : farskip_mode_names) {
    const LayerGraph layers = wire_model(config, {mode, {}, 3}).layers;
    ResidualStream stream(layers, {context, context.device(), Shape{tokens, hidden}, rows});
    // Contribution i is 2^i in every element, so that a sum tells what is in it, exactly.
    const auto value = [](int i) { return static_cast<float>(std::uint64_t{1} << i); };
    REQUIRE(layers.blocks.size() < 24);
    for (int i = 0; i + 1 < static_cast<int>(layers.blocks.size()); ++i) {
      INFO(fmt::format("{} block {}", name, i));
      if (i > 0) {
        float expected = 0, all = 0;
        for (const int read : layers.reads(i)) expected += value(read);
        for (int before = 0; before < i; ++before) all += value(before);
        const HostTensor seen(DType::f32, Shape{rows, hidden});
        stream.read(i, 2, seen.view());
        for (const float x : seen.values<float>()) CHECK(x == expected);
        stream.read_all(4, seen.view());
        for (const float x : seen.values<float>()) CHECK(x == all);
      }
      HostTensor contribution(DType::f32, Shape{rows, hidden});
      for (float& x : contribution.values<float>()) x = value(i);
      stream.begin_contribution();
      for (std::int64_t first = 0; first < tokens; first += rows)
        stream.contribute(first, contribution.view());
      stream.finish_contribution();
    }
  }
}

}  // namespace
}  // namespace farskip
