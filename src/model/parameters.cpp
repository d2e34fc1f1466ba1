// SPDX-License-Identifier: Apache-2.0
#include "farskip/model/parameters.h"

#include "farskip/model/layer_graph.h"
#include "farskip/model/lower.h"
#include "model/blocks/block.h"

namespace farskip {

ParameterList::ParameterList(const ModelConfig& config) {
  if (const Family* family = find_family(config.family)) mlp_names_ = family->mlp_names;
}

std::string ParameterList::full_name(std::string_view name) const {
  return layer_ < 0 ? std::string(name) : layer_name(layer_, name);
}

ParameterSpec& ParameterList::add(std::string_view name, Shape shape, Initializer initializer) {
  ParameterSpec spec{full_name(name), shape,       block_, static_cast<std::int32_t>(layer_),
                     false,           initializer, {}};
  spec.pieces.push_back({spec.name, std::move(shape), 0});
  return specs_.emplace_back(std::move(spec));
}

ParameterSpec& ParameterList::add_weight(const LinearModule& linear) {
  ParameterSpec& spec = add(linear.weight(), {linear.outputs, linear.inputs});
  spec.layout = linear.layout;
  return spec;
}

ParameterSpec& ParameterList::add_bias(const LinearModule& linear) {
  ParameterSpec& spec = add(linear.bias(), {linear.outputs}, Initializer::zeros);
  if (!linear.layout.empty() && linear.layout[0].dim == 0) spec.layout = linear.layout;
  return spec;
}

void ParameterList::add(const LinearModule& linear) {
  add_weight(linear);
  if (linear.has_bias) add_bias(linear);
}

namespace {

void list_layer(ParameterList& list, const ModelConfig& config, std::int64_t layer) {
  const auto list_block = [&](SubBlock kind, bool with_norm) {
    list.enter(layer, kind);
    if (with_norm) list.add(norm_suffix(kind), {config.hidden_size}, Initializer::ones);
    make_block(config, kind)->list(list);
  };
  list_block(SubBlock::attention, true);
  const bool moe = config.moe_layers[static_cast<std::size_t>(layer)];
  list_block(moe ? SubBlock::routed : SubBlock::dense, true);
  if (moe && config.moe.shared_size > 0) list_block(SubBlock::shared, false);
}

}  // namespace

std::vector<ParameterSpec> list_parameters(const ModelConfig& config) {
  const Layout by_token{{.dim = 0, .padded = true}};
  ParameterList list(config);
  list.enter(-1, SubBlock::embedding);
  ParameterSpec& table = list.add(kEmbeddingName, {config.vocab_size, config.hidden_size});
  table.layout = by_token;
  const Family* family = find_family(config.family);
  if (family != nullptr && family->has_mtp)
    for (std::int64_t i = 0; i < kMostMtpLayers; ++i)
      table.passed_over.push_back(layer_name(config.num_layers + i, ""));
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) list_layer(list, config, layer);
  list.enter(-1, SubBlock::head);
  list.add(kFinalNormName, {config.hidden_size}, Initializer::ones);
  if (!config.tie_embeddings) list.add(kHeadName, {config.vocab_size, config.hidden_size}).layout = by_token;
  return list.take();
}

std::string_view head_name(const ModelConfig& config) {
  return config.tie_embeddings ? kEmbeddingName : kHeadName;
}

std::string layer_name(std::int64_t layer, std::string_view suffix) {
  return fmt::format("model.layers.{}.{}", layer, suffix);
}

std::string compute_copy_name(std::string_view parameter) {
  return fmt::format("compute.{}", parameter);
}

std::string own_rows_name(std::string_view tensor) {
  return fmt::format("{}{}", kOwnRows, tensor);
}

std::string read_name(const ParameterSpec& spec, DType compute) {
  return compute == DType::bf16 && spec.has_compute_copy() ? compute_copy_name(spec.name) : spec.name;
}

}  // namespace farskip
