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

Parsed<LayerSelection> parse_layer_selection(std::string_view text) {
  if (text == "all") return {LayerSelection{}, ""};
  const auto dash = text.find('-');
  const Parsed<std::int64_t> first = parse_integer(text.substr(0, dash));
  if (dash == std::string_view::npos)
    return {{},
            first.value ? fmt::format("is a single number; write [{}]", text) : "is no selection of layers"};
  const Parsed<std::int64_t> last = parse_integer(text.substr(dash + 1));
  if (!first.value || !last.value || *first.value < 0 || *last.value < 0)
    return {{}, "is no range of layers (decimal numbers from 0, as in 0-3)"};
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
