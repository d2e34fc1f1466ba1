// SPDX-License-Identifier: Apache-2.0
#include "distill/freeze.h"

#include <algorithm>

namespace farskip {
namespace {

bool is_in_group(const ParameterSpec& spec, ParameterGroup group, const ModelConfig& config) {
  switch (group) {
    case ParameterGroup::embedding:
      return spec.name == kEmbeddingName;
    case ParameterGroup::head:
      return spec.name == head_name(config);
    case ParameterGroup::attention:
      return spec.block == SubBlock::attention && !spec.is_norm();
    case ParameterGroup::router:
      return spec.is_router;
    case ParameterGroup::experts:
      return spec.is_expert;
    case ParameterGroup::shared_experts:
      return spec.block == SubBlock::shared;
    case ParameterGroup::dense_mlp:
      return spec.block == SubBlock::dense && !spec.is_norm();
    case ParameterGroup::norms:
      return spec.is_norm();
  }
  return false;
}

bool matches(const ParameterSpec& spec, const std::string& pattern) {
  if (matches_pattern(spec.name, pattern)) return true;
  const auto hits = std::count_if(spec.pieces.begin(), spec.pieces.end(), [&](const HubPiece& piece) {
    return matches_pattern(piece.name, pattern);
  });
  if (hits != 0 && hits != static_cast<std::ptrdiff_t>(spec.pieces.size()))
    throw UsageError(
        fmt::format("distill.freeze: \"{}\" covers {} of the {} tensors that are {} here, which trains as "
                    "one; cover all of "
                    "them or none",
                    pattern, hits, spec.pieces.size(), spec.name));
  return hits != 0;
}

}  // namespace

bool matches_pattern(std::string_view name, std::string_view pattern) {
  // The last * seen, and where in the name its match began: on a mismatch it takes one character more.
  std::size_t n = 0, p = 0, star = std::string_view::npos, from = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      from = n;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n])) {
      ++p;
      ++n;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      n = ++from;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

std::set<std::string> frozen_parameters(const std::vector<std::string>& rules, const ModelConfig& config) {
  const std::vector<ParameterSpec> specs = list_parameters(config);
  std::set<std::string> frozen;
  for (const std::string& rule : rules) {
    const auto group = find_choice(parameter_group_names, rule);
    bool any = false;
    for (const ParameterSpec& spec : specs) {
      if (!(group ? is_in_group(spec, *group, config) : matches(spec, rule))) continue;
      frozen.insert(spec.name);
      any = true;
    }
    if (!any)
      throw UsageError(
          fmt::format("distill.freeze: \"{}\" covers no parameter of the model; names are such as {} and {}",
                      rule, specs.front().name, specs[specs.size() / 2].pieces.front().name));
  }
  if (frozen.size() == specs.size())
    throw UsageError("distill.freeze covers every parameter of the model; leave something to train");
  return frozen;
}

std::set<std::string> frozen_in_run(const RunConfig& config, const ModelConfig& model) {
  return config.distill ? frozen_parameters(config.distill->freeze, model) : std::set<std::string>{};
}

}  // namespace farskip
