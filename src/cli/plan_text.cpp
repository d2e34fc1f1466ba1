// SPDX-License-Identifier: Apache-2.0
#include "cli/plan_text.h"

#include <algorithm>
#include <array>
#include <map>
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

Record overlap_record(const PlannedOverlap& d) {
  return {{"transport_seconds", d.transport_seconds},
          {"window_seconds", d.window_seconds},
          {"hideable_seconds", d.hideable_seconds},
          {"exposed_seconds", d.exposed_seconds},
          {"hidden_fraction", d.hidden_fraction()}};
}

Record collectives_record(const WiringReport& wiring) {
  Record list = Record::array();
  for (const PlannedCollective& c : wiring.collectives) {
    Record object{{"op", c.op},
                  {"scope", c.scope.text()},
                  {"direction", direction_of(c)},
                  {"repeats", c.repeats},
                  {"bytes", c.bytes},
                  {"transport_seconds", c.transport_seconds},
                  {"window_seconds", c.window_seconds},
                  {"exposed_seconds", c.exposed_seconds}};
    object["blocked_by"] = c.blocked_by.empty() ? Record() : Record(c.blocked_by);
    list.push_back(std::move(object));
  }
  return list;
}

Record wiring_record(const WiringReport& w) {
  Record object{{"step_seconds_blocking", w.blocking_seconds},
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
  for (std::size_t d = 0; d < kDirections.size(); ++d)
    object[kDirections[d]] = overlap_record(w.directions[d]);
  object["total"] = overlap_record(w.total);
  return object;
}

Record card_record(const PlanRequest& request) {
  const PlanCosts& costs = request.costs;
  if (costs.card == nullptr) return nullptr;
  return {{"name", costs.card->name},
          {"title", costs.card->title},
          {"flops_per_second", costs.rates.flops_per_second},
          {"memory_bytes_per_second", costs.rates.bytes_per_second},
          {"link_bytes_per_second", costs.links[0].bytes_per_second},
          {"memory_bytes", costs.card->memory_bytes}};
}

RoutedRowsPlan routed_rows_of(const PlanRequest& request) {
  return plan_routed_rows(request.model, request.options, request.mesh.exchange_size());
}

}  // namespace

Record plan_record(const PlanRequest& request, const PlanReport& report, const WiringPair* wirings) {
  Record object{{"ranks", request.mesh.world_size},
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
                {"standard", wiring_record(report.standard)},
                {"farskip", wiring_record(report.farskip)},
                {"collectives", collectives_record(report.farskip)},
                {"collectives_standard", collectives_record(report.standard)},
                {"nodes", report.num_nodes},
                {"planning_seconds", report.planning_seconds}};
  object["gpu"] = card_record(request);
  const RoutedRowsPlan rows = routed_rows_of(request);
  if (rows.max_rows > 0)
    object["routed_rows"] = {{"room", rows.max_rows},
                             {"even_share", rows.even_rows},
                             {"all", rows.all_rows},
                             {"bytes", rows.bytes}};
  object["other_schedules"] = Record::array();
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

namespace {

/// Collectives of one op and direction, over a step.
struct Summary {
  std::int64_t count = 0;
  double bytes = 0, transport = 0, exposed = 0;
  double window_least = 0, window_most = 0;  // of one of them
};
using Summaries = std::map<std::pair<std::string, std::string>, Summary>;

Summaries summarise(const Record& collectives) {
  Summaries out;
  for (const Record& c : collectives) {
    Summary& s = out[{text_of(c, "{direction}"), text_of(c, "{op}")}];
    const double times = number_of(c, "repeats"), window = number_of(c, "window_seconds");
    s.window_least = s.count == 0 ? window : std::min(s.window_least, window);
    s.window_most = std::max(s.window_most, window);
    s.count += c["repeats"].get<std::int64_t>();
    s.bytes += times * number_of(c, "bytes");
    s.transport += times * number_of(c, "transport_seconds");
    s.exposed += times * number_of(c, "exposed_seconds");
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

/// From the report: the record leaves out what a micro-batch is, and other schedules that block.
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
}

/// `memory`: of the FarSkip wiring.
void print_memory(const Record& memory) {
  fmt::print("{}",
             text_of(memory,
                     "memory with FarSkip: weights {weights|GiB:.2f}, gradients {gradients|GiB:.2f}, moments "
                     "{moments|GiB:.2f}, activations {activations_usual|GiB:.2f} GiB"));
  if (number_of(memory, "activations_worst_routing") > number_of(memory, "activations_usual"))
    fmt::print(
        "{}", text_of(memory,
                      "\n  ({activations_worst_routing|GiB:.2f} GiB under the worst routing, included above, "
                      "since no token is dropped)"));
  fmt::print("\n");
}

void print_computation(const Record& record) {
  const auto least = [&](const char* wiring) {
    return std::max(number_of(record[wiring], "compute_seconds"),
                    number_of(record[wiring], "critical_path_seconds"));
  };
  fmt::print("{}; nothing is faster than {:.2f} ms (standard {:.2f} ms)\n",
             text_of(record["farskip"], "computation {compute_seconds|ms:.2f} ms"), 1e3 * least("farskip"),
             1e3 * least("standard"));
}

void print_distillation(const PlanRequest& request, const Record& record) {
  if (!request.distill) return;
  if (!record.contains("peak_memory_bytes_graph_order")) {
    fmt::print("distillation from cached outputs: the step has no teacher\n");
    return;
  }
  const double separate = number_of(record, "peak_memory_bytes_teacher_alone") +
                          number_of(record, "peak_memory_bytes_student_alone");
  fmt::print(
      "distillation, teacher ({}) and student in one graph; in graph order {} GiB, {:.1f}% of {:.2f} for "
      "the teacher's forward and the student's step alone\n",
      wiring_name(request.distill->teacher.farskip),
      text_of(record, "{peak_memory_bytes_graph_order|GiB:.2f}"),
      100 * number_of(record, "peak_memory_bytes_graph_order") / separate, separate / (1 << 30));
}

void print_directions(const Record& record) {
  if (number_of(record, "farskip.total.transport_seconds") == 0) {
    fmt::print("no communication\n");
    return;
  }
  fmt::print("\n{:19} {:>10} {:>10} {:>10} {:>10} {:>8}\n", "ms", "C", "W", "H", "exposed", "hidden");
  const auto row = [](const std::string& name, const Record& d) {
    if (number_of(d, "transport_seconds") > 0)
      fmt::print("{:19} {}\n", name,
                 text_of(d,
                         "{transport_seconds|ms:10.2f} {window_seconds|ms:10.2f} {hideable_seconds|ms:10.2f} "
                         "{exposed_seconds|ms:10.2f} {hidden_fraction|%:7.1f}%"));
  };
  for (const bool is_farskip : {false, true}) {
    const Record& wiring = record[is_farskip ? "farskip" : "standard"];
    const std::string name = is_farskip ? "FarSkip " : "standard ";
    for (const char* direction : kDirections) row(name + direction, wiring[direction]);
    row(name + "total", wiring["total"]);
  }
  fmt::print(
      "C: transports; W: computation that may run under one; H: the most that any order can hide; hidden: "
      "share of "
      "C\n");
}

void print_summaries(const Record& record) {
  const Summaries standard = summarise(record["collectives_standard"]);
  fmt::print("\n{:9} {:15} {:>6} {:>10} {:>12} {:>21} {:>11} {:>14}\n", "direction", "collective", "count",
             "MB sent", "transport ms", "window of one ms", "exposed ms", "standard exp.");
  for (const auto& [name, s] : summarise(record["collectives"])) {
    const auto other = standard.find(name);
    fmt::print("{:9} {:15} {:6} {:10.1f} {:12.2f} {:>21} {:11.2f} {:14.2f}\n", name.first, name.second,
               s.count, s.bytes * 1e-6, 1e3 * s.transport,
               fmt::format("{:.2f} to {:.2f}", 1e3 * s.window_least, 1e3 * s.window_most), 1e3 * s.exposed,
               other == standard.end() ? 0.0 : 1e3 * other->second.exposed);
  }
}

void print_collectives(const Record& collectives) {
  fmt::print("\n{:15} {:24} {:>6} {:>10} {:>12} {:>10} {:>10}  {}\n", "collective", "scope", "times",
             "MB sent", "transport ms", "window ms", "exposed ms", "blocked by");
  for (const Record& c : collectives)
    fmt::print("{}  {}\n",
               text_of(c,
                       "{op:15} {scope:24} {repeats:6} {bytes|MB:10.3f} {transport_seconds|ms:12.3f} "
                       "{window_seconds|ms:10.2f} {exposed_seconds|ms:10.3f}"),
               c["blocked_by"].is_null() ? "the end of the plan" : text_of(c, "{blocked_by}"));
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

void print_plan(const PlanRequest& request, const PlanReport& report, const Record& record,
                bool every_collective) {
  print_card(request);
  print_totals(request, report);
  print_memory(record["farskip"]["memory_bytes"]);
  if (const std::string rows = routed_rows_text(routed_rows_of(request)); !rows.empty())
    fmt::print("{}\n", rows);
  print_room(request, report.farskip);
  print_computation(record);
  print_distillation(request, record);
  print_directions(record);
  if (!record["collectives"].empty()) {
    print_summaries(record);
    if (every_collective) print_collectives(record["collectives"]);
  }
  print_line(record, "\nplanned {nodes} nodes in {planning_seconds:.1f} s");
}

}  // namespace farskip
