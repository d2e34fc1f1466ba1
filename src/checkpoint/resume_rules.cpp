// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/resume_rules.h"

#include "config/flow_text.h"
#include "farskip/base/file.h"

namespace farskip {
namespace {

constexpr std::string_view kOrder = "samples may come again or be left out";
constexpr std::string_view kMoments = "those of the checkpoint are rounded to it, to nearest, if it is bf16";
constexpr std::string_view kFold = "weights are folded before the first step alone";
constexpr std::string_view kValidation = "validation numbers do not compare with earlier ones";

constexpr ResumeRule kRules[] = {
    {"name", AtResume::free},
    {"run_dir", AtResume::free},
    {"seed", AtResume::refused},
    {"device", AtResume::free},
    {"precision", AtResume::warned},
    {"deterministic", AtResume::free},
    {"init.from", AtResume::by_content},  // the model: saved with the checkpoint
    {"model", AtResume::by_content},
    {"farskip.mode", AtResume::by_content},
    {"farskip.layers", AtResume::by_content},
    {"farskip.delay", AtResume::by_content},
    {"parallel.expert", AtResume::free},
    {"parallel.tensor", AtResume::free},
    {"parallel.zero", AtResume::free},
    {"parallel.timeout", AtResume::free},
    {"parallel.gpu_transport", AtResume::free},
    {"schedule.overlap", AtResume::free},
    {"schedule.micro_batches_in_flight", AtResume::free},
    {"schedule.expert_chunks", AtResume::free},
    {"schedule.recompute", AtResume::free},
    {"schedule.routed_rows_memory", AtResume::free},
    {"schedule.memory", AtResume::free},
    {"data.tokens", AtResume::by_content},
    {"data.text", AtResume::by_content},
    {"data.tokenizer", AtResume::by_content},
    {"data.validation", AtResume::by_content},
    {"data.weights", AtResume::by_content},
    {kDataContents, AtResume::warned, kOrder},
    {kValidationContents, AtResume::warned, kValidation},
    {kTokenizerContents, AtResume::warned},
    {"data.document_mask", AtResume::warned},
    {"data.shuffle", AtResume::warned, kOrder},
    {"data.prompt_end", AtResume::warned},
    {"data.padding", AtResume::warned},
    {"train.steps", AtResume::warned},
    {"train.sequence_length", AtResume::warned, kOrder},
    {"train.global_batch", AtResume::warned},
    {"train.micro_batch", AtResume::warned},
    {"train.optimizer.name", AtResume::refused},
    {"train.optimizer.moments", AtResume::warned, kMoments},
    {"train.optimizer.momentum", AtResume::warned},
    {"train.optimizer.betas", AtResume::warned},
    {"train.optimizer.eps", AtResume::warned},
    {"train.optimizer.weight_decay", AtResume::warned},
    {"train.optimizer.clip_grad_norm", AtResume::warned},
    {"train.learning_rate.schedule", AtResume::warned},
    {"train.learning_rate.peak", AtResume::warned},
    {"train.learning_rate.final", AtResume::warned},
    {"train.learning_rate.warmup_steps", AtResume::warned},
    {"train.learning_rate.decay_steps", AtResume::warned},
    {"train.aux_loss", AtResume::warned},
    {"train.router_bias_update", AtResume::warned},
    {"train.average_decay", AtResume::refused},
    {"train.validate_every", AtResume::free},
    {"distill.teacher", AtResume::by_content},
    {kTeacherContents, AtResume::refused},
    {"distill.loss", AtResume::warned},
    {"distill.hidden_l2", AtResume::free},  // short for the next two
    {"distill.hidden_loss.kind", AtResume::warned},
    {"distill.hidden_loss.weight", AtResume::warned},
    {"distill.hidden_loss.anneal", AtResume::warned},
    {"distill.hidden_layers", AtResume::warned},
    {"distill.teacher_layers", AtResume::warned},
    {"distill.router_agreement", AtResume::warned},
    {"distill.temperature", AtResume::warned},
    {"distill.top_k", AtResume::warned},
    {"distill.freeze", AtResume::warned},
    {"distill.curriculum.every", AtResume::warned},
    {"distill.early_stopping.every", AtResume::warned},
    {"distill.early_stopping.patience", AtResume::warned},
    {"distill.early_stopping.delta", AtResume::warned},
    {"distill.early_stopping.metric", AtResume::warned, "its looks begin anew"},
    {"distill.cache.path", AtResume::free},  // the folder says whose outputs it keeps
    {"distill.cache.top_k", AtResume::warned},
    {"distill.fold.text", AtResume::warned, kFold},
    {"distill.fold.tokens", AtResume::warned, kFold},
    {"distill.fold.sequences", AtResume::warned, kFold},
    {"distill.local_stage.share", AtResume::warned},
    {"checkpoint.every", AtResume::free},
    {"checkpoint.keep", AtResume::free},
    {"checkpoint.resume", AtResume::free},
    {"checkpoint.async", AtResume::free},
};

constexpr std::string_view kNone = "none";

bool is_compared(const ResumeRule& rule) {
  return rule.at_resume == AtResume::refused || rule.at_resume == AtResume::warned;
}

const ConfigNode* find_path(const ConfigNode& tree, std::string_view path) {
  const std::size_t dot = path.find('.');
  const ConfigNode* const child = tree.find(path.substr(0, dot));
  if (child == nullptr || dot == std::string_view::npos) return child;
  return find_path(*child, path.substr(dot + 1));
}

/// Keys that the schedule does not use are as if they were left out: the default of `decay_steps` follows
/// train.steps whatever the schedule is.
RunConfig without_unused_keys(RunConfig config) {
  LearningRateConfig& rate = config.train.learning_rate;
  if (rate.schedule != LearningRateSchedule::wsd) rate.decay_steps = 0;
  if (rate.schedule == LearningRateSchedule::constant) rate.final_rate = 0;
  return config;
}

}  // namespace

std::span<const ResumeRule> resume_rules() {
  return kRules;
}

RunSettings settings_of(const RunConfig& config, const RunSettings& contents) {
  const ConfigNode tree = run_config_tree(without_unused_keys(config));
  RunSettings settings;
  for (const ResumeRule& rule : kRules) {
    if (!is_compared(rule)) continue;
    const auto content = contents.find(std::string(rule.key));
    const ConfigNode* const node = find_path(tree, rule.key);
    settings[std::string(rule.key)] = content != contents.end() ? content->second
                                      : node != nullptr         ? flow_text(*node, kNone)
                                                                : std::string(kNone);
  }
  return settings;
}

ChangedSettings compare_settings(const RunSettings& saved, const RunSettings& now) {
  ChangedSettings changed;
  for (const ResumeRule& rule : kRules) {
    const auto before = saved.find(std::string(rule.key)), after = now.find(std::string(rule.key));
    if (before == saved.end() || after == now.end() || before->second == after->second) continue;
    std::string line = fmt::format("{}: checkpoint {}, now {}", rule.key, printable(before->second, 400),
                                   printable(after->second, 400));
    if (!rule.effect.empty()) line += fmt::format(" ({})", rule.effect);
    (rule.at_resume == AtResume::refused ? changed.refused : changed.warned).push_back(std::move(line));
  }
  return changed;
}

std::vector<std::string> find_other_work(const RunSettings& done, RunSettings asked) {
  const auto steps = asked.find("train.steps"), warmup = asked.find("train.learning_rate.warmup_steps");
  if (steps != asked.end() && warmup != asked.end() && steps->second == warmup->second)
    asked.erase(warmup);  // fewer steps have shortened it
  for (const char* key : {"train.steps", "train.learning_rate.decay_steps", "train.micro_batch"})
    asked.erase(key);
  return compare_settings(done, asked).warned;
}

}  // namespace farskip
