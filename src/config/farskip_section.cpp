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

ConfigNode write_layers(const LayerSelection& layers) {
  if (layers.kind == LayerSelection::Kind::list) return make_list_of(layers.layers);
  return make_word(describe(layers));
}

void check_delay(Reader& reader, FarSkipMode mode, std::optional<int> delay) {
  const bool delays = mode == FarSkipMode::delay;
  if (delays && !delay && reader.sound("delay"))
    reader.fail("delay",
                fmt::format("this key is missing, which mode delay needs; allowed: 1 to {}", kMaxDelay));
  if (!delays && delay && reader.sound("mode"))
    reader.fail("delay", fmt::format("{} is for mode delay, and the mode is {}; leave it out", *delay,
                                     name_of(farskip_mode_names, mode)));
}

}  // namespace

void farskip_fields(Fields& f, FarSkipConfig& config) {
  f.choice("mode", config.mode, farskip_mode_names);
  f.other("layers", config.layers, read_layers, write_layers);
  const bool delays = config.mode == FarSkipMode::delay;
  std::optional<int> delay = delays ? std::optional(config.delay) : std::nullopt;
  f.integer("delay", delay, {.min = 1, .max = kMaxDelay});
  if (Reader* const reader = f.reader()) check_delay(*reader, config.mode, delay);
  config.delay = delays ? delay.value_or(1) : 1;
}

FarSkipConfig read_farskip_section(Reader reader) {
  FarSkipConfig config;
  Fields fields(reader);
  farskip_fields(fields, config);
  reader.finish();
  return config;
}

}  // namespace farskip
