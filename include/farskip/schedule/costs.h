// SPDX-License-Identifier: Apache-2.0
#pragma once
// What nodes take: measured (a table by op, attributes and shapes, from which other sizes are estimated) or
// by the rates of a device that is not there; and a model of the link.

#include <array>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/base/mesh_position.h"
#include "farskip/schedule/simulate.h"

namespace farskip {

/// A transport of b bytes (sent by one rank) takes latency + b / bytes_per_second.
struct LinkModel {
  double latency_seconds = 0;
  double bytes_per_second = 0;  // each way; 0: not known
};
/// By MeshAxis.
using LinkModels = std::array<LinkModel, mesh_axes.size()>;

class CostTable {
 public:
  /// One more measurement of a node like this one, alone on the device (a collective: its transport).
  void add(const Graph& graph, NodeId id, double seconds);
  /// All that another table has measured.
  void add(const CostTable& other);
  /// Seconds of every node: the median of what was measured for the same op, attributes and shapes; else that
  /// of the nearest size of the same op, in proportion to flops or bytes. Collectives: measured if `links`
  /// does not know the axis, else by the link. UsageError naming an op of which nothing is known.
  NodeSeconds estimate(const Graph& graph, const LinkModels& links = {}) const;

  bool empty() const { return entries_.empty(); }
  bool knows(const std::string& op) const { return entries_.contains(op); }
  /// One line an entry, and back. DataError for text that is not a table.
  std::string text() const;
  static CostTable parse(std::string_view text);

 private:
  struct Entry {
    double size = 0;              // flops, or bytes of an op without
    std::vector<double> seconds;  // measured
    double median() const;
  };
  const Entry* nearest(const std::string& op, double size) const;

  std::map<std::string, std::map<std::string, Entry>> entries_;  // by op, then attributes and shapes
};

/// A device by two figures, for planning without it.
struct DeviceRates {
  double flops_per_second = 0;  // of matrix products; 0: not known
  double bytes_per_second = 0;  // of its memory, read and written
};

/// Seconds of every node: the longer of arithmetic and memory traffic; collectives by the link, which must be
/// known for each axis in use. `row_share`: of the bound on routed rows, the part that is expected to be
/// there.
NodeSeconds estimate_by_rates(const Graph& graph, const DeviceRates& rates, const LinkModels& links,
                              double row_share = 1.0);

}  // namespace farskip
