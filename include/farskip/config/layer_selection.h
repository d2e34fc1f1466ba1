// SPDX-License-Identifier: Apache-2.0
#pragma once
// Which layers a FarSkip wiring covers: `all`, an inclusive range "A-B", or a list.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/config/scalar.h"

namespace farskip {

struct LayerSelection {
  enum class Kind { all, range, list };
  Kind kind = Kind::all;
  std::int64_t first = 0, last = 0;  // of a range, both included
  std::vector<std::int64_t> layers;  // of a list, ascending

  bool contains(std::int64_t layer) const;
  bool operator==(const LayerSelection&) const = default;
};

/// A list in any order; refused where a layer is there twice.
Parsed<LayerSelection> select_layers(std::vector<std::int64_t> layers);
/// `all`, "A-B" with A <= B, or a list such as "[0, 3]" or "0,3".
Parsed<LayerSelection> parse_layer_selection(std::string_view text);

/// "all", "2-5" or "[0, 3]".
std::string describe(const LayerSelection& selection);

}  // namespace farskip
