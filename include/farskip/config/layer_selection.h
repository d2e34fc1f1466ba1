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

/// `all` or "A-B" with A <= B.
Parsed<LayerSelection> parse_layer_selection(std::string_view text);

/// "all", "2-5" or "[0, 3]".
std::string describe(const LayerSelection& selection);

}  // namespace farskip
