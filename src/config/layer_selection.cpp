// SPDX-License-Identifier: Apache-2.0
#include "farskip/config/layer_selection.h"

#include <fmt/format.h>

#include <algorithm>

namespace farskip {

bool LayerSelection::contains(std::int64_t layer) const {
  switch (kind) {
    case Kind::all:
      return true;
    case Kind::range:
      return layer >= first && layer <= last;
    case Kind::list:
      return std::binary_search(layers.begin(), layers.end(), layer);
  }
  return false;
}

Parsed<LayerSelection> select_layers(std::vector<std::int64_t> layers) {
  std::sort(layers.begin(), layers.end());
  const auto twice = std::adjacent_find(layers.begin(), layers.end());
  if (twice != layers.end()) return {{}, fmt::format("layer {} is listed twice", *twice)};
  return {LayerSelection{LayerSelection::Kind::list, 0, 0, std::move(layers)}, ""};
}

namespace {

/// "[0, 2]", or without the brackets.
Parsed<LayerSelection> parse_layer_list(std::string_view text) {
  const std::string allowed = "is not a list of layers (numbers from 0, as in [0, 2])";
  const bool opened = text.starts_with('['), closed = text.ends_with(']');
  if (opened != closed) return {{}, allowed};
  if (opened) text = text.substr(1, text.size() - 2);
  std::vector<std::int64_t> layers;
  while (true) {
    const std::size_t comma = text.find(',');
    std::string_view item = text.substr(0, comma);
    while (item.starts_with(' ')) item.remove_prefix(1);
    while (item.ends_with(' ')) item.remove_suffix(1);
    const Parsed<std::int64_t> layer = parse_integer(item);
    if (!layer.value || *layer.value < 0) return {{}, allowed};
    layers.push_back(*layer.value);
    if (comma == std::string_view::npos) break;
    text.remove_prefix(comma + 1);
  }
  return select_layers(std::move(layers));
}

}  // namespace

Parsed<LayerSelection> parse_layer_selection(std::string_view text) {
  if (text == "all") return {LayerSelection{}, ""};
  if (text.starts_with('[') || text.find(',') != std::string_view::npos) return parse_layer_list(text);
  const auto dash = text.find('-');
  const Parsed<std::int64_t> first = parse_integer(text.substr(0, dash));
  if (dash == std::string_view::npos)
    return {
        {},
        first.value ? fmt::format("is a single number; write [{}]", text) : "is not a selection of layers"};
  const Parsed<std::int64_t> last = parse_integer(text.substr(dash + 1));
  if (!first.value || !last.value || *first.value < 0 || *last.value < 0)
    return {{}, "is not a range of layers (decimal numbers from 0, as in 0-3)"};
  if (*first.value > *last.value) return {{}, "is a range that ends before it begins"};
  return {LayerSelection{LayerSelection::Kind::range, *first.value, *last.value, {}}, ""};
}

std::string describe(const LayerSelection& selection) {
  switch (selection.kind) {
    case LayerSelection::Kind::all:
      return "all";
    case LayerSelection::Kind::range:
      return fmt::format("{}-{}", selection.first, selection.last);
    case LayerSelection::Kind::list:
      return fmt::format("[{}]", fmt::join(selection.layers, ", "));
  }
  return "";
}

}  // namespace farskip
