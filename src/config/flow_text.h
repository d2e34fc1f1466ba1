// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <string_view>

#include "farskip/config/tree.h"

namespace farskip {

/// The node on one line, as YAML's flow style has it: text without its quotes: "64",
/// "[1, 3]", "{kl: 0.9, sft: 0.1}". `null_text` stands for null.
std::string flow_text(const ConfigNode& node, std::string_view null_text);

}  // namespace farskip
