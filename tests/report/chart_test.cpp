// SPDX-License-Identifier: Apache-2.0
// Curves, axes and traces before they become a page.

#include "report/chart.h"

#include <cmath>
#include <limits>

#include "farskip/base/error.h"
#include "report/axis.h"
#include "report/timeline.h"
#include "support/catch.h"

namespace farskip {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

TEST_CASE("thinned curves keep every extreme of their buckets, in order") {
  Curve curve;
  for (int i = 0; i < 10'007; ++i) curve.push_back({static_cast<double>(i), std::sin(0.37 * i)});
  curve[5003].y = 40;   // one step up
  curve[7001].y = -30;  // and one down
  const Curve thin = thin_curve(curve, 100);
  CHECK(thin.size() <= 200);
  double low = 0, high = 0;
  for (std::size_t i = 0; i < thin.size(); ++i) {
    if (i > 0) CHECK(thin[i].x > thin[i - 1].x);
    CHECK(thin[i].y == curve[static_cast<std::size_t>(thin[i].x)].y);
    low = std::min(low, thin[i].y);
    high = std::max(high, thin[i].y);
  }
  CHECK(high == 40);
  CHECK(low == -30);
}

TEST_CASE("thinning keeps short curves and gaps") {
  const Curve shorter{{1, 5}, {2, kNan}, {3, 4}};
  CHECK(thin_curve(shorter, 2).size() == 3);
  Curve curve;
  for (int i = 0; i < 1000; ++i)
    curve.push_back({static_cast<double>(i), i >= 400 && i < 500 ? kNan : 1.0 * i});
  std::size_t gaps = 0;
  for (const Point& p : thin_curve(curve, 10)) gaps += std::isnan(p.y) ? 1 : 0;
  CHECK(gaps == 1);
}

TEST_CASE("a smoothed constant is that constant, and a gap stays a gap") {
  Curve curve(100, {0, 2.5});
  for (std::size_t i = 0; i < curve.size(); ++i) curve[i].x = static_cast<double>(i);
  curve[10].y = kNan;
  const Curve smooth = smooth_curve(curve, 20);
  REQUIRE(smooth.size() == 100);
  for (std::size_t i = 0; i < smooth.size(); ++i) {
    if (i == 10)
      CHECK(std::isnan(smooth[i].y));
    else
      CHECK(smooth[i].y == Catch::Approx(2.5));
  }
}

TEST_CASE("axes have a few round ticks inside their range") {
  struct Case {
    double low, high;
    bool logarithmic;
  };
  for (const Case& c :
       {Case{0, 450, false}, Case{3.1, 8.4, false}, Case{0, 3e-4, false}, Case{5, 5, false},
        Case{0, 0, false}, Case{-2, 7e11, false}, Case{1e-3, 5e4, true}, Case{-1e308, 1e308, false}}) {
    CAPTURE(c.low, c.high);
    const Axis axis = make_axis(c.low, c.high, 6, c.logarithmic, Padding::both);
    CHECK(axis.low < axis.high);
    CHECK(axis.ticks.size() >= 2);
    CHECK(axis.ticks.size() <= 8);
    for (const Tick& tick : axis.ticks) {
      CHECK(axis.place(tick.value) >= -1e-6);
      CHECK(axis.place(tick.value) <= 1 + 1e-6);
      CHECK(tick.text.size() <= 9);
    }
  }
  const Axis axis = make_axis(0, 450, 6, false, Padding::none);
  REQUIRE(axis.ticks.size() == 5);
  CHECK(axis.ticks[1].text == "100");
  CHECK(make_axis(0, 3e-4, 5, false, Padding::none).ticks[1].text == "1e-4");
  CHECK(make_axis(0, 50'000, 6, false, Padding::none).ticks[1].text == "10k");
}

TEST_CASE("numbers are short and keep their size") {
  CHECK(short_number(0) == "0");
  CHECK(short_number(5220.4) == "5220");
  CHECK(short_number(12'345'678) == "12.3M");
  CHECK(short_number(0.00042) == "4.2e-4");
  CHECK(short_number(4.28571) == "4.286");
  CHECK(short_number(kNan) == "not finite");
}

TEST_CASE("a few points far above the others do not flatten a chart, and are counted") {
  LineChart chart;
  chart.title = "t";
  Series series{"s", {}, 0, false, false};
  for (int i = 0; i < 200; ++i)
    series.curve.push_back({static_cast<double>(i), i == 7 ? 1e9 : 2.0 + i * 0.01});
  series.curve[20].y = -1;  // not logarithmic
  chart.series.push_back(series);
  CHECK_THAT(line_chart_html(chart), ContainsSubstring("1 point lies above the axis"));
  chart.series[0].curve[8].y = 1e9;
  CHECK_THAT(line_chart_html(chart), ContainsSubstring("2 points lie above the axis"));
  CHECK(line_chart_html(LineChart{}).empty());
}

TraceSpan span(double begin, double end, SpanKind kind) {
  return {begin, end, kind, "op", "scope"};
}

TEST_CASE("a transport is hidden where computation runs and exposed where it waits") {
  TraceLane lane;
  lane.computation = {span(0, 1, SpanKind::forward), span(1, 5, SpanKind::backward),
                      span(5, 7, SpanKind::waiting), span(7, 10, SpanKind::update)};
  lane.transports = {span(1, 7, SpanKind::transport), span(2, 3, SpanKind::transport)};
  const LaneTotals totals = measure_lane(lane);
  CHECK(totals.seconds == Catch::Approx(10));
  CHECK(totals.computation == Catch::Approx(8));
  CHECK(totals.waiting == Catch::Approx(2));
  CHECK(totals.in_flight == Catch::Approx(6));  // two at once count once
  CHECK(totals.hidden == Catch::Approx(4));
  const std::string html = timeline_html("t", {{"rank 0", lane, {}}}, 100'000);
  // Of 8000 parts: hidden from 1 to 5, exposed from 5 to 7, of 10.
  CHECK_THAT(html, ContainsSubstring("class=\"s4\" d=\"M800 0h3200v1h-3200z"));
  CHECK_THAT(html, ContainsSubstring("class=\"s5\" d=\"M4000 0h1600v1h-1600z"));
  CHECK_THAT(html, ContainsSubstring("class=\"s4\" d=\"M1600 1h800v1h-800z"));  // the second, below it
}

TEST_CASE("what is no trace is refused") {
  for (const char* text :
       {"", "{", "[]", "{}", "{\"traceEvents\": 3}", "{\"traceEvents\": [1, null, {\"ph\": \"X\"}]}"})
    CHECK_THROWS_AS(read_trace(text), DataError);
}

}  // namespace
}  // namespace farskip
