// SPDX-License-Identifier: Apache-2.0
#include "farskip/schedule/costs.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <sstream>

#include "base/statistics.h"

namespace farskip {
namespace {

std::string shape_key(const Graph& graph, const Node& node) {
  std::string key = node.attributes.text();
  for (const ValueId v : node.inputs) key += v ? " " + graph.type(v).shape.text() : " -";
  return key;
}

double size_of(const OpCost& cost) {
  return cost.flops > 0 ? cost.flops : std::max(cost.bytes, 1.0);
}

double transport_seconds(const Graph& graph, NodeId id, const LinkModels& links) {
  const Node& node = graph.node(id);
  const LinkModel& link = links[static_cast<std::size_t>(node.op->axis(node.attributes))];
  FARSKIP_CHECK(link.bytes_per_second > 0, "no link is known for {}", node.op->name);
  return link.latency_seconds + graph.cost(id).wire_bytes / link.bytes_per_second;
}

double parse_number(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || !std::isfinite(value) || value < 0)
    throw DataError(fmt::format("cost table: '{}' is not a number of seconds or a size", text));
  return value;
}

}  // namespace

double CostTable::Entry::median() const {
  return farskip::median(seconds);
}

void CostTable::add(const Graph& graph, NodeId id, double seconds) {
  const Node& node = graph.node(id);
  Entry& entry = entries_[node.op->name][shape_key(graph, node)];
  entry.size = size_of(graph.cost(id));
  entry.seconds.push_back(seconds);
}

void CostTable::add(const CostTable& other) {
  for (const auto& [op, entries] : other.entries_)
    for (const auto& [key, entry] : entries) {
      Entry& sum = entries_[op][key];
      sum.size = entry.size;
      sum.seconds.insert(sum.seconds.end(), entry.seconds.begin(), entry.seconds.end());
    }
}

const CostTable::Entry* CostTable::nearest(const std::string& op, double size) const {
  const auto it = entries_.find(op);
  if (it == entries_.end()) return nullptr;
  const Entry* best = nullptr;
  double distance = 0;
  for (const auto& [key, entry] : it->second) {
    const double d = std::abs(std::log(size / entry.size));
    if (best != nullptr && d >= distance) continue;
    best = &entry;
    distance = d;
  }
  return best;
}

NodeSeconds CostTable::estimate(const Graph& graph, const LinkModels& links) const {
  NodeSeconds seconds(graph.nodes().size(), 0.0);
  for (std::size_t n = 0; n < seconds.size(); ++n) {
    const Node& node = graph.nodes()[n];
    const OpCost cost = graph.cost(NodeId(n));
    if (node.op->collective &&
        links[static_cast<std::size_t>(node.op->axis(node.attributes))].bytes_per_second > 0) {
      seconds[n] = transport_seconds(graph, NodeId(n), links);
      continue;
    }
    const auto op = entries_.find(node.op->name);
    if (op != entries_.end())
      if (const auto exact = op->second.find(shape_key(graph, node)); exact != op->second.end()) {
        seconds[n] = exact->second.median();
        continue;
      }
    const double size = size_of(cost);
    const Entry* const near = nearest(node.op->name, size);
    if (near == nullptr)
      throw UsageError(
          fmt::format("nothing has been measured for {}; measure a run that uses it first", node.op->name));
    seconds[n] = near->median() * size / near->size;
  }
  return seconds;
}

namespace {

/// Bytes of all values of a node whose rows are only bounded.
double bounded_bytes(const Graph& graph, const Node& node) {
  double bytes = 0;
  for (const auto* values : {&node.inputs, &node.outputs})
    for (const ValueId v : *values)
      if (v && graph.type(v).count) bytes += static_cast<double>(graph.type(v).num_bytes());
  return bytes;
}

}  // namespace

NodeSeconds estimate_by_rates(const Graph& graph, const DeviceRates& rates, const LinkModels& links,
                              double row_share) {
  FARSKIP_CHECK(rates.flops_per_second > 0 && rates.bytes_per_second > 0, "the device has no rates");
  NodeSeconds seconds(graph.nodes().size(), 0.0);
  for (std::size_t n = 0; n < seconds.size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (node.op->collective) {
      seconds[n] = transport_seconds(graph, NodeId(n), links);
      continue;
    }
    OpCost cost = graph.cost(NodeId(n));
    if (const double bounded = bounded_bytes(graph, node); bounded > 0) {
      cost.flops *= row_share;
      cost.bytes -= (1 - row_share) * std::min(bounded, cost.bytes);
    }
    seconds[n] = std::max(cost.flops / rates.flops_per_second, cost.bytes / rates.bytes_per_second);
  }
  return seconds;
}

std::string CostTable::text() const {
  std::string out;
  for (const auto& [op, entries] : entries_)
    for (const auto& [key, entry] : entries)
      out += fmt::format("{}\t{}\t{:.6g}\t{:.6g}\n", op, key, entry.size, entry.median());
  return out;
}

CostTable CostTable::parse(std::string_view text) {
  CostTable table;
  std::istringstream lines{std::string(text)};
  for (std::string line; std::getline(lines, line);) {
    std::array<std::string, 4> fields;
    std::size_t begin = 0;
    for (std::size_t i = 0; i < fields.size(); ++i) {
      const std::size_t end = i + 1 < fields.size() ? line.find('\t', begin) : line.size();
      if (end == std::string::npos) throw DataError(fmt::format("cost table: no fields in '{}'", line));
      fields[i] = line.substr(begin, end - begin);
      begin = end + 1;
    }
    Entry& entry = table.entries_[fields[0]][fields[1]];
    entry.size = parse_number(fields[2]);
    if (entry.size == 0) throw DataError(fmt::format("cost table: an entry of size 0 in '{}'", line));
    entry.seconds.push_back(parse_number(fields[3]));
  }
  return table;
}

}  // namespace farskip
