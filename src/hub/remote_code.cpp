// SPDX-License-Identifier: Apache-2.0
#include "hub/remote_code.h"

#include <nlohmann/json.hpp>

#include "model/family.h"

namespace farskip {

extern const char* const kModelingText;  // generated from the file

bool needs_remote_code(const ModelConfig& config) {
  const Family* family = find_family(config.family);
  return family != nullptr && (config.farskip.mode != FarSkipMode::off || !family->is_in_transformers);
}

std::string remote_code() {
  return kModelingText;
}

std::string name_remote_code(const std::string& config_text) {
  auto config = nlohmann::ordered_json::parse(config_text);
  config["auto_map"] = {{"AutoConfig", "modeling_farskip.FarSkipConfig"},
                        {"AutoModelForCausalLM", "modeling_farskip.FarSkipForCausalLM"}};
  return config.dump(2) + "\n";
}

}  // namespace farskip
