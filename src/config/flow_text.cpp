// SPDX-License-Identifier: Apache-2.0
#include "config/flow_text.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <vector>

#include "farskip/base/error.h"

namespace farskip {

std::string flow_text(const ConfigNode& node, std::string_view null_text) {
  std::vector<std::string> parts;
  for (const ConfigNode& child : node.children)
    parts.push_back((node.kind == ConfigNode::Kind::map ? child.key + ": " : "") +
                    flow_text(child, null_text));
  switch (node.kind) {
    case ConfigNode::Kind::null:
      return std::string(null_text);
    case ConfigNode::Kind::scalar:
      return node.text;
    case ConfigNode::Kind::list:
      return fmt::format("[{}]", fmt::join(parts, ", "));
    case ConfigNode::Kind::map:
      return fmt::format("{{{}}}", fmt::join(parts, ", "));
  }
  throw InternalError("a node of no kind");
}

}  // namespace farskip
