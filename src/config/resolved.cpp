// SPDX-License-Identifier: Apache-2.0
// RunConfig → tree → YAML, the reverse of run_config.cpp.
#include <algorithm>

#include "config/distill_section.h"
#include "farskip/config/run_config.h"

namespace farskip {
namespace {

ConfigNode texts(const std::vector<std::string>& values) {
  std::vector<ConfigNode> nodes;
  for (const std::string& value : values) nodes.push_back(make_node(std::string_view(value)));
  return make_list(std::move(nodes));
}

ConfigNode optional_text(const std::string& value) {
  return value.empty() ? ConfigNode{} : make_node(std::string_view(value));
}

ConfigNode farskip_tree(const FarSkipConfig& config) {
  ConfigNode node;
  node.set("mode", make_word(name_of(farskip_mode_names, config.mode)));
  if (config.layers.kind == LayerSelection::Kind::list) {
    std::vector<ConfigNode> layers;
    for (const std::int64_t layer : config.layers.layers) layers.push_back(make_node(layer));
    node.set("layers", make_list(std::move(layers)));
  } else {
    node.set("layers", make_word(describe(config.layers)));
  }
  node.set("delay", config.mode == FarSkipMode::delay ? make_node(config.delay) : ConfigNode{});
  return node;
}

ConfigNode parallel_tree(const ParallelConfig& config) {
  ConfigNode node;
  node.set("expert", make_node(config.expert));
  node.set("tensor", make_node(config.tensor));
  node.set("zero", make_node(config.zero));
  node.set("timeout", make_node(config.timeout));
  node.set("gpu_transport", make_word(name_of(gpu_transport_names, config.gpu_transport)));
  return node;
}

ConfigNode schedule_tree(const ScheduleConfig& config) {
  ConfigNode node;
  node.set("overlap", make_node(config.overlap));
  node.set("micro_batches_in_flight", make_node(config.micro_batches_in_flight));
  node.set("expert_chunks", config.expert_chunks ? make_node(*config.expert_chunks) : make_word("auto"));
  node.set("recompute", make_word(name_of(recompute_names, config.recompute)));
  node.set("routed_rows_memory",
           make_word(config.routed_rows_memory ? fmt::format("{}B", *config.routed_rows_memory) : "auto"));
  node.set("memory", config.memory ? make_word(fmt::format("{}B", *config.memory)) : ConfigNode{});
  return node;
}

ConfigNode data_tree(const DataConfig& config) {
  ConfigNode node;
  std::vector<ConfigNode> weights;
  for (const double weight : config.weights) weights.push_back(make_node(weight));
  node.set("tokens", texts(config.tokens));
  node.set("text", texts(config.text));
  node.set("tokenizer", optional_text(config.tokenizer));
  node.set("validation", texts(config.validation));
  node.set("weights", make_list(std::move(weights)));
  node.set("document_mask", make_node(config.document_mask));
  node.set("shuffle", make_node(config.shuffle));
  node.set("prompt_end", config.prompt_end ? make_node(*config.prompt_end) : ConfigNode{});
  node.set("padding", config.padding ? make_node(*config.padding) : ConfigNode{});
  return node;
}

ConfigNode optimizer_tree(const OptimizerConfig& config) {
  ConfigNode node;
  node.set("name", make_word(name_of(optimizer_names, config.name)));
  node.set("moments", make_word(name_of(precision_names, config.moments)));
  node.set("momentum", make_node(config.momentum));
  node.set("betas", make_list({make_node(config.beta1), make_node(config.beta2)}));
  node.set("eps", make_node(config.eps));
  node.set("weight_decay", make_node(config.weight_decay));
  node.set("clip_grad_norm", make_node(config.clip_grad_norm));
  return node;
}

ConfigNode learning_rate_tree(const LearningRateConfig& config) {
  ConfigNode node;
  node.set("schedule", make_word(name_of(learning_rate_schedule_names, config.schedule)));
  node.set("peak", make_node(config.peak));
  node.set("final", make_node(config.final_rate));
  node.set("warmup_steps", make_node(config.warmup_steps));
  node.set("decay_steps", make_node(config.decay_steps));
  return node;
}

ConfigNode train_tree(const TrainConfig& config) {
  ConfigNode node;
  node.set("steps", make_node(config.steps));
  node.set("sequence_length", make_node(config.sequence_length));
  node.set("global_batch", make_node(config.global_batch));
  node.set("micro_batch", make_node(config.micro_batch));
  node.set("optimizer", optimizer_tree(config.optimizer));
  node.set("learning_rate", learning_rate_tree(config.learning_rate));
  node.set("aux_loss", make_node(config.aux_loss));
  node.set("router_bias_update", make_node(config.router_bias_update));
  node.set("validate_every", make_node(config.validate_every));
  return node;
}

ConfigNode loss_tree(DistillWeights weights) {
  double sum = 0;
  for (const auto& term : distill_term_names) sum += weight_of(weights, term.value);
  ConfigNode node;
  for (const auto& term : distill_term_names) {
    const double weight = weight_of(weights, term.value);
    if (weight == 1.0 && sum == 1.0) return make_word(term.name);
    node.set(term.name, make_node(weight));
  }
  return node;
}

ConfigNode distill_tree(const DistillConfig& config) {
  ConfigNode node;
  const auto numbers = [](const std::vector<std::int64_t>& values) {
    std::vector<ConfigNode> nodes;
    for (const std::int64_t value : values) nodes.push_back(make_node(value));
    return make_list(std::move(nodes));
  };
  ConfigNode hidden, curriculum, cache, fold;
  hidden.set("kind", make_word(name_of(hidden_loss_names, config.hidden_loss.kind)));
  hidden.set("weight", make_node(config.hidden_loss.weight));
  hidden.set("anneal", make_node(config.hidden_loss.anneal));
  curriculum.set("every", make_node(config.curriculum_every));
  if (config.cache) {
    cache.set("path", make_node(std::string_view(config.cache->path)));
    cache.set("top_k", make_node(config.cache->top_k));
  }
  if (config.fold) {
    const bool is_text = config.fold->tokens.empty();
    fold.set(is_text ? "text" : "tokens",
             make_node(std::string_view(is_text ? config.fold->text : config.fold->tokens)));
    fold.set("sequences", make_node(config.fold->sequences));
  }
  node.set("teacher", make_node(std::string_view(config.teacher)));
  node.set("loss", loss_tree(config.loss));
  node.set("hidden_loss", std::move(hidden));
  node.set("hidden_layers", numbers(config.hidden_layers));
  node.set("teacher_layers", numbers(config.teacher_layers));
  node.set("router_agreement", make_node(config.router_agreement));
  node.set("temperature", make_node(config.temperature));
  node.set("top_k", make_node(config.top_k));
  node.set("freeze", texts(config.freeze));
  node.set("curriculum", std::move(curriculum));
  ConfigNode stopping;
  if (config.early_stopping) {
    stopping.set("every", make_node(config.early_stopping->every));
    stopping.set("patience", make_node(config.early_stopping->patience));
    stopping.set("delta", make_node(config.early_stopping->delta));
    stopping.set("metric", make_word(name_of(held_out_metric_names, config.early_stopping->metric)));
  }
  node.set("early_stopping", std::move(stopping));
  node.set("cache", std::move(cache));
  node.set("fold", std::move(fold));
  return node;
}

ConfigNode checkpoint_tree(const CheckpointConfig& config) {
  ConfigNode node;
  node.set("every", make_node(config.every));
  node.set("keep", make_node(config.keep));
  node.set("resume", make_word(name_of(resume_names, config.resume)));
  node.set("async", make_node(config.async));
  return node;
}

constexpr std::string_view kFile = "made from";

std::string comment_line(std::string_view label, std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; },
      ' ');
  return fmt::format("# {}: {}\n", label, text);
}

}  // namespace

ConfigNode run_config_tree(const RunConfig& config) {
  ConfigNode tree;
  tree.set("name", make_node(std::string_view(config.name)));
  tree.set("run_dir", make_node(std::string_view(config.run_dir)));
  tree.set("seed", make_node(config.seed));
  tree.set("device", make_word(name_of(device_names, config.device)));
  tree.set("precision", make_word(name_of(precision_names, config.precision)));
  tree.set("deterministic", make_node(config.deterministic));
  if (!config.init_from.empty()) {
    ConfigNode init;
    init.set("from", make_node(std::string_view(config.init_from)));
    tree.set("init", std::move(init));
  }
  if (config.model.kind != ConfigNode::Kind::null) tree.set("model", config.model);
  if (config.farskip) tree.set("farskip", farskip_tree(*config.farskip));
  tree.set("parallel", parallel_tree(config.parallel));
  tree.set("schedule", schedule_tree(config.schedule));
  tree.set("data", data_tree(config.data));
  tree.set("train", train_tree(config.train));
  if (config.distill) tree.set("distill", distill_tree(*config.distill));
  tree.set("checkpoint", checkpoint_tree(config.checkpoint));
  return tree;
}

std::string resolved_yaml(const RunConfig& config, const std::string& version, const std::string& commit,
                          const std::string& machine, std::int64_t ranks) {
  return "# The resolved configuration of this run, every default included. It can be run as it is.\n" +
         comment_line(kFile, config.file) + comment_line("farskip", version) +
         comment_line("commit", commit) + comment_line("machine", machine) +
         comment_line("ranks", std::to_string(ranks)) + to_yaml(run_config_tree(config));
}

std::string resolved_from(std::string_view yaml) {
  const std::string label = comment_line(kFile, "");
  const std::size_t begin = yaml.find(std::string_view(label).substr(0, label.size() - 1));
  if (begin == std::string_view::npos) return {};
  yaml.remove_prefix(begin + label.size() - 1);
  return std::string(yaml.substr(0, yaml.find('\n')));
}

}  // namespace farskip
