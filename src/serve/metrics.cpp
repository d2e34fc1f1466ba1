// SPDX-License-Identifier: Apache-2.0
#include "serve/metrics.h"

#include <fmt/format.h>

namespace farskip {
namespace {

std::string head(const std::string& name, const std::string& help, const char* type) {
  return fmt::format("# HELP {0} {1}\n# TYPE {0} {2}\n", name, help, type);
}

template <class T>
std::string single(const std::string& name, const std::string& help, const char* type, T value) {
  return head(name, help, type) + fmt::format("{} {}\n", name, value);
}

}  // namespace

void Histogram::add(double value) {
  double bound = kFirstBound;
  std::size_t bucket = 0;
  for (; bucket < kBuckets && value > bound; ++bucket) bound *= 2;
  ++counts_[bucket];
  sum_ += value;
}

std::string Histogram::text(const std::string& name, const std::string& help) const {
  std::string lines = head(name, help, "histogram");
  std::uint64_t count = 0;
  double bound = kFirstBound;
  for (std::size_t i = 0; i < kBuckets; ++i, bound *= 2)
    lines += fmt::format("{}_bucket{{le=\"{}\"}} {}\n", name, bound, count += counts_[i]);
  count += counts_[kBuckets];
  return lines +
         fmt::format("{0}_bucket{{le=\"+Inf\"}} {1}\n{0}_sum {2}\n{0}_count {1}\n", name, count, sum_);
}

void ServeMetrics::count_request(const std::string& path, int status) {
  const std::lock_guard lock(mutex_);
  ++requests_[{path, status}];
}

void ServeMetrics::count_prompt_tokens(std::int64_t tokens) {
  const std::lock_guard lock(mutex_);
  prompt_tokens_ += tokens;
}

void ServeMetrics::count_tokens(std::int64_t tokens, bool first, double seconds) {
  const std::lock_guard lock(mutex_);
  generated_tokens_ += tokens;
  if (first) first_token_.add(seconds);
  if (!first)
    for (std::int64_t i = 0; i < tokens; ++i) between_tokens_.add(seconds / static_cast<double>(tokens));
}

void ServeMetrics::set(const Gauges& gauges) {
  const std::lock_guard lock(mutex_);
  gauges_ = gauges;
}

std::string ServeMetrics::text() const {
  const std::lock_guard lock(mutex_);
  std::string lines = head("farskip_requests_total", "Requests that were answered.", "counter");
  for (const auto& [key, count] : requests_)
    lines +=
        fmt::format("farskip_requests_total{{path=\"{}\",status=\"{}\"}} {}\n", key.first, key.second, count);
  lines += single("farskip_prompt_tokens_total", "Tokens of prompts.", "counter", prompt_tokens_);
  lines +=
      single("farskip_generated_tokens_total", "Tokens that were generated.", "counter", generated_tokens_);
  lines += single("farskip_texts_running", "Texts that are continued.", "gauge", gauges_.running);
  lines += single("farskip_texts_waiting", "Texts that wait for room.", "gauge", gauges_.waiting);
  lines += single("farskip_cache_blocks_used", "Blocks of the cache in use.", "gauge", gauges_.used_blocks);
  lines += single("farskip_cache_blocks", "Blocks of the cache.", "gauge", gauges_.blocks);
  lines += first_token_.text("farskip_time_to_first_token_seconds",
                             "Time from a request to the first token of each text.");
  return lines +
         between_tokens_.text("farskip_time_between_tokens_seconds", "Time between tokens of a text.");
}

}  // namespace farskip
