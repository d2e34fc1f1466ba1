// SPDX-License-Identifier: Apache-2.0
#include "passes/farskip.h"

#include <algorithm>
#include <array>
#include <iterator>

namespace farskip {
namespace {

/// A set of sub-blocks.
using Kinds = unsigned;
constexpr Kinds kind(SubBlock block) {
  return 1U << static_cast<unsigned>(block);
}
constexpr Kinds kAttention = kind(SubBlock::attention), kRouted = kind(SubBlock::routed),
                kMlp = kind(SubBlock::dense) | kind(SubBlock::shared) | kRouted, kAny = kAttention | kMlp;

/// `readers` do not read what `omitted` have added in the sub-block of the stream just before theirs; in mode
/// delay, in the last FarSkipConfig::delay of them.
struct Omission {
  Kinds readers = 0, omitted = 0;
};
struct Wiring {
  FarSkipMode mode;
  std::array<Omission, 2> omissions;
};
constexpr Wiring kWirings[] = {
    {FarSkipMode::off, {}},
    {FarSkipMode::attention, {{{kAttention, kRouted}}}},
    {FarSkipMode::mlp, {{{kMlp, kAttention}}}},
    {FarSkipMode::full, {{{kAttention, kRouted}, {kMlp, kAttention}}}},
    {FarSkipMode::ladder, {{{kAny, kAny}}}},
    {FarSkipMode::parallel, {{{kMlp, kAttention}}}},
    {FarSkipMode::shortcut, {{{kRouted, kAttention}}}},
    {FarSkipMode::delay, {{{kAny, kAny}}}},
};

const Wiring& find_wiring(FarSkipMode mode) {
  const auto* const it = std::find_if(std::begin(kWirings), std::end(kWirings),
                                      [&](const Wiring& wiring) { return wiring.mode == mode; });
  FARSKIP_CHECK(it != std::end(kWirings), "mode {} has no wiring", name_of(farskip_mode_names, mode));
  return *it;
}

/// Place in the stream's order of attention, MLP, attention, …; shared and routed experts have one place.
int place_of(const LayerBlock& block) {
  return 2 * block.layer + (block.kind == SubBlock::attention ? 0 : 1);
}

/// What the wiring takes a block for. A model without routed experts has its MLPs in their place: as the same
/// model would be wired whose MLPs were split into experts.
SubBlock role_of(const LayerBlock& block, bool has_experts) {
  return block.kind == SubBlock::dense && !has_experts ? SubBlock::routed : block.kind;
}

bool has_routed_experts(const LayerGraph& graph) {
  return std::any_of(graph.blocks.begin(), graph.blocks.end(),
                     [](const LayerBlock& block) { return block.kind == SubBlock::routed; });
}

}  // namespace

LayerGraph rewire_farskip(const LayerGraph& graph, const FarSkipConfig& config) {
  const Wiring& wiring = find_wiring(config.mode);
  const int reach = config.mode == FarSkipMode::delay ? config.delay : 1;
  const bool has_experts = has_routed_experts(graph);
  const auto omits = [&](const LayerBlock& reader, const LayerBlock& earlier) {
    if (earlier.layer < 0) return false;
    const int distance = place_of(reader) - place_of(earlier);
    const Kinds reads = kind(role_of(reader, has_experts)), adds = kind(role_of(earlier, has_experts));
    return distance >= 1 && distance <= reach &&
           std::any_of(wiring.omissions.begin(), wiring.omissions.end(), [&](const Omission& o) {
             return (o.readers & reads) != 0 && (o.omitted & adds) != 0;
           });
  };
  LayerGraph out = graph;
  for (std::size_t i = 0; i < out.blocks.size(); ++i) {
    LayerBlock& block = out.blocks[i];
    if (block.layer < 0 || !config.layers.contains(block.layer)) continue;
    for (std::size_t earlier = 0; earlier < i; ++earlier)
      if (omits(block, graph.blocks[earlier])) block.omits.push_back(static_cast<int>(earlier));
    std::sort(block.omits.begin(), block.omits.end());
  }
  return out;
}

}  // namespace farskip
