// SPDX-License-Identifier: Apache-2.0
#pragma once
// Plan: the order in which the nodes of a graph run, and where every buffer lies. A value: printable,
// comparable, and checked by a verifier of its own.

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "farskip/graph/graph.h"

namespace farskip {

/// Where a value lives: in the arena, or in the buffer of an external value (weights, state, inputs).
struct Placement {
  ValueId external{};      // set: the buffer bound to that external
  std::size_t offset = 0;  // otherwise: byte offset in the arena
  std::size_t bytes = 0;
  friend bool operator==(const Placement&, const Placement&) = default;
};

/// A collective takes two steps, everything else one. What a collective reads must stay as it is, and what it
/// writes must not be touched, from its start to its wait.
enum class StepKind : std::uint8_t { run, start, wait };

/// Which of the equal portions of its rows a step runs of a node (OpDef::portions); all of a node's portions
/// run, in order.
struct Portion {
  std::int64_t first = 0, count = 1, of = 1;
  bool whole() const { return count == of; }
  double share() const { return static_cast<double>(count) / static_cast<double>(of); }
  friend bool operator==(const Portion&, const Portion&) = default;
};

struct PlanStep {
  NodeId node;
  StepKind kind = StepKind::run;
  Portion portion{};
  std::size_t workspace_offset = 0, workspace_bytes = 0;  // of a collective: from start to wait, at its start
  friend bool operator==(const PlanStep&, const PlanStep&) = default;
};

struct Plan {
  std::vector<PlanStep> steps;
  std::vector<Placement> placements;  // by value id
  std::size_t arena_bytes = 0;
  std::size_t live_bytes = 0;  // largest sum of buffers alive at once: no packing can do with less

  /// One line a step: node, scope, what it reads and writes and where.
  std::string text(const Graph& graph) const;
  friend bool operator==(const Plan&, const Plan&) = default;
};

/// Scratch bytes that a node's kernel asks for (0 where there is none).
using WorkspaceRule = std::function<std::size_t(const OpDef& op, const OpTypes& types)>;
/// What the rule says of one node.
std::size_t workspace_bytes(const Graph& graph, NodeId id, const WorkspaceRule& workspace);

/// When the serial plan waits for a collective: at once (nothing runs meanwhile), or just before its first
/// reader; one without a reader (a gradient reduction) then at the end, at most two of them in flight.
enum class Waits : std::uint8_t { at_once, late };

/// The serial plan: nodes in graph order. Always available; every other plan must compute the same bits.
Plan make_serial_plan(const Graph& graph, const WorkspaceRule& workspace, Waits waits = Waits::at_once);

/// One step of an order, before its plan.
struct OrderedStep {
  NodeId node;
  StepKind kind = StepKind::run;
  Portion portion{};
};
/// The plan runs these steps in this order, with their workspace; its buffers have no places yet.
Plan make_unplaced_plan(const Graph& graph, const WorkspaceRule& workspace,
                        const std::vector<OrderedStep>& order);
/// The same, with all buffers placed.
Plan make_plan(const Graph& graph, const WorkspaceRule& workspace, const std::vector<OrderedStep>& order);

/// Throws InternalError naming step and value unless: every node runs once (or each of its portions, in
/// order) and after what it reads, a collective is waited for once and before its results are read, no two
/// buffers that are alive together overlap (but where an op declares in-place use), every update ends in the
/// buffer of its external value, other externals are not written, and everything lies inside the arena.
void verify_plan(const Graph& graph, const Plan& plan);

/// Into how many portions a plan may cut a node; 1: none.
std::int64_t num_portions(const Graph& graph, NodeId id);

/// First and last step of each node, by node id: the same step, start and wait, or its first and last
/// portion.
struct StepRange {
  std::size_t first = static_cast<std::size_t>(-1), last = static_cast<std::size_t>(-1);
};
std::vector<StepRange> step_ranges(const Graph& graph, const Plan& plan);

/// The collectives in order of their starts, as text that must be the same on every rank of the job.
std::string collective_order(const Graph& graph, const Plan& plan);

}  // namespace farskip
