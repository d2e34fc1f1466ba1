// SPDX-License-Identifier: Apache-2.0
#include "farskip/model/model_config.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "base/folder.h"
#include "farskip/model/parameters.h"
#include "model/family.h"
#include "tensor/strict_json.h"

namespace farskip {
namespace {

/// What stands before the family in the model type of a rewired model (families/common.cpp writes it).
constexpr std::string_view kRewired[] = {"farskip_", "rewired_"};

constexpr const char* kConfigFile = "config.json";

std::string family_names() {
  std::vector<std::string> names;
  for (const Family& family : families()) names.push_back(family.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

/// Of another model the weights might fit, and mean something else.
void check_architectures(Reader& reader, const Family& family) {
  const std::string own(family.architecture);
  const std::array<std::string, 3> allowed{own, "FarSkip" + own, "Rewired" + own};
  for (const std::string& name : reader.strings("architectures"))
    if (std::find(allowed.begin(), allowed.end(), name) == allowed.end())
      reader.fail("architectures", fmt::format("'{}' is no model of family {}; allowed: {}", name,
                                               family.name, fmt::join(allowed, ", ")));
}

/// The text of map.KEY[0], or of map.KEY; empty if it is something else.
std::string first_text(const ConfigNode& map, std::string_view key) {
  const ConfigNode* node = map.find(key);
  if (node != nullptr && node->kind == ConfigNode::Kind::list && !node->children.empty())
    node = &node->children.front();
  return node != nullptr && node->kind == ConfigNode::Kind::scalar ? node->text : "";
}

/// The family of a config.json; nullptr for an unknown model type.
const Family* find_hub_family(std::string_view type, std::string_view architecture) {
  for (const Family& family : families())
    if (family.hub_type() == type && architecture.ends_with(family.architecture)) return &family;
  return find_family(type);
}

/// `foreign`: other programs wrote it; their notes are passed over and collected.
ModelConfig read_family(const ConfigNode& map, const std::string& key, const std::string& path,
                        ErrorList& errors, std::vector<std::string>* foreign = nullptr) {
  Reader reader(map, errors, path);
  if (foreign != nullptr) reader.take_null_as_absent();
  std::string name = reader.string(key);
  if (name.empty()) return {};  // which is said already: of this key, or of what stands in place of a map
  const std::string type = name;
  for (const std::string_view prefix : kRewired)
    if (name.starts_with(prefix)) {
      name.erase(0, prefix.size());
      break;
    }
  const Family* family =
      foreign != nullptr ? find_hub_family(name, first_text(map, "architectures")) : find_family(name);
  if (family == nullptr) {
    reader.fail(key, fmt::format("no family is called '{}'; allowed: {}", name, family_names()));
    return {};
  }
  check_architectures(reader, *family);
  ModelConfig config = family->read(reader);
  config.family = family->name;
  if (type != name && config.farskip.mode == FarSkipMode::off)
    reader.fail(key, fmt::format("'{}' is wired in another way than '{}', and no key says how; allowed: "
                                 "farskip: true, or farskip_wiring with the name of a mode",
                                 type, name));
  if (foreign != nullptr) *foreign = pass_over_foreign_notes(reader);
  reader.finish();
  return config;
}

nlohmann::ordered_json to_json(const ConfigNode& node) {
  using Kind = ConfigNode::Kind;
  if (node.kind == Kind::null) return nullptr;
  if (node.kind == Kind::scalar) {
    if (node.quoted) return node.text;
    const auto parsed = nlohmann::ordered_json::parse(node.text, nullptr, false);
    return parsed.is_discarded() ? nlohmann::ordered_json(node.text) : parsed;
  }
  nlohmann::ordered_json out =
      node.kind == Kind::map ? nlohmann::ordered_json::object() : nlohmann::ordered_json::array();
  for (const ConfigNode& child : node.children)
    if (node.kind == Kind::map)
      out[child.key] = to_json(child);
    else
      out.push_back(to_json(child));
  return out;
}

}  // namespace

std::span<const Family> families() {
  static const std::array all{deepseek_v2_family(), deepseek_v3_family(), instella_moe_family(),
                              llama_family(),       llama4_text_family(), mixtral_family(),
                              olmoe_family(),       qwen3_family(),       qwen3_moe_family()};
  return all;
}

const Family* find_family(std::string_view name) {
  for (const Family& family : families())
    if (family.name == name) return &family;
  return nullptr;
}

ModelConfig read_model_section(const ConfigNode& section, ErrorList& errors) {
  return read_family(section, "family", "model", errors);
}

namespace {

/// The config of a model of several kinds of input, whose text part is of a family that is built: that part
/// stands under text_config. What the outer map says besides must not contradict it.
ModelConfig read_text_part(const ConfigNode& tree, const Family& family, ErrorList& errors,
                           std::vector<std::string>& foreign) {
  Reader outer(tree, errors);
  outer.take_null_as_absent();
  outer.ignore("model_type");
  for (const std::string& name : outer.strings("architectures"))
    if (name != family.outer_architecture)
      outer.fail("architectures", fmt::format("'{}' is no model of type {}; allowed: {}", name,
                                              family.outer_name, family.outer_architecture));
  const ConfigNode* const text = outer.take("text_config", "map");
  if (text == nullptr) {
    outer.fail("text_config", "this key is missing; allowed: map");
    return {};
  }
  ModelConfig config = read_family(*text, "model_type", "text_config", errors, &foreign);
  outer.require_value("tie_word_embeddings", config.tie_embeddings, "text_config says otherwise");
  for (const char* key : {"vision_config", "image_token_index", "image_token_id", "boi_token_index",
                          "boi_token_id", "eoi_token_index", "eoi_token_id"})
    outer.ignore(key);
  read_fixed_choices(outer, config);
  for (std::string& note : pass_over_foreign_notes(outer)) foreign.push_back(std::move(note));
  outer.finish();
  errors.add_notice(
      "the text part of this model is read; other parts of it (vision_config, tensors outside of "
      "language_model) are passed over");
  return config;
}

const Family* find_outer(std::string_view type) {
  for (const Family& family : families())
    if (!family.outer_name.empty() && family.outer_name == type) return &family;
  return nullptr;
}

}  // namespace

ModelConfig read_hub_config(const std::filesystem::path& folder, std::vector<std::string>* notices) {
  const std::string file = (folder / kConfigFile).string();
  const std::string text = read_inside(folder, kConfigFile, max_config_bytes);
  (void)parse_strict_json(text, file);  // then as YAML, which has places
  ErrorList errors(ExitCode::bad_data);
  const ConfigNode tree = parse_yaml_text(text, file, errors);
  std::vector<std::string> foreign;
  const Family* const outer = find_outer(first_text(tree, "model_type"));
  ModelConfig config = outer != nullptr ? read_text_part(tree, *outer, errors, foreign)
                                        : read_family(tree, "model_type", "", errors, &foreign);
  errors.throw_if_any();
  if (notices != nullptr)
    for (const std::string& notice : errors.notices())
      notices->push_back(fmt::format("{}: {}", file, notice));
  if (notices != nullptr && !foreign.empty())
    notices->push_back(fmt::format("{}: passed over, as notes of other programs: {}", file,
                                   printable(fmt::format("{}", fmt::join(foreign, ", ")), 400)));
  return config;
}

std::string hub_config_text(const ModelConfig& config, DType dtype) {
  const Family* family = find_family(config.family);
  FARSKIP_CHECK(family != nullptr, "family '{}'", config.family);
  ConfigNode map;
  family->write(config, map);
  map.set("torch_dtype", make_node(dtype == DType::bf16 ? "bfloat16" : "float32"));
  return to_json(map).dump(2) + "\n";
}

ConfigNode model_section(const ModelConfig& config) {
  ModelConfig standard = config;
  standard.farskip = {};
  standard.farskip.mode = FarSkipMode::off;
  ConfigNode hub;
  find_family(config.family)->write(standard, hub);
  ConfigNode section;
  section.set("family", make_node(std::string_view(config.family)));
  for (ConfigNode& child : hub.children)
    if (child.key != "model_type" && child.key != "architectures" && child.key != "farskip") {
      const std::string key = child.key;
      section.set(key, std::move(child));
    }
  return section;
}

ParameterCounts count_parameters(const ModelConfig& config) {
  ParameterCounts counts;
  for (const ParameterSpec& p : list_parameters(config)) {
    const std::int64_t n = p.shape.num_elements();
    const std::int64_t active = p.is_expert ? n / config.moe.num_experts * config.moe.top_k : n;
    counts.total += n;
    counts.active += active;
    // A tied table also serves as the head, where it takes part in arithmetic.
    if (p.block != SubBlock::embedding || config.tie_embeddings) counts.active_without_embedding += active;
  }
  return counts;
}

double train_flops_per_token(const ModelConfig& config, std::int64_t sequence_length) {
  const double attention = static_cast<double>(config.num_layers * config.num_heads) *
                           static_cast<double>(config.qk_head_dim() + config.v_head_dim()) *
                           static_cast<double>(sequence_length) / 2.0;
  return 6.0 * (static_cast<double>(count_parameters(config).active_without_embedding) + attention);
}

}  // namespace farskip
