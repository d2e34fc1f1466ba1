// SPDX-License-Identifier: Apache-2.0
#include "farskip/run/run_config_file.h"

#include "farskip/base/environment.h"
#include "farskip/base/file.h"
#include "farskip/base/version.h"
#include "farskip/checkpoint/checkpoint_files.h"

namespace farskip {
namespace {

fs::path config_path(const RunConfig& config) {
  return fs::path(config.run_dir) / "config.yaml";
}

/// Relative to where the program was started, so that it holds when the whole project moves.
fs::path normal_path(const std::string& file) {
  const fs::path here = fs::current_path();
  return (here / file).lexically_normal().lexically_proximate(here);
}

struct KeptConfig {
  std::string file;
  ConfigNode tree;
};
/// Nothing where there is none that can be read: then it says nothing against this run.
std::optional<KeptConfig> read_kept(const fs::path& path) {
  try {
    const std::string text = read_text_file(path, max_config_bytes);
    return KeptConfig{resolved_from(text), parse_yaml_text(text, path.string())};
  } catch (const UserError&) {
    return {};
  }
}

bool is_finished(const RunConfig& config) {
  return config.checkpoint.resume != Resume::never &&
         newest_step(fs::path(config.run_dir) / "checkpoints").value_or(0) >= config.train.steps;
}

}  // namespace

RunConfig resolved_config(const RunConfig& config, const ModelConfig& model) {
  RunConfig resolved = config;
  resolved.farskip = model.farskip;
  if (resolved.model.kind != ConfigNode::Kind::null) resolved.model = model_section(model);
  return resolved;
}

void write_run_config(const RunConfig& config, const ModelConfig& model, std::int64_t ranks) {
  const MachineInfo machine = machine_info();
  RunConfig resolved = resolved_config(config, model);
  if (!config.file.empty()) resolved.file = normal_path(config.file).string();
  write_text_file(config_path(config), resolved_yaml(resolved, version(), commit(),
                                                     fmt::format("{}, {} cores, {}", machine.processor,
                                                                 machine.cores, machine.system),
                                                     ranks));
}

void refuse_other_run(const RunConfig& config, const ModelConfig& model) {
  const auto kept = read_kept(config_path(config));
  if (!kept || kept->file.empty() || config.file.empty()) return;
  const fs::path own = normal_path(config.file);
  if (own == normal_path(kept->file) || own == normal_path(config_path(config).string())) return;
  const bool finished = is_finished(config);
  if (!config.named_by_file && !finished) return;  // a run may be taken over on purpose
  const auto difference = first_difference(kept->tree, run_config_tree(resolved_config(config, model)));
  if (!difference) return;
  throw UsageError(
      fmt::format("run_dir {} holds the {}run of {}, and {} is another configuration: {} is {} there and {} "
                  "here; give this run a name or run_dir of its own",
                  config.run_dir, finished ? "finished " : "", printable(kept->file), own.string(),
                  difference->path, difference->left, difference->right));
}

}  // namespace farskip
