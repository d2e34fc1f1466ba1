// SPDX-License-Identifier: Apache-2.0
#pragma once
// Angles of rotary embedding, the same for every backend.

#include <vector>

#include "farskip/ops/ops.h"

namespace farskip {

/// Angle per position of each of the dim/2 pairs, slowed as `scaling` says.
std::vector<double> rope_angles(const ops::RopeTable& attributes);

/// The temperature of a position (ops::attention_temperature); of those from 0 on, up to the sequence length.
float attention_temperature_at(const ops::AttentionTemperature& attributes, std::int64_t position);
std::vector<float> attention_temperatures(const ops::AttentionTemperature& attributes);

}  // namespace farskip
