// SPDX-License-Identifier: Apache-2.0
#include "report/run_log.h"

#include <nlohmann/json.hpp>
#include <set>

#include "base/folder.h"
#include "base/run_files.h"
#include "config/farskip_section.h"
#include "config/flow_text.h"
#include "farskip/base/error.h"
#include "farskip/model/model_config.h"
#include "report/chart.h"

namespace farskip {
namespace {

constexpr std::uint64_t kMaxTraceBytes = std::uint64_t{64} << 20;

/// The value at "train.steps" as text; empty where there is none.
std::string text_at(const ConfigNode& tree, std::string_view path) {
  const ConfigNode* node = &tree;
  for (std::size_t begin = 0; begin <= path.size();) {
    const std::size_t end = std::min(path.find('.', begin), path.size());
    node = node->find(path.substr(begin, end - begin));
    if (node == nullptr) return {};
    begin = end + 1;
  }
  return flow_text(*node, "");
}

/// `VALUE` of a line "# KEY: VALUE" at the top of a resolved configuration.
std::string comment_value(const std::string& yaml, const std::string& key) {
  const std::string start = "# " + key + ": ";
  for (std::size_t begin = 0; begin < yaml.size() && yaml[begin] == '#';) {
    const std::size_t end = std::min(yaml.find('\n', begin), yaml.size());
    if (yaml.compare(begin, start.size(), start) == 0)
      return yaml.substr(begin + start.size(), end - begin - start.size());
    begin = end + 1;
  }
  return {};
}

std::optional<std::int64_t> count_in(const std::string& text) {
  const bool is_count =
      !text.empty() && text.size() < 15 && text.find_first_not_of("0123456789") == std::string::npos;
  return is_count ? std::optional<std::int64_t>(std::stoll(text)) : std::nullopt;
}

/// As it is written where that is no wiring of this version.
std::string describe_wiring(const ConfigNode& tree) {
  const ConfigNode* section = tree.find("farskip");
  if (section == nullptr) return {};
  ErrorList errors;
  const FarSkipConfig wiring = read_farskip_section(Reader(*section, errors, "farskip"));
  if (!errors.empty()) return flow_text(*section, "");
  std::string text = wiring_name(wiring);
  if (wiring.mode != FarSkipMode::off && wiring.layers != LayerSelection{})
    text += fmt::format(" (layers {})", describe(wiring.layers));
  return text;
}

std::string describe_model(const ModelConfig& model) {
  const ParameterCounts counts = count_parameters(model);
  std::string text =
      fmt::format("{}, {} parameters, {} active per token, {} layers, width {}", model.family,
                  short_number(static_cast<double>(counts.total)),
                  short_number(static_cast<double>(counts.active)), model.num_layers, model.hidden_size);
  if (model.moe.num_experts > 0)
    text += fmt::format(", {} experts, top {}", model.moe.num_experts, model.moe.top_k);
  return text;
}

/// As far as it can be known: a model that was started from may have moved since.
std::string find_model(const ConfigNode& tree) {
  try {
    if (const ConfigNode* section = tree.find("model")) {
      ErrorList errors;
      const ModelConfig model = read_model_section(*section, errors);
      return errors.empty() ? describe_model(model) : text_at(tree, "model.family");
    }
    for (const char* source : {"init.from", "distill.teacher"})
      if (const std::string folder = text_at(tree, source); !folder.empty())
        return has_entry(folder, "config.json") ? describe_model(read_hub_config(folder)) : "of " + folder;
  } catch (const Error&) {
    return text_at(tree, "model.family");
  }
  return {};
}

std::string describe_batch(const ConfigNode& tree) {
  const std::string batch = text_at(tree, "train.global_batch"),
                    length = text_at(tree, "train.sequence_length");
  return batch.empty() || length.empty() ? std::string() : batch + " x " + length + " tokens";
}

std::string describe_distillation(const ConfigNode& tree) {
  const std::string teacher = text_at(tree, "distill.teacher"), loss = text_at(tree, "distill.loss");
  if (teacher.empty()) return teacher;
  return fmt::format("{}, teacher {}", loss.empty() ? "kl" : loss, teacher);
}

void read_config(const fs::path& path, RunLog& run) {
  const std::string yaml = read_text_file(path, max_config_bytes, Links::refuse);
  const ConfigNode tree = parse_yaml_text(yaml, path.string());
  run.label = text_at(tree, "name");
  run.wiring = describe_wiring(tree);
  const std::string ranks = comment_value(yaml, "ranks");
  run.ranks = count_in(ranks);
  run.planned_steps = count_in(text_at(tree, "train.steps"));
  const std::string expert = text_at(tree, "parallel.expert");
  const std::vector<std::pair<std::string, std::string>> facts{
      {"model", find_model(tree)},
      {"wiring", run.wiring},
      {"distillation", describe_distillation(tree)},
      {"ranks", ranks.empty() ? ranks : ranks + " (experts over " + expert + ")"},
      {"batch", describe_batch(tree)},
      {"device", text_at(tree, "device")},
      {"precision", text_at(tree, "precision")},
      {"deterministic", text_at(tree, "deterministic")},
      {"seed", text_at(tree, "seed")},
      {"machine", comment_value(yaml, "machine")},
      {"commit", comment_value(yaml, "commit")}};
  for (const auto& fact : facts)
    if (!fact.second.empty()) run.facts.push_back(fact);
}

std::string read_end(const fs::path& path) {
  const auto object = nlohmann::json::parse(read_text_file(path, 1 << 16, Links::refuse), nullptr, false);
  return object.is_object() && object.contains("reason") && object["reason"].is_string()
             ? object["reason"].get<std::string>()
             : std::string();
}

/// Calls `read` if there is such a file; a fault in it costs the part of the page that it feeds, not the
/// page.
template <class F>
bool read_optional(const fs::path& path, RunLog& run, const F& read) {
  if (!has_entry(path.parent_path(), path.filename().string())) return false;
  try {
    read(path);
  } catch (const UserError& error) {
    run.notes.push_back(fmt::format("{} is left out: {}", path.filename().string(), error.what()));
  }
  return true;
}

}  // namespace

RunLog read_run_log(const fs::path& folder) {
  if (!fs::is_directory(folder))
    throw MissingInputError(
        fmt::format("{}: no such folder; give the run directory of a run", printable(folder.string(), 400)));
  RunLog run;
  run.folder = folder.string();
  read_optional(folder / "config.yaml", run, [&](const fs::path& path) { read_config(path, run); });
  read_optional(folder / "exit.json", run, [&](const fs::path& path) { run.end = read_end(path); });
  const bool traced = read_optional(folder / "trace.json", run, [&](const fs::path& path) {
    run.trace = read_text_file(path, kMaxTraceBytes, Links::refuse);
  });
  const fs::path metrics = folder / "metrics.jsonl";
  if (!has_entry(folder, metrics.filename().string())) {
    if (!traced)
      throw MissingInputError(fmt::format(
          "{}: neither metrics.jsonl nor trace.json; give the run directory of a run, whose metrics "
          "begin with its first step",
          printable(folder.string(), 400)));
    return run;
  }
  read_metrics(read_text_file(metrics, kMostMetricsBytes, Links::refuse), run);
  if (run.curves.empty() && !traced)
    throw DataError(fmt::format(
        "{}: no line that can be read; each must be a JSON object with an integer step and other values",
        printable(metrics.string(), 400)));
  return run;
}

void label_runs(std::vector<RunLog>& runs) {
  std::map<std::string, int> count;
  for (const RunLog& run : runs) ++count[run.label];
  std::set<std::string> taken;
  for (RunLog& run : runs) {
    const std::string name = run.label;
    const fs::path path = fs::path(run.folder) / "";  // with or without a slash at the end
    const std::string folder = path.parent_path().filename().string();
    std::vector<std::string> candidates;
    if (count[name] == 1) candidates.push_back(name);
    if (folder != "." && folder != "..") candidates.push_back(folder);
    candidates.push_back(run.folder);
    run.label.clear();
    for (const std::string& candidate : candidates)
      if (run.label.empty() && !candidate.empty() && taken.insert(candidate).second) run.label = candidate;
    for (int i = 2; run.label.empty(); ++i)
      if (const std::string numbered = fmt::format("{} ({})", run.folder, i); taken.insert(numbered).second)
        run.label = numbered;
  }
}

}  // namespace farskip
