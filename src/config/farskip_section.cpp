// SPDX-License-Identifier: Apache-2.0
#include "config/farskip_section.h"

#include <algorithm>

namespace farskip {
namespace {

LayerSelection read_layers(Reader& reader) {
  const std::string allowed = "all, a range such as 0-3, a list such as [0, 2]";
  LayerSelection selection;
  const ConfigNode* node = reader.take("layers", allowed, "all");
  if (node == nullptr) return selection;
  if (node->kind == ConfigNode::Kind::scalar) {
    const auto parsed = parse_layer_selection(node->text);
    if (!parsed.value)
      reader.fail("layers",
                  fmt::format("{} {}; allowed: {}", quote_for_message(node->text), parsed.reason, allowed));
    return parsed.value.value_or(selection);
  }
  if (node->kind == ConfigNode::Kind::map) {
    reader.fail("layers", "a map stands here; allowed: " + allowed);
    return selection;
  }
  const auto list = select_layers(reader.integers("layers", at_least_zero, {.min = 1}, {}));
  if (!list.value) reader.fail("layers", list.reason);
  return list.value.value_or(selection);
}

}  // namespace

FarSkipConfig read_farskip_section(Reader reader) {
  FarSkipConfig config;
  config.mode = reader.choice("mode", farskip_mode_names, config.mode);
  config.layers = read_layers(reader);
  const auto delay = reader.optional_integer<int>("delay", {.min = 1, .max = kMaxDelay});
  const bool delays = config.mode == FarSkipMode::delay;
  if (delays && !delay && reader.sound("delay"))
    reader.fail("delay",
                fmt::format("this key is missing, which mode delay needs; allowed: 1 to {}", kMaxDelay));
  if (!delays && delay && reader.sound("mode"))
    reader.fail("delay", fmt::format("{} is for mode delay, and the mode is {}; leave it out", *delay,
                                     name_of(farskip_mode_names, config.mode)));
  config.delay = delays ? delay.value_or(1) : 1;
  reader.finish();
  return config;
}

}  // namespace farskip
