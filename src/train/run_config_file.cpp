#include "farskip/train/run_config_file.h"

#include "farskip/base/environment.h"
#include "farskip/base/file.h"
#include "farskip/base/version.h"

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

/// The keys that say what is learnt from what.
ConfigNode work_of(const ConfigNode& config) {
  ConfigNode work;
  for (const ConfigNode& child : config.children) {
    const std::string_view key = child.key;
    if (key == "name" || key == "run_dir" || key == "device" || key == "parallel" || key == "schedule" ||
        key == "checkpoint")
      continue;
    work.set(key, child);
  }
  if (const ConfigNode* const found = work.find("train")) {
    ConfigNode train = *found;
    train.set("steps", {});
    if (const ConfigNode* const rate = train.find("learning_rate")) {
      ConfigNode without = *rate;
      without.set("decay_steps", {});  // by default a share of the steps
      train.set("learning_rate", std::move(without));
    }
    work.set("train", std::move(train));
  }
  return work;
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

void refuse_other_work(const RunConfig& config, const ModelConfig& model) {
  const auto kept = read_kept(config_path(config));
  if (!kept) return;
  const auto difference =
      first_difference(work_of(kept->tree), work_of(run_config_tree(resolved_config(config, model))));
  if (!difference) return;
  throw UsageError(fmt::format(
      "run_dir {} holds a finished run, and this configuration asks for another: {} is {} there and {} here; "
      "give this run a name or run_dir of its own, or raise train.steps to go on with that one",
      config.run_dir, difference->path, difference->left, difference->right));
}

}  // namespace farskip
