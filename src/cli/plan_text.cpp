// SPDX-License-Identifier: Apache-2.0
#include "cli/plan_text.h"

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

namespace farskip {
namespace {

constexpr std::array<const char*, 3> kDirections{"forward", "backward", "update"};

const char* direction_of(const PlannedCollective& c) {
  return kDirections[static_cast<std::size_t>(c.scope.phase)];
}
double gib(std::size_t bytes) {
  return static_cast<double>(bytes) / (1 << 30);
}
std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

/// Collectives of one op and direction, over a step.
struct Summary {
  std::int64_t count = 0;
  double bytes = 0, transport = 0, exposed = 0;
  double window_least = 0, window_most = 0;  // of one of them
};
using Summaries = std::map<std::pair<std::string, std::string>, Summary>;

Summaries summarise(const WiringReport& wiring) {
  Summaries out;
  for (const PlannedCollective& c : wiring.collectives) {
    Summary& s = out[{direction_of(c), c.op}];
    const auto times = static_cast<double>(c.repeats);
    s.window_least = s.count == 0 ? c.window_seconds : std::min(s.window_least, c.window_seconds);
    s.window_most = std::max(s.window_most, c.window_seconds);
    s.count += c.repeats;
    s.bytes += times * c.bytes;
    s.transport += times * c.transport_seconds;
    s.exposed += times * c.exposed_seconds;
  }
  return out;
}

/// What makes a step of this plan smaller, the most useful first.
std::vector<std::string> ways_to_save_memory(const PlanRequest& request, const WiringReport& farskip) {
  const TrainEngineOptions& o = request.options;
  std::vector<std::string> ways;
  if (o.recompute != Recompute::full) ways.emplace_back("schedule.recompute=full");
  if (o.in_flight > 1) ways.emplace_back("schedule.micro_batches_in_flight=1");
  // Where the worst routing counts, which is that of one sequence, fewer of them save nothing.
  const bool worst_routing = farskip.worst_routing_arena > farskip.usual_arena;
  ways.emplace_back(o.micro_batch > 1 && !worst_routing ? "a smaller train.micro_batch"
                                                        : "a smaller train.sequence_length");
  if (o.zero < 3)
    ways.push_back(fmt::format("parallel.zero={} on more ranks (--ranks)", o.zero + 1));
  else
    ways.emplace_back("more ranks (--ranks)");
  return ways;
}

/// Whether the card has the memory that is planned.
void print_room(const PlanRequest& request, const WiringReport& farskip) {
  const GpuCard* const card = request.costs.card;
  if (card == nullptr || static_cast<double>(farskip.memory.total()) <= card->memory_bytes) return;
  fmt::print("this does not fit the card, which has {:.0f} GiB; try {}\n", card->memory_bytes / (1 << 30),
             fmt::join(ways_to_save_memory(request, farskip), ", "));
}

void print_totals(const PlanRequest& request, const PlanReport& report) {
  const TrainEngineOptions& o = request.options;
  const WiringReport &standard = report.standard, &farskip = report.farskip;
  fmt::print(
      "one step on {} ranks ({} data x {} expert{}), {} micro-batches of {} x {} tokens per rank; "
      "predicted\n\n",
      request.mesh.world_size, request.mesh.size(MeshAxis::data), request.mesh.expert_size,
      request.mesh.tensor_size > 1 ? fmt::format(", matrices over {}", request.mesh.tensor_size) : "",
      o.micro_batches, o.micro_batch, o.sequence_length);
  fmt::print("{:22} {:>9} {:>6} {:>12} {:>12} {:>15} {:>13}\n", "", "in flight", "chunks", "blocking ms",
             "scheduled ms", "of blocking std", "memory GiB");
  const auto row = [&](const std::string& name, int in_flight, int chunks, const WiringReport& w) {
    fmt::print("{:22} {:9} {:6} {:12.2f} {:12.2f} {:14.1f}% {:13.2f}\n", name, in_flight, chunks,
               1e3 * w.blocking_seconds, 1e3 * w.scheduled_seconds,
               100 * w.scheduled_seconds / standard.blocking_seconds, gib(w.memory.total()));
  };
  const std::string farskip_name = fmt::format("FarSkip ({})", wiring_name(request.model.farskip));
  row("standard", o.in_flight, o.expert_chunks, standard);
  row(farskip_name, o.in_flight, o.expert_chunks, farskip);
  for (const OtherSchedule& other : report.others) {
    row("standard", other.in_flight, other.expert_chunks, other.standard);
    row(farskip_name, other.in_flight, other.expert_chunks, other.farskip);
  }
  const MemoryReport& m = farskip.memory;
  fmt::print("memory with FarSkip: weights {:.2f}, gradients {:.2f}, moments {:.2f}, activations {:.2f} GiB",
             gib(m.weights), gib(m.gradients), gib(m.moments), gib(farskip.usual_arena));
  if (farskip.worst_routing_arena > farskip.usual_arena)
    fmt::print("\n  ({:.2f} GiB under the worst routing, included above, since no token is dropped)",
               gib(farskip.worst_routing_arena));
  fmt::print("\n");
  print_room(request, farskip);
  fmt::print("computation {:.2f} ms; nothing is faster than {:.2f} ms (standard {:.2f} ms)\n",
             1e3 * farskip.compute_seconds,
             1e3 * std::max(farskip.compute_seconds, farskip.critical_path_seconds),
             1e3 * std::max(standard.compute_seconds, standard.critical_path_seconds));
}

void print_distillation(const PlanRequest& request, const PlanReport& report) {
  if (!request.distill) return;
  if (!report.separate) {
    fmt::print("distillation from cached outputs: the step has no teacher\n");
    return;
  }
  const MemoryReport &joined = report.farskip.blocking_memory, &teacher = report.separate->teacher,
                     &student = report.separate->student;
  const std::size_t separate = teacher.total() + student.total();
  fmt::print(
      "distillation, teacher ({}) and student in one graph; in graph order {:.2f} GiB, {:.1f}% of {:.2f} for "
      "the teacher's forward and the student's step alone\n",
      wiring_name(request.distill->teacher.farskip), gib(joined.total()),
      100 * static_cast<double>(joined.total()) / static_cast<double>(separate), gib(separate));
}

void print_directions(const PlanReport& report) {
  if (report.farskip.total.transport_seconds == 0) {
    fmt::print("no communication\n");
    return;
  }
  fmt::print("\n{:19} {:>10} {:>10} {:>10} {:>10} {:>8}\n", "ms", "C", "W", "H", "exposed", "hidden");
  const auto row = [](const std::string& name, const PlannedOverlap& d) {
    if (d.transport_seconds > 0)
      fmt::print("{:19} {:10.2f} {:10.2f} {:10.2f} {:10.2f} {:7.1f}%\n", name, 1e3 * d.transport_seconds,
                 1e3 * d.window_seconds, 1e3 * d.hideable_seconds, 1e3 * d.exposed_seconds,
                 100 * d.hidden_fraction());
  };
  for (const bool is_farskip : {false, true}) {
    const WiringReport& w = is_farskip ? report.farskip : report.standard;
    const std::string name = is_farskip ? "FarSkip " : "standard ";
    for (std::size_t d = 0; d < kDirections.size(); ++d) row(name + kDirections[d], w.directions[d]);
    row(name + "total", w.total);
  }
  fmt::print(
      "C: transports; W: computation that may run under one; H: the most that any order can hide; hidden: "
      "share of "
      "C\n");
}

void print_summaries(const PlanReport& report) {
  const Summaries standard = summarise(report.standard);
  fmt::print("\n{:9} {:15} {:>6} {:>10} {:>12} {:>21} {:>11} {:>14}\n", "direction", "collective", "count",
             "MB sent", "transport ms", "window of one ms", "exposed ms", "standard exp.");
  for (const auto& [name, s] : summarise(report.farskip)) {
    const auto other = standard.find(name);
    fmt::print("{:9} {:15} {:6} {:10.1f} {:12.2f} {:>21} {:11.2f} {:14.2f}\n", name.first, name.second,
               s.count, s.bytes * 1e-6, 1e3 * s.transport,
               fmt::format("{:.2f} to {:.2f}", 1e3 * s.window_least, 1e3 * s.window_most), 1e3 * s.exposed,
               other == standard.end() ? 0.0 : 1e3 * other->second.exposed);
  }
}

void print_collectives(const WiringReport& wiring) {
  fmt::print("\n{:15} {:24} {:>6} {:>10} {:>12} {:>10} {:>10}  {}\n", "collective", "scope", "times",
             "MB sent", "transport ms", "window ms", "exposed ms", "blocked by");
  for (const PlannedCollective& c : wiring.collectives)
    fmt::print("{:15} {:24} {:6} {:10.3f} {:12.3f} {:10.2f} {:10.3f}  {}\n", c.op, c.scope.text(), c.repeats,
               c.bytes * 1e-6, 1e3 * c.transport_seconds, 1e3 * c.window_seconds, 1e3 * c.exposed_seconds,
               c.blocked_by.empty() ? "the end of the plan" : c.blocked_by);
}

nlohmann::ordered_json overlap_json(const PlannedOverlap& d) {
  return {{"transport_seconds", d.transport_seconds},
          {"window_seconds", d.window_seconds},
          {"hideable_seconds", d.hideable_seconds},
          {"exposed_seconds", d.exposed_seconds},
          {"hidden_fraction", d.hidden_fraction()}};
}

nlohmann::ordered_json collectives_json(const WiringReport& wiring) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const PlannedCollective& c : wiring.collectives) {
    nlohmann::ordered_json object{{"op", c.op},
                                  {"scope", c.scope.text()},
                                  {"direction", direction_of(c)},
                                  {"repeats", c.repeats},
                                  {"bytes", c.bytes},
                                  {"transport_seconds", c.transport_seconds},
                                  {"window_seconds", c.window_seconds},
                                  {"exposed_seconds", c.exposed_seconds}};
    object["blocked_by"] =
        c.blocked_by.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(c.blocked_by);
    list.push_back(std::move(object));
  }
  return list;
}

nlohmann::ordered_json wiring_json(const WiringReport& w) {
  nlohmann::ordered_json object{{"step_seconds_blocking", w.blocking_seconds},
                                {"step_seconds_scheduled", w.scheduled_seconds},
                                {"compute_seconds", w.compute_seconds},
                                {"critical_path_seconds", w.critical_path_seconds},
                                {"memory_bytes",
                                 {{"weights", w.memory.weights},
                                  {"gradients", w.memory.gradients},
                                  {"moments", w.memory.moments},
                                  {"activations", w.memory.arena},
                                  {"activations_usual", w.usual_arena},
                                  {"activations_worst_routing", w.worst_routing_arena},
                                  {"activations_blocking", w.blocking_memory.arena}}},
                                {"peak_memory_bytes", w.memory.total()}};
  for (std::size_t d = 0; d < kDirections.size(); ++d) object[kDirections[d]] = overlap_json(w.directions[d]);
  object["total"] = overlap_json(w.total);
  return object;
}

nlohmann::ordered_json card_json(const PlanRequest& request) {
  const PlanCosts& costs = request.costs;
  if (costs.card == nullptr) return nullptr;
  return {{"name", costs.card->name},
          {"title", costs.card->title},
          {"flops_per_second", costs.rates.flops_per_second},
          {"memory_bytes_per_second", costs.rates.bytes_per_second},
          {"link_bytes_per_second", costs.links[0].bytes_per_second},
          {"memory_bytes", costs.card->memory_bytes}};
}

}  // namespace

void print_card(const PlanRequest& request) {
  const PlanCosts& costs = request.costs;
  if (costs.card == nullptr) return;
  fmt::print("by the rates that an {} (--gpu {}) attains: {:.0f} TFLOP/s in {}, {:.2f} TB/s of its memory",
             costs.card->title, costs.card->name, costs.rates.flops_per_second * 1e-12,
             is_low(request.dtype) ? "bf16" : "fp32", costs.rates.bytes_per_second * 1e-12);
  if (request.mesh.world_size > 1)
    fmt::print("; {:.0f} GB/s between ranks", costs.links[0].bytes_per_second * 1e-9);
  fmt::print("\n");
}

void print_wirings(const WiringPair& wirings) {
  const std::vector<std::string> left = lines_of(wirings.standard.text()),
                                 right = lines_of(wirings.farskip.text());
  std::size_t width = 0;
  for (const std::string& line : left) width = std::max(width, line.size());
  fmt::print("{:{}} | FarSkip\n", "standard", width);
  for (std::size_t i = 0; i < left.size(); ++i) fmt::print("{:{}} | {}\n", left[i], width, right[i]);
  fmt::print("\n");
}

void print_plan(const PlanRequest& request, const PlanReport& report, bool every_collective) {
  print_card(request);
  print_totals(request, report);
  print_distillation(request, report);
  print_directions(report);
  if (!report.farskip.collectives.empty()) {
    print_summaries(report);
    if (every_collective) print_collectives(report.farskip);
  }
  fmt::print("\nplanned {} nodes in {:.1f} s\n", report.num_nodes, report.planning_seconds);
}

nlohmann::ordered_json plan_json(const PlanRequest& request, const PlanReport& report,
                                 const WiringPair* wirings) {
  nlohmann::ordered_json object{{"ranks", request.mesh.world_size},
                                {"expert_parallel", request.mesh.expert_size},
                                {"tensor_parallel", request.mesh.tensor_size},
                                {"micro_batches_in_flight", request.options.in_flight},
                                {"expert_chunks", request.options.expert_chunks},
                                {"step_seconds_standard", report.standard.scheduled_seconds},
                                {"step_seconds_farskip", report.farskip.scheduled_seconds},
                                {"step_seconds_standard_blocking", report.standard.blocking_seconds},
                                {"step_seconds_farskip_blocking", report.farskip.blocking_seconds},
                                {"peak_memory_bytes", report.farskip.memory.total()},
                                {"peak_memory_bytes_standard", report.standard.memory.total()},
                                {"standard", wiring_json(report.standard)},
                                {"farskip", wiring_json(report.farskip)},
                                {"collectives", collectives_json(report.farskip)},
                                {"collectives_standard", collectives_json(report.standard)},
                                {"nodes", report.num_nodes},
                                {"planning_seconds", report.planning_seconds}};
  object["gpu"] = card_json(request);
  object["other_schedules"] = nlohmann::ordered_json::array();
  for (const OtherSchedule& other : report.others)
    object["other_schedules"].push_back({{"micro_batches_in_flight", other.in_flight},
                                         {"expert_chunks", other.expert_chunks},
                                         {"step_seconds_standard", other.standard.scheduled_seconds},
                                         {"step_seconds_farskip", other.farskip.scheduled_seconds},
                                         {"peak_memory_bytes_standard", other.standard.memory.total()},
                                         {"peak_memory_bytes", other.farskip.memory.total()}});
  if (report.separate) {
    object["peak_memory_bytes_graph_order"] = report.farskip.blocking_memory.total();
    object["peak_memory_bytes_teacher_alone"] = report.separate->teacher.total();
    object["peak_memory_bytes_student_alone"] = report.separate->student.total();
  }
  if (wirings != nullptr)
    object["graph"] = {{"standard", lines_of(wirings->standard.text())},
                       {"farskip", lines_of(wirings->farskip.text())}};
  return object;
}

}  // namespace farskip
