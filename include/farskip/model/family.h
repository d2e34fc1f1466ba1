#pragma once
// What a model family states: how its hub config reads and writes, and how its tensors are called.

#include <span>
#include <string>

#include "farskip/model/model_config.h"

namespace farskip {

struct Family {
  std::string name;          // model.family of a run configuration, model_type of its config.json
  std::string architecture;  // architectures[0]
  /// Reads the family's fields; generic ones (vocab_size, …) included.
  ModelConfig (*read)(Reader& reader);
  /// Adds the family's fields to a map.
  void (*write)(const ModelConfig& config, ConfigNode& map);
};

std::span<const Family> families();
/// nullptr for an unknown name.
const Family* find_family(std::string_view name);

const Family& deepseek_v2_family();
const Family& qwen3_moe_family();

/// Fields that every family shares, and fields that carry no architecture and are accepted as they are.
void read_common(Reader& reader, ModelConfig& config);
void write_common(const ModelConfig& config, ConfigNode& map);
/// rope_parameters (newer) or rope_theta + rope_scaling (hub files).
RopeConfig read_rope(Reader& reader);
void write_rope(const RopeConfig& rope, ConfigNode& map);

}  // namespace farskip
