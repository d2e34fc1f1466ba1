// SPDX-License-Identifier: Apache-2.0
#include "report/timeline.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "farskip/base/error.h"
#include "report/axis.h"
#include "report/chart.h"

namespace farskip {
namespace {

constexpr std::size_t kMostPixels = 8000, kLeastPixels = 500;  // of a track at the largest zoom
constexpr std::size_t kMostProcesses = 8, kMostNamedSpans = 4000;
constexpr std::size_t kLanes = 3;  // transports in flight at once that are drawn apart

/// What a pixel shows; the order is that of the style's classes s0 to s5.
enum class Ink : std::uint8_t { forward, backward, update, waiting, hidden, exposed, none };
constexpr std::size_t kInks = 6;

/// A track as pixels: each takes the ink that covers the most of it.
class Raster {
 public:
  Raster(double seconds, std::size_t pixels)
      : scale_(static_cast<double>(pixels) / seconds), cover_(pixels) {}

  void add(double begin, double end, Ink ink) {
    const auto pixels = static_cast<double>(cover_.size());
    const double from = std::clamp(begin * scale_, 0.0, pixels), to = std::clamp(end * scale_, from, pixels);
    for (auto pixel = static_cast<std::size_t>(from);
         pixel < cover_.size() && static_cast<double>(pixel) < to; ++pixel) {
      const auto left = static_cast<double>(pixel);
      cover_[pixel][static_cast<std::size_t>(ink)] +=
          static_cast<float>(std::min(to, left + 1) - std::max(from, left));
    }
  }

  /// One path per ink, rectangles of height `height` from `top`.
  std::string svg(std::size_t top, std::size_t height) const {
    std::array<std::string, kInks> paths;
    for (std::size_t begin = 0; begin < cover_.size();) {
      const Ink ink = ink_of(begin);
      std::size_t end = begin + 1;
      while (end < cover_.size() && ink_of(end) == ink) ++end;
      if (ink != Ink::none)
        paths[static_cast<std::size_t>(ink)] +=
            fmt::format("M{} {}h{}v{}h-{}z", begin, top, end - begin, height, end - begin);
      begin = end;
    }
    std::string svg;
    for (std::size_t ink = 0; ink < kInks; ++ink)
      if (!paths[ink].empty()) svg += fmt::format("<path class=\"s{}\" d=\"{}\"/>", ink, paths[ink]);
    return svg;
  }

 private:
  Ink ink_of(std::size_t pixel) const {
    const auto& cover = cover_[pixel];
    const auto most = std::max_element(cover.begin(), cover.end());
    // Idle time wins where less than a third is covered, so that gaps stay visible.
    return *most > 0.34F ? static_cast<Ink>(most - cover.begin()) : Ink::none;
  }

  double scale_;
  std::vector<std::array<float, kInks>> cover_;
};

Ink ink_of(SpanKind kind) {
  return static_cast<Ink>(std::min(static_cast<int>(kind), static_cast<int>(Ink::waiting)));
}

/// The axis of all tracks, in one of several grains.
struct Grain {
  double seconds;
  std::size_t pixels;
};

std::string open_svg(const Grain& grain, std::size_t height) {
  return fmt::format("<svg viewBox=\"0 0 {} {}\" preserveAspectRatio=\"none\">", grain.pixels, height);
}

std::string draw_computation(const TraceLane& lane, const Grain& grain) {
  Raster raster(grain.seconds, grain.pixels);
  for (const TraceSpan& span : lane.computation) raster.add(span.begin, span.end, ink_of(span.kind));
  return open_svg(grain, 1) + raster.svg(0, 1) + "</svg>";
}

/// Transports, each split into what runs under computation and what does not. Those in flight together go
/// into rows.
std::string draw_transports(const TraceLane& lane, const Grain& grain) {
  std::vector<Raster> rows(kLanes, Raster(grain.seconds, grain.pixels));
  std::array<double, kLanes> ends{};
  std::size_t used = 1, first = 0;
  const std::vector<TraceSpan>& computation = lane.computation;
  for (const TraceSpan& t : lane.transports) {
    const auto free =
        std::find_if(ends.begin(), ends.end(), [&](double end) { return end <= t.begin + 1e-12; });
    const auto row = static_cast<std::size_t>(
        (free == ends.end() ? std::min_element(ends.begin(), ends.end()) : free) - ends.begin());
    ends[row] = std::max(ends[row], t.end);
    used = std::max(used, row + 1);
    while (first < computation.size() && computation[first].end <= t.begin) ++first;
    double at = t.begin;
    for (std::size_t i = first; i < computation.size() && computation[i].begin < t.end; ++i) {
      if (computation[i].kind == SpanKind::waiting || computation[i].end <= at) continue;
      const double begin = std::max(at, computation[i].begin), end = std::min(t.end, computation[i].end);
      rows[row].add(at, begin, Ink::exposed);
      rows[row].add(begin, end, Ink::hidden);
      at = end;
    }
    rows[row].add(at, t.end, Ink::exposed);
  }
  std::string svg = open_svg(grain, used);
  for (std::size_t row = 0; row < used; ++row) svg += rows[row].svg(row, 1);
  return svg + "</svg>";
}

std::string milliseconds(double seconds) {
  return short_number(1e3 * seconds) + " ms";
}
std::string percent(double part, double whole) {
  return whole > 0 ? fmt::format("{:.0f}%", 100 * part / whole) : "-";
}

std::string totals_html(const std::string& name, const LaneTotals& t) {
  std::string html =
      fmt::format("<b>{}</b> {}: computation {}, waiting {} ({})", escape_html(name), milliseconds(t.seconds),
                  milliseconds(t.computation), milliseconds(t.waiting), percent(t.waiting, t.seconds));
  if (t.in_flight > 0)
    html += fmt::format("; transports in flight {}, of it {} under computation", milliseconds(t.in_flight),
                        percent(t.hidden, t.in_flight));
  return html;
}

/// What the pointer reads: for each track [begin in ns, length in ns, number of a text, …]; the texts once.
class SpanTexts {
 public:
  void add_track(const std::vector<TraceSpan>& spans) {
    nlohmann::json track = nlohmann::json::array();
    for (const TraceSpan& span : spans) {
      track.push_back(std::llround(1e9 * span.begin));
      track.push_back(std::llround(1e9 * (span.end - span.begin)));
      const auto [found, added] = numbers_.try_emplace(span.name + "\n" + span.scope, texts_.size());
      if (added) texts_.push_back(found->first);
      track.push_back(found->second);
    }
    tracks_.push_back(std::move(track));
  }
  std::string html() const {
    std::string text = nlohmann::json{{"tracks", tracks_}, {"texts", texts_}}.dump(
        -1, ' ', true, nlohmann::json::error_handler_t::replace);
    for (std::size_t at = 0; (at = text.find('<', at)) != std::string::npos;) text.replace(at, 1, "\\u003c");
    return "<script type=\"application/json\">" + text + "</script>";
  }

 private:
  std::map<std::string, std::size_t> numbers_;
  nlohmann::json tracks_ = nlohmann::json::array();
  nlohmann::json texts_ = nlohmann::json::array();
};

struct Track {
  const char* name;
  const std::vector<TraceSpan>* spans;
  std::string svg;
  bool predicted;
};

std::vector<Track> tracks_of(const TraceProcess& p, const Grain& grain) {
  std::vector<Track> tracks;
  const auto add = [&](const TraceLane& lane, bool predicted) {
    if (!lane.computation.empty())
      tracks.push_back({predicted ? "predicted" : "computation", &lane.computation,
                        draw_computation(lane, grain), predicted});
    if (!lane.transports.empty())
      tracks.push_back({predicted ? "predicted" : "transports", &lane.transports,
                        draw_transports(lane, grain), predicted});
  };
  add(p.measured, false);
  add(p.predicted, true);
  return tracks;
}

double last_end(const std::vector<TraceProcess>& processes) {
  double end = 0;
  for (const TraceProcess& p : processes)
    for (const TraceLane* lane : {&p.measured, &p.predicted})
      for (const auto* spans : {&lane->computation, &lane->transports})
        for (const TraceSpan& span : *spans) end = std::max(end, span.end);
  return end;
}

std::string axis_html(double seconds) {
  const Axis axis = make_axis(0, 1e3 * seconds, 8, false, Padding::none);
  std::string html = "<div class=\"xs\">";
  for (const Tick& tick : axis.ticks)
    html += fmt::format("<span style=\"left:{:.2f}%\">{}</span>", 100 * axis.place(tick.value), tick.text);
  return html + "</div>";
}

constexpr const char* kLegend =
    "<p class=\"legend\"><span><i class=\"i0\"></i>forward</span><span><i class=\"i1\"></i>backward</span>"
    "<span><i class=\"i2\"></i>update</span><span><i class=\"i3\"></i>waiting for a transport</span>"
    "<span><i class=\"i4\"></i>transport under computation (its window)</span>"
    "<span><i class=\"i5\"></i>transport exposed</span></p>\n";

struct Body {
  std::string names, tracks, texts;
  std::size_t size() const { return names.size() + tracks.size() + texts.size(); }
};

Body draw_body(const std::vector<TraceProcess>& processes, const Grain& grain) {
  Body body;
  SpanTexts texts;
  std::size_t num_spans = 0;
  for (const TraceProcess& p : processes) {
    body.names += "<div class=\"process\">" + escape_html(p.name) + "</div>";
    body.tracks += "<div class=\"process\"></div>";
    for (const Track& track : tracks_of(p, grain)) {
      const char* kind = track.predicted ? "track predicted" : "track";
      body.names += fmt::format("<div class=\"{}\">{}</div>", kind, track.name);
      body.tracks += fmt::format("<div class=\"{}\">{}</div>", kind, track.svg);
      texts.add_track(*track.spans);
      num_spans += track.spans->size();
    }
  }
  if (num_spans <= kMostNamedSpans) body.texts = texts.html();
  return body;
}

}  // namespace

std::string timeline_html(const std::string& title, std::vector<TraceProcess> processes,
                          std::size_t most_bytes) {
  const double seconds = last_end(processes);
  if (!(seconds > 0) || !std::isfinite(seconds)) return {};
  const std::size_t found = processes.size();
  processes.resize(std::min(found, kMostProcesses));
  Body body;
  for (Grain grain{seconds, kMostPixels}; grain.pixels >= kLeastPixels; grain.pixels /= 2) {
    body = draw_body(processes, grain);
    if (body.size() <= most_bytes) break;
  }
  std::string totals;
  for (const TraceProcess& p : processes)
    totals += "<li>" +
              totals_html(p.name, measure_lane(p.measured.computation.empty() ? p.predicted : p.measured)) +
              "</li>";
  std::string html = fmt::format(
      "<figure class=\"timeline\" data-ns=\"{:.0f}\"><figcaption><b>{}</b> <span>one step, "
      "milliseconds</span>"
      "<span class=\"zooms\" hidden><button data-zoom=\"1\">1x</button><button data-zoom=\"4\">4x</button>"
      "<button data-zoom=\"16\">16x</button></span></figcaption>\n<ul class=\"totals\">{}</ul>\n",
      1e9 * seconds, escape_html(title), totals);
  html += kLegend;
  html += "<div class=\"tracks\"><div class=\"names\">" + body.names +
          "</div><div class=\"scroll\"><div class=\"inner\">" + body.tracks + axis_html(seconds) +
          "</div></div></div>" + body.texts;
  if (processes.size() < found)
    html += fmt::format("<p class=\"note\">the first {} of {} processes</p>", processes.size(), found);
  return html + "</figure>\n";
}

}  // namespace farskip
