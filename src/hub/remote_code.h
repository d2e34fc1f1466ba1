// SPDX-License-Identifier: Apache-2.0
#pragma once
// The Python file that travels with a model that transformers does not have, so that it opens it
// (trust_remote_code=True) and computes what we do.

#include <string>

#include "farskip/model/model_config.h"

namespace farskip {

inline constexpr const char* kModelingFile = "modeling_farskip.py";

/// Transformers needs the file for this model: it does not have the wiring, or the family.
bool needs_remote_code(const ModelConfig& config);
/// The file's text (src/hub/modeling_farskip.py).
std::string remote_code();
/// The text of a config.json with the keys that name the file's classes.
std::string name_remote_code(const std::string& config_text);

}  // namespace farskip
