// SPDX-License-Identifier: Apache-2.0
// Rotary embedding in hub configs, which have said it in two ways.

#include <cmath>

#include "model/family.h"

namespace farskip {
namespace {

using ops::RopeScaling;

constexpr Choice<RopeScaling> kRopeTypes[] = {{"default", RopeScaling::none},
                                              {"yarn", RopeScaling::yarn},
                                              {"linear", RopeScaling::linear},
                                              {"llama3", RopeScaling::llama3}};

// Factor on cos and sin: as in DeepSeek's code, the ratio of two temperatures; 0.1 ln(factor) + 1 without
// them (YaRN, section 3.4).
double yarn_attention_factor(const RopeConfig& rope) {
  auto temperature = [&](double m) {
    return rope.factor <= 1.0 ? 1.0 : 0.1 * m * std::log(rope.factor) + 1.0;
  };
  if (rope.mscale > 0 && rope.mscale_all_dim > 0)
    return temperature(rope.mscale) / temperature(rope.mscale_all_dim);
  return temperature(1.0);
}

void read_llama3(Reader& r, RopeConfig& rope) {
  rope.beta_fast = r.real("high_freq_factor", {.min = 0.0, .above_min = true});
  rope.beta_slow = r.real("low_freq_factor", {.min = 0.0, .above_min = true});
  if (r.sound("high_freq_factor") && r.sound("low_freq_factor") && rope.beta_fast < rope.beta_slow)
    r.fail("high_freq_factor",
           fmt::format("{} is below low_freq_factor, {}", rope.beta_fast, rope.beta_slow));
}

void read_yarn(Reader& r, RopeConfig& rope) {
  rope.beta_fast = r.real("beta_fast", {.min = 0.0, .above_min = true}, 32.0);
  rope.beta_slow = r.real("beta_slow", {.min = 0.0, .above_min = true}, 1.0);
  rope.mscale = r.optional_real("mscale", {.min = 0.0}).value_or(0.0);
  rope.mscale_all_dim = r.optional_real("mscale_all_dim", {.min = 0.0}).value_or(0.0);
  r.require_value("truncate", true, "correction bounds are rounded to whole dims");
  const auto given = r.optional_real("attention_factor", {.min = 0.0, .above_min = true});
  rope.attention_factor = given.value_or(yarn_attention_factor(rope));
}

void read_scaling(Reader& r, std::int64_t max_positions, RopeConfig& rope) {
  rope.scaling = r.choice("rope_type", kRopeTypes, RopeScaling::none);
  if (rope.scaling == RopeScaling::none) return;
  rope.factor = r.real("factor", {.min = 1.0});
  if (rope.scaling == RopeScaling::linear) return;
  rope.original_positions = r.integer("original_max_position_embeddings", {.min = 1}, max_positions);
  if (rope.scaling == RopeScaling::llama3)
    read_llama3(r, rope);
  else
    read_yarn(r, rope);
}

/// The maps rope_parameters (newer files) and rope_scaling, and the keys beside them (hub files), as one map.
/// Where two of them say different things, that is a mistake.
ConfigNode merge_rope_settings(Reader& r) {
  ConfigNode merged;
  merged.kind = ConfigNode::Kind::map;
  const auto add = [&](const std::string& key, const ConfigNode& value, const std::string& path) {
    if (value.kind == ConfigNode::Kind::null) return;
    const ConfigNode* const before = merged.find(key);
    if (before == nullptr)
      merged.set(key, value);
    else if (!same_value(*before, value))
      r.errors().add(value.position, path,
                     describe_difference(value, *before, r.path_of("rope_parameters." + key)));
  };
  for (const char* section : {"rope_parameters", "rope_scaling"}) {
    const ConfigNode* const node = r.take(section, "map");
    if (node == nullptr) continue;
    if (node->kind != ConfigNode::Kind::map) {
      r.fail(section, fmt::format("{} stands here; allowed: map", describe_kind(*node)));
      continue;
    }
    if (!merged.position.file) merged.position = node->position;
    for (const ConfigNode& child : node->children)
      add(child.key == "type" ? "rope_type" : child.key, child,
          r.path_of(fmt::format("{}.{}", section, child.key)));
  }
  for (const char* key : {"rope_theta", "partial_rotary_factor", "original_max_position_embeddings"})
    if (const ConfigNode* const node = r.take(key, "number")) add(key, *node, r.path_of(key));
  return merged;
}

}  // namespace

RopeConfig read_rope(Reader& r, std::int64_t max_positions, double default_theta) {
  const ConfigNode settings = merge_rope_settings(r);
  Reader section(settings, r.errors(), r.path_of("rope_parameters"));
  RopeConfig rope;
  rope.theta = section.real("rope_theta", {.min = 1.0}, default_theta);
  section.require_value("partial_rotary_factor", 1.0, "whole heads are rotated");
  read_scaling(section, max_positions, rope);
  section.finish();
  return rope;
}

void write_rope(const RopeConfig& rope, ConfigNode& map) {
  map.set("rope_theta", make_node(rope.theta));
  if (rope.scaling == RopeScaling::none) {
    map.set("rope_scaling", ConfigNode{});
    return;
  }
  ConfigNode scaling;
  // The older key for the types that are older than the newer one.
  scaling.set(rope.scaling == RopeScaling::llama3 ? "rope_type" : "type",
              make_node(name_of(kRopeTypes, rope.scaling)));
  scaling.set("factor", make_node(rope.factor));
  if (rope.scaling != RopeScaling::linear)
    scaling.set("original_max_position_embeddings", make_node(rope.original_positions));
  if (rope.scaling == RopeScaling::llama3) {
    scaling.set("high_freq_factor", make_node(rope.beta_fast));
    scaling.set("low_freq_factor", make_node(rope.beta_slow));
  }
  if (rope.scaling == RopeScaling::yarn) {
    scaling.set("beta_fast", make_node(rope.beta_fast));
    scaling.set("beta_slow", make_node(rope.beta_slow));
    if (rope.mscale > 0) scaling.set("mscale", make_node(rope.mscale));
    if (rope.mscale_all_dim > 0) scaling.set("mscale_all_dim", make_node(rope.mscale_all_dim));
    scaling.set("attention_factor", make_node(rope.attention_factor));
  }
  map.set("rope_scaling", std::move(scaling));
}

}  // namespace farskip
