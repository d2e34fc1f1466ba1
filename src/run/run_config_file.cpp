// SPDX-License-Identifier: Apache-2.0
#include "run/run_config_file.h"

#include "base/environment.h"
#include "base/version.h"
#include "farskip/base/file.h"

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

/// The model that a run started from, as RUN_DIR/config.yaml and as this start has it: its weights are no
/// longer in the checkpoint, so that settings cannot tell.
std::optional<std::string> find_other_start(const RunConfig& config) {
  const auto kept = read_kept(config_path(config));
  if (!kept) return {};
  const ConfigNode* const init = kept->tree.find("init");
  const ConfigNode* const from = init != nullptr ? init->find("from") : nullptr;
  const auto shown = [](const std::string& path) {
    return path.empty() ? "none" : printable(normal_path(path).string());
  };
  const std::string before = shown(from != nullptr ? from->text : ""), now = shown(config.init_from);
  if (before == now) return {};
  return fmt::format("init.from: {} in config.yaml, now {}", before, now);
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

void refuse_other_file(const RunConfig& config, const ModelConfig& model) {
  const auto kept = read_kept(config_path(config));
  if (!config.named_by_file || !kept || kept->file.empty()) return;
  const fs::path own = normal_path(config.file);
  if (own == normal_path(kept->file)) return;
  const auto difference = first_difference(kept->tree, run_config_tree(resolved_config(config, model)));
  if (!difference) return;
  throw UsageError(fmt::format(
      "run_dir {} holds the run of {}, and {} is another configuration: {} is {} there and {} here; "
      "give this run a name or run_dir of its own",
      config.run_dir, printable(kept->file), own.string(), difference->path, difference->left,
      difference->right));
}

void refuse_other_work(const RunConfig& config, const RunSettings& done, const RunSettings& asked) {
  std::vector<std::string> other = find_other_work(done, asked);
  if (auto start = find_other_start(config)) other.push_back(std::move(*start));
  if (other.empty()) return;
  throw UsageError(fmt::format(
      "run_dir {} holds a finished run, and this start asks for another:\n  {}\ngive it a name or run_dir of "
      "its own, or raise train.steps to go on with that one",
      config.run_dir, fmt::join(other, "\n  ")));
}

}  // namespace farskip
