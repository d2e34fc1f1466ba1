// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "farskip/base/error.h"
#include "report/timeline.h"

namespace farskip {
namespace {

using Json = nlohmann::json;

std::string text_of(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}
std::int64_t integer_of(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number_integer() ? found->get<std::int64_t>() : 0;
}
double number_of(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number() ? found->get<double>() : NAN;
}
std::string argument_of(const Json& object, const char* key) {
  const auto found = object.find("args");
  return found != object.end() && found->is_object() ? text_of(*found, key) : std::string();
}

struct Builder {
  std::vector<std::int64_t> order;  // process ids as they appear
  std::map<std::int64_t, TraceProcess> processes;
  std::map<std::pair<std::int64_t, std::int64_t>, std::string> tracks;

  TraceProcess& process(std::int64_t id) {
    const auto [found, added] = processes.try_emplace(id);
    if (added) order.push_back(id);
    return found->second;
  }
  void add_name(const Json& event) {
    const std::int64_t id = integer_of(event, "pid");
    const std::string what = text_of(event, "name");
    if (what == "process_name") process(id).name = argument_of(event, "name");
    if (what == "thread_name") tracks[{id, integer_of(event, "tid")}] = argument_of(event, "name");
  }
  void add_span(const Json& event);
};

SpanKind kind_of(const TraceSpan& span, bool transport) {
  if (transport) return SpanKind::transport;
  if (span.name.starts_with("wait ") || span.name.starts_with("start ")) return SpanKind::waiting;
  if (span.scope.ends_with("backward")) return SpanKind::backward;
  return span.scope.ends_with("update") ? SpanKind::update : SpanKind::forward;
}

void Builder::add_span(const Json& event) {
  const double begin = 1e-6 * number_of(event, "ts"), seconds = 1e-6 * number_of(event, "dur");
  if (!std::isfinite(begin) || !std::isfinite(seconds) || seconds <= 0) return;
  const std::int64_t id = integer_of(event, "pid");
  const std::string& track = tracks[{id, integer_of(event, "tid")}];
  const bool transport = track.starts_with("transport");
  if (!transport && !track.starts_with("computation")) return;
  TraceSpan span{begin, begin + seconds, SpanKind::forward, text_of(event, "name"),
                 argument_of(event, "scope")};
  span.kind = kind_of(span, transport);
  TraceProcess& p = process(id);
  TraceLane& lane = track.ends_with("predicted") ? p.predicted : p.measured;
  (transport ? lane.transports : lane.computation).push_back(std::move(span));
}

void sort_spans(std::vector<TraceSpan>& spans) {
  std::stable_sort(spans.begin(), spans.end(),
                   [](const auto& a, const auto& b) { return a.begin < b.begin; });
}

struct Interval {
  double begin, end;
};
/// Union of what `keep` accepts, by begin.
template <class Keep>
std::vector<Interval> unite(const std::vector<TraceSpan>& spans, const Keep& keep) {
  std::vector<Interval> united;
  for (const TraceSpan& span : spans) {
    if (!keep(span)) continue;
    if (!united.empty() && span.begin <= united.back().end)
      united.back().end = std::max(united.back().end, span.end);
    else
      united.push_back({span.begin, span.end});
  }
  return united;
}

double length_of(const std::vector<Interval>& intervals) {
  double length = 0;
  for (const Interval& i : intervals) length += i.end - i.begin;
  return length;
}

double overlap_of(const std::vector<Interval>& a, const std::vector<Interval>& b) {
  double length = 0;
  for (std::size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    length += std::max(0.0, std::min(a[i].end, b[j].end) - std::max(a[i].begin, b[j].begin));
    a[i].end < b[j].end ? ++i : ++j;
  }
  return length;
}

}  // namespace

std::vector<TraceProcess> read_trace(const std::string& text) {
  const Json root = Json::parse(text, nullptr, false);
  const Json* events = root.is_array() ? &root : nullptr;
  if (root.is_object() && root.contains("traceEvents")) events = &root["traceEvents"];
  if (events == nullptr || !events->is_array())
    throw DataError("it is not whole, or not a trace of Chrome or Perfetto in JSON (traceEvents)");
  Builder builder;
  for (const Json& event : *events)
    if (event.is_object() && text_of(event, "ph") == "M") builder.add_name(event);
  for (const Json& event : *events)
    if (event.is_object() && text_of(event, "ph") == "X") builder.add_span(event);
  std::vector<TraceProcess> processes;
  for (const std::int64_t id : builder.order) {
    TraceProcess& p = builder.processes[id];
    for (TraceLane* lane : {&p.measured, &p.predicted}) {
      sort_spans(lane->computation);
      sort_spans(lane->transports);
    }
    if (!p.measured.computation.empty() || !p.predicted.computation.empty())
      processes.push_back(std::move(p));
  }
  if (processes.empty())
    throw DataError(
        "it has no spans on tracks called computation or transport (farskip bench overlap --trace)");
  return processes;
}

LaneTotals measure_lane(const TraceLane& lane) {
  const auto computing =
      unite(lane.computation, [](const TraceSpan& s) { return s.kind != SpanKind::waiting; });
  const auto waiting =
      unite(lane.computation, [](const TraceSpan& s) { return s.kind == SpanKind::waiting; });
  const auto moving = unite(lane.transports, [](const TraceSpan&) { return true; });
  LaneTotals totals;
  totals.computation = length_of(computing);
  totals.waiting = length_of(waiting);
  totals.in_flight = length_of(moving);
  totals.hidden = overlap_of(moving, computing);
  double begin = INFINITY, end = -INFINITY;
  for (const auto* spans : {&lane.computation, &lane.transports})
    for (const TraceSpan& span : *spans) {
      begin = std::min(begin, span.begin);
      end = std::max(end, span.end);
    }
  totals.seconds = std::max(0.0, end - begin);
  return totals;
}

}  // namespace farskip
