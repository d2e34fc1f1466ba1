// SPDX-License-Identifier: Apache-2.0
#pragma once
// A training step predicted without running it: time, memory and communication of the standard and of another
// wiring on any number of ranks, from the graphs that training would run and a table of costs.

#include <array>
#include <functional>
#include <memory>

#include "distill/distill_setup.h"
#include "schedule/gpu_cards.h"

namespace farskip {

/// Where seconds come from: of kernels a table if there is one, else the rates of a device; of collectives
/// the links, where these are not known the table.
struct PlanCosts {
  std::shared_ptr<const CostTable> table;
  DeviceRates rates;
  const GpuCard* card = nullptr;  // the GPU whose rates these are, if it was named
  LinkModels links;
};

struct PlanRequest {
  ModelConfig model;           // model.farskip: the wiring that is compared with the standard one
  TrainEngineOptions options;  // of each rank of the mesh; with an objective only where there is no `distill`
  std::optional<DistillSetup> distill = {};  // a teacher in the step's graph
  MeshPosition mesh;                         // the rank that is planned for
  /// Of activations, gradients and what travels. With bf16, weights are kept in both types, gradients are
  /// summed up in fp32, and kernels are taken to need no scratch memory.
  DType dtype = DType::f32;
  PlanCosts costs{};
  WorkspaceRule workspace{};  // of the device; absent: as `dtype` says
};

struct PlannedCollective {
  std::string op;
  Scope scope;
  std::int64_t repeats = 1;  // in a step (micro-batches that run the same plan)
  double bytes = 0;          // sent by one rank
  /// Its own time; the computation that may legally run under it; the part of its own time in which the
  /// compute stream waits, in the overlapped plan. Each time.
  double transport_seconds = 0, window_seconds = 0, exposed_seconds = 0;
  /// The computation after its wait that needs it, which keeps more from running under it ("grouped_matmul
  /// @3.routed.forward"); empty: the end of the plan.
  std::string blocked_by;
};

/// Of one direction, or of the whole step.
struct PlannedOverlap {
  double transport_seconds = 0;  // C
  double window_seconds = 0;     // W: computation that may run under at least one transport
  double hideable_seconds = 0;   // H: maximum flow, an upper bound
  double exposed_seconds = 0;    // predicted, in the overlapped plan
  double hidden_fraction() const {
    return transport_seconds > 0 ? 1 - exposed_seconds / transport_seconds : 0;
  }
};

struct WiringReport {
  double blocking_seconds = 0, scheduled_seconds = 0;  // of a step
  double compute_seconds = 0;
  double critical_path_seconds = 0;          // longest way through the dependences of each plan
  std::array<PlannedOverlap, 3> directions;  // by Phase
  PlannedOverlap total;
  /// Part of memory: training also keeps room for a plan that repeats a step whose routing does not fit the
  /// usual one, in smaller parts; taken in graph order here. 0: every routing fits.
  std::size_t worst_routing_arena = 0;
  std::size_t usual_arena = 0;           // without it, of the overlapped plan
  MemoryReport blocking_memory, memory;  // of one rank; `memory`: of the overlapped plan
  std::vector<PlannedCollective> collectives;
};

/// Whether the step has routed rows that travel and can be cut in two (schedule.expert_chunks).
bool can_chunk(const ModelConfig& model, const TrainEngineOptions& options, const MeshPosition& mesh);
/// By the request's costs, which know of chunks: two where the planned step is then shorter by more than
/// kLeastGain of it, else one.
int choose_expert_chunks(PlanRequest request, const Logger& logger);
inline constexpr double kLeastGain = 0.02;
/// What a plan compares a number with: two with one, any other with one.
int other_of_one_and_two(int number);

/// One rank's memory for the teacher's forward alone, and for a step of the student without it.
struct SeparateMemory {
  MemoryReport teacher, student;
};

/// The same step with other settings of `schedule`.
struct OtherSchedule {
  int in_flight = 1, expert_chunks = 1;
  WiringReport standard, farskip;
};

struct PlanReport {
  WiringReport standard, farskip;
  /// With two micro-batches in flight where the request has one, else with one, if they divide those of a
  /// rank; and with two chunks where it has one, else with one, if experts are spread over ranks and the
  /// costs know of chunks. None on one rank.
  std::vector<OtherSchedule> others;
  std::optional<SeparateMemory> separate;  // of a distillation; in graph order, as blocking_memory
  std::size_t num_nodes = 0;               // of the graphs of a step with FarSkip wiring
  double planning_seconds = 0;
};

/// The wiring of the request alone: what a search compares.
struct PlannedStep {
  double seconds = 0;
  MemoryReport memory;
};
/// In its overlapped plan, as plan_step has it. Errors as there.
PlannedStep plan_scheduled_step(const PlanRequest& request, const Logger& logger);
/// In graph order, with late waits, which is found some ten times as fast; training's order is rarely slower,
/// and may take more memory. Where more than `most_bytes` are taken anyway, the worst routing is left out.
PlannedStep plan_step_in_graph_order(const PlanRequest& request, std::uint64_t most_bytes,
                                     const Logger& logger);

/// Same arguments, same report, but for planning_seconds. UsageError where ranks do not divide the experts,
/// or costs say nothing about an op.
PlanReport plan_step(const PlanRequest& request, const Logger& logger);

/// How many routed rows there is room for, and what happens to more; empty where none travel.
std::string routed_rows_text(const RoutedRowsPlan& rows);

/// Bytes of weights (a teacher's too), gradients and moments of one rank.
MemoryReport state_memory(const PlanRequest& request);
}  // namespace farskip
