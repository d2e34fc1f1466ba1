// SPDX-License-Identifier: Apache-2.0
#include "config/distill_section.h"

#include <set>

namespace farskip {
namespace {

void early_stopping_fields(Fields& f, EarlyStoppingConfig& c) {
  f.integer("every", c.every, at_least_one);
  f.integer("patience", c.patience, at_least_one);
  f.real("delta", c.delta, below_one);
  f.choice("metric", c.metric, held_out_metric_names);
}

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

ConfigNode write_loss(DistillWeights weights) {
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

void hidden_loss_fields(Fields& f, HiddenLossConfig& c) {
  f.choice("kind", c.kind, hidden_loss_names);
  f.real("weight", c.weight, coefficient);
  if (Reader* const reader = f.reader();
      reader && reader->is_present() && !reader->has("weight") && reader->sound("weight"))
    reader->fail("weight", "this key is missing; give the loss a weight above 0, or 0 to leave it out");
  f.real("anneal", c.anneal, {.min = 0, .max = 1});
}

/// `hidden_l2: w` is short for {kind: l2, weight: w}, which is what is written.
void hidden_loss_or_short_form(Fields& f, HiddenLossConfig& c) {
  Reader* const reader = f.reader();
  const double l2 = reader ? reader->real("hidden_l2", coefficient, 0.0) : 0.0;
  f.section("hidden_loss", c, hidden_loss_fields);
  if (l2 == 0) return;
  if (reader->has("hidden_loss") && reader->sound("hidden_l2"))
    reader->fail("hidden_l2",
                 "not possible beside distill.hidden_loss, for which it is a short form; use one of them");
  c = {.kind = HiddenLossKind::l2, .weight = l2};
}

void check_compared_layers(Reader& reader, const DistillConfig& config) {
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

void teacher_cache_fields(Fields& f, TeacherCacheConfig& c) {
  f.path("path", c.path);
  f.integer("top_k", c.top_k, {.min = 1, .max = 65536});
  if (Reader* const reader = f.reader();
      reader && reader->is_present() && c.path.empty() && reader->sound("path"))
    reader->fail("path", "this key is missing; allowed: a folder for cached outputs of the teacher");
}

void check_teacher_cache(Reader& parent, const DistillConfig& distill) {
  if (!distill.cache) return;
  const auto refuse = [&](std::string_view key, std::string_view why) {
    if (parent.sound(key)) parent.fail(key, fmt::format("not possible beside distill.cache, {}", why));
  };
  if (distill.hidden_loss.weight > 0)
    refuse(parent.has("hidden_l2") ? "hidden_l2" : "hidden_loss",
           "which keeps no hidden states; leave it out");
  if (distill.router_agreement > 0) refuse("router_agreement", "which keeps no routing; use 0");
  if (distill.top_k != 0 && distill.top_k != distill.cache->top_k)
    refuse("top_k", "whose own top_k counts; leave it out");
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

void fold_fields(Fields& f, FoldConfig& c) {
  // One of the two is given, and alone is written.
  if (!f.writes() || c.tokens.empty()) f.path("text", c.text);
  if (!f.writes() || !c.tokens.empty()) f.path("tokens", c.tokens);
  f.integer("sequences", c.sequences, at_least_one);
  Reader* const reader = f.reader();
  if (reader && reader->is_present() && reader->sound("text") && reader->sound("tokens") &&
      c.text.empty() == c.tokens.empty())
    reader->fail("text",
                 "one of text and tokens is needed; allowed: text, a file or folder, or tokens, the "
                 "prefix of token files");
}

void local_stage_fields(Fields& f, double& share) {
  f.real("share", share, {.min = 0, .max = 1});
  Reader* const reader = f.reader();
  if (reader && reader->is_present() && !reader->has("share") && reader->sound("share"))
    reader->fail("share", "this key is missing; give a share of the steps, such as 0.15, or 0 for none");
}

void check_local_stage(Reader& reader, const DistillConfig& distill) {
  const auto refuse = [&](const char* why) {
    if (distill.local_share > 0 && reader.sound("local_stage"))
      reader.fail("local_stage", fmt::format("not possible beside {}; use one of them", why));
  };
  if (distill.cache) refuse("distill.cache, which keeps no activations of the teacher");
  if (distill.curriculum_every > 0) refuse("distill.curriculum, whose first steps have another wiring");
}

}  // namespace

void distill_fields(Fields& f, DistillConfig& c, bool required) {
  Reader* const reader = f.reader();
  f.path("teacher", c.teacher);
  if (reader && c.teacher.empty() && reader->sound("teacher") && (reader->is_present() || required))
    reader->fail("teacher", "this key is missing; allowed: the folder of the teacher model");
  f.other("loss", c.loss, read_loss, write_loss);
  hidden_loss_or_short_form(f, c.hidden_loss);
  f.integers("hidden_layers", c.hidden_layers, at_least_zero);
  f.integers("teacher_layers", c.teacher_layers, at_least_zero);
  if (reader) check_compared_layers(*reader, c);
  f.real("router_agreement", c.router_agreement, coefficient);
  f.real("temperature", c.temperature, {.min = 0.01, .max = 1000});
  f.integer("top_k", c.top_k, at_least_zero);
  f.other("freeze", c.freeze, read_freeze, [](const auto& rules) { return make_list_of(rules); });
  f.section("curriculum", [&](Fields& g) { g.integer("every", c.curriculum_every, at_least_zero); });
  f.section("early_stopping", c.early_stopping, early_stopping_fields);
  f.section("cache", c.cache, teacher_cache_fields);
  if (reader) check_teacher_cache(*reader, c);
  if (reader) check_early_stopping(*reader, c);
  f.section("fold", c.fold, fold_fields);
  if (reader && c.fold && c.curriculum_every > 0)
    reader->fail(
        "fold",
        "not possible beside distill.curriculum, whose first steps have another wiring; use one of them");
  f.section("local_stage", [&](Fields& g) { local_stage_fields(g, c.local_share); });
  if (reader) check_local_stage(*reader, c);
}

}  // namespace farskip
