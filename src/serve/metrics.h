// SPDX-License-Identifier: Apache-2.0
#pragma once
// What the server counts, in the text format of Prometheus.

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>

namespace farskip {

/// Values below bounds, which double from the first on.
class Histogram {
 public:
  void add(double value);
  /// Lines of one metric, with its help; cumulative as Prometheus wants them.
  std::string text(const std::string& name, const std::string& help) const;

 private:
  static constexpr std::size_t kBuckets = 18;
  static constexpr double kFirstBound = 0.001;        // seconds; the last one is 131 s
  std::array<std::uint64_t, kBuckets + 1> counts_{};  // the last: above all bounds
  double sum_ = 0;
};

/// Any thread may call any function.
class ServeMetrics {
 public:
  void count_request(const std::string& path, int status);
  void count_prompt_tokens(std::int64_t tokens);
  /// Tokens of one text that came together: the first ones `seconds` after the text was asked for, later ones
  /// `seconds` after those before.
  void count_tokens(std::int64_t tokens, bool first, double seconds);

  struct Gauges {
    std::int64_t running = 0, waiting = 0;  // texts
    std::int64_t used_blocks = 0, blocks = 0;
  };
  void set(const Gauges& gauges);
  std::string text() const;

 private:
  mutable std::mutex mutex_;
  std::map<std::pair<std::string, int>, std::uint64_t> requests_;
  std::int64_t prompt_tokens_ = 0, generated_tokens_ = 0;
  Histogram first_token_, between_tokens_;
  Gauges gauges_;
};

}  // namespace farskip
