// SPDX-License-Identifier: Apache-2.0
#include "config/distill_section.h"

#include <set>

namespace farskip {
namespace {

std::optional<EarlyStoppingConfig> read_early_stopping(Reader& parent) {
  Reader reader = parent.section("early_stopping");
  EarlyStoppingConfig config;
  config.every = reader.integer("every", at_least_one, config.every);
  config.patience = reader.integer("patience", at_least_one, config.patience);
  config.delta = reader.real("delta", below_one, config.delta);
  config.metric = reader.choice("metric", held_out_metric_names, config.metric);
  reader.finish();
  return parent.has("early_stopping") ? std::optional(config) : std::nullopt;
}

/// One term by name, or a map of terms to their weights.
DistillWeights read_loss(Reader& reader) {
  const std::string allowed =
      list_names(distill_term_names) + "; or weights of several, such as {kl: 0.9, sft: 0.1}";
  DistillWeights weights;
  const ConfigNode* node = reader.take("loss", allowed, "kl");
  if (node == nullptr) return {.kl = 1.0};
  if (node->kind == ConfigNode::Kind::map) {
    Reader terms(*node, reader.errors(), reader.path_of("loss"));
    double sum = 0;
    bool sound = true;
    for (const auto& term : distill_term_names) {
      sum += weight_of(weights, term.value) = terms.real(term.name, coefficient, 0.0);
      sound = sound && terms.sound(term.name);
    }
    sound = sound && terms.unread().empty();
    terms.finish();
    if (sound && sum == 0) reader.fail("loss", "all weights are 0; allowed: at least one above 0");
    return weights;
  }
  const auto term =
      node->kind == ConfigNode::Kind::scalar ? find_choice(distill_term_names, node->text) : std::nullopt;
  if (!term)
    reader.fail("loss", fmt::format("{} is not known; allowed: {}",
                                    node->kind == ConfigNode::Kind::scalar ? quote_for_message(node->text)
                                                                           : describe_kind(*node),
                                    allowed));
  weight_of(weights, term.value_or(DistillTerm::kl)) = 1.0;
  return weights;
}

/// Groups, or patterns: whatever has a dot or a wildcard.
std::vector<std::string> read_freeze(Reader& reader) {
  const std::string allowed =
      list_names(parameter_group_names) + "; or a pattern of parameter names such as model.layers.0.*";
  std::vector<std::string> out;
  const ConfigNode* node = reader.take("freeze", "list: " + allowed, "[]");
  if (node == nullptr) return out;
  if (node->kind != ConfigNode::Kind::list) {
    reader.fail("freeze",
                fmt::format("{} stands here; allowed: a list of {}", describe_kind(*node), allowed));
    return out;
  }
  for (std::size_t i = 0; i < node->children.size(); ++i) {
    const ConfigNode& entry = node->children[i];
    const bool scalar = entry.kind == ConfigNode::Kind::scalar;
    if (scalar && (find_choice(parameter_group_names, entry.text) ||
                   entry.text.find_first_of(".*?") != std::string::npos))
      out.push_back(entry.text);
    else
      reader.errors().add(
          entry.position, fmt::format("{}[{}]", reader.path_of("freeze"), i),
          fmt::format("{} is not known; allowed: {}",
                      scalar ? quote_for_message(entry.text) : describe_kind(entry), allowed));
  }
  return out;
}

/// `hidden_l2: w` is short for {kind: l2, weight: w}.
HiddenLossConfig read_hidden_loss(Reader& parent) {
  HiddenLossConfig config;
  const double l2 = parent.real("hidden_l2", coefficient, 0.0);
  Reader reader = parent.section("hidden_loss");
  config.kind = reader.choice("kind", hidden_loss_names, config.kind);
  if (parent.has("hidden_loss") && !reader.has("weight"))
    reader.fail("weight", "this key is missing; give the loss a weight above 0, or 0 to leave it out");
  config.weight = reader.real("weight", coefficient, config.weight);
  config.anneal = reader.real("anneal", {.min = 0, .max = 1}, config.anneal);
  reader.finish();
  if (l2 == 0) return config;
  if (parent.has("hidden_loss") && parent.sound("hidden_l2"))
    parent.fail("hidden_l2",
                "not possible beside distill.hidden_loss, for which it is a short form; use one of them");
  return {.kind = HiddenLossKind::l2, .weight = l2};
}

void read_compared_layers(Reader& reader, DistillConfig& config) {
  config.hidden_layers = reader.integers("hidden_layers", at_least_zero, {}, {});
  config.teacher_layers = reader.integers("teacher_layers", at_least_zero, {}, {});
  if (!reader.sound("hidden_layers") || !reader.sound("teacher_layers") || !reader.sound("hidden_l2") ||
      !reader.sound("hidden_loss"))
    return;
  const std::set<std::int64_t> once(config.hidden_layers.begin(), config.hidden_layers.end());
  if (once.size() != config.hidden_layers.size()) reader.fail("hidden_layers", "a layer is listed twice");
  if (config.hidden_loss.weight == 0 && !config.hidden_layers.empty())
    reader.fail("hidden_layers", "hidden_loss uses these layers, and its weight is 0; leave them out");
  if (!config.teacher_layers.empty() && config.teacher_layers.size() != config.hidden_layers.size())
    reader.fail("teacher_layers",
                fmt::format("{} layers for {} hidden_layers; allowed: one teacher layer for each",
                            config.teacher_layers.size(), config.hidden_layers.size()));
}

std::optional<TeacherCacheConfig> read_teacher_cache(Reader& parent, const DistillConfig& distill) {
  Reader reader = parent.section("cache");
  TeacherCacheConfig config;
  config.path = reader.optional_path("path").value_or("");
  config.top_k = reader.integer("top_k", {.min = 1, .max = 65536}, config.top_k);
  const bool present = parent.has("cache");
  if (present && config.path.empty() && reader.sound("path"))
    reader.fail("path", "this key is missing; allowed: a folder for cached outputs of the teacher");
  reader.finish();
  if (!present) return std::nullopt;
  const auto refuse = [&](std::string_view key, std::string_view why) {
    if (parent.sound(key)) parent.fail(key, fmt::format("not possible beside distill.cache, {}", why));
  };
  if (distill.hidden_loss.weight > 0)
    refuse(parent.has("hidden_l2") ? "hidden_l2" : "hidden_loss",
           "which keeps no hidden states; leave it out");
  if (distill.router_agreement > 0) refuse("router_agreement", "which keeps no routing; use 0");
  if (distill.top_k != 0 && distill.top_k != config.top_k)
    refuse("top_k", "whose own top_k counts; leave it out");
  return config;
}

void check_early_stopping(Reader& reader, const DistillConfig& config) {
  if (!config.early_stopping || !config.cache) return;
  const HeldOutMetric metric = config.early_stopping->metric;
  if (metric == HeldOutMetric::validation_kl || metric == HeldOutMetric::validation_agreement)
    reader.fail("early_stopping",
                fmt::format("metric {} needs the teacher on held-out text, and distill.cache keeps only its "
                            "outputs for the training text; use validation_loss or validation_accuracy",
                            name_of(held_out_metric_names, metric)));
}

std::optional<FoldConfig> read_fold(Reader& parent) {
  Reader reader = parent.section("fold");
  FoldConfig config;
  config.text = reader.optional_path("text").value_or("");
  config.tokens = reader.optional_path("tokens").value_or("");
  config.sequences = reader.integer("sequences", at_least_one, config.sequences);
  const bool present = parent.has("fold"), sound = reader.sound("text") && reader.sound("tokens");
  if (present && sound && config.text.empty() == config.tokens.empty())
    reader.fail("text",
                "one of text and tokens is needed; allowed: text, a file or folder, or tokens, the "
                "prefix of token files");
  reader.finish();
  return present ? std::optional(config) : std::nullopt;
}

std::int64_t read_curriculum(Reader& parent) {
  Reader reader = parent.section("curriculum");
  const std::int64_t every = reader.integer("every", at_least_zero, 0);
  reader.finish();
  return every;
}

}  // namespace

double& weight_of(DistillWeights& weights, DistillTerm term) {
  switch (term) {
    case DistillTerm::kl:
      return weights.kl;
    case DistillTerm::reverse_kl:
      return weights.reverse_kl;
    case DistillTerm::jsd:
      return weights.jsd;
    case DistillTerm::sft:
      return weights.sft;
  }
  throw InternalError("a term without weight");
}

std::optional<DistillConfig> read_distill_section(Reader& root, bool required) {
  Reader reader = root.section("distill");
  const bool present = root.has("distill");
  DistillConfig config;
  config.teacher = reader.optional_path("teacher").value_or("");
  if (config.teacher.empty() && reader.sound("teacher") && (present || required))
    reader.fail("teacher", "this key is missing; allowed: the folder of the teacher model");
  config.loss = read_loss(reader);
  config.hidden_loss = read_hidden_loss(reader);
  read_compared_layers(reader, config);
  config.router_agreement = reader.real("router_agreement", coefficient, config.router_agreement);
  config.temperature = reader.real("temperature", {.min = 0.01, .max = 1000}, config.temperature);
  config.top_k = reader.integer("top_k", at_least_zero, config.top_k);
  config.freeze = read_freeze(reader);
  config.curriculum_every = read_curriculum(reader);
  config.early_stopping = read_early_stopping(reader);
  config.cache = read_teacher_cache(reader, config);
  check_early_stopping(reader, config);
  config.fold = read_fold(reader);
  if (config.fold && config.curriculum_every > 0)
    reader.fail(
        "fold",
        "not possible beside distill.curriculum, whose first steps have another wiring; use one of them");
  reader.finish();
  return present ? std::optional(config) : std::nullopt;
}

}  // namespace farskip
