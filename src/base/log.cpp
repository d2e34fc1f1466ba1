// SPDX-License-Identifier: Apache-2.0
#include "farskip/base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

namespace farskip {
namespace {

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::debug:
      return spdlog::level::debug;
    case LogLevel::info:
      return spdlog::level::info;
    case LogLevel::warning:
      return spdlog::level::warn;
    case LogLevel::error:
      return spdlog::level::err;
    case LogLevel::off:
      break;
  }
  return spdlog::level::off;
}

}  // namespace

struct Logger::Sink {
  std::string prefix;
  spdlog::logger logger{"farskip", std::make_shared<spdlog::sinks::stderr_color_sink_mt>()};
};

Logger::Logger(LogLevel level, std::string prefix) : sink_(std::make_shared<Sink>()) {
  sink_->prefix = std::move(prefix);
  std::string pattern;
  for (const char c : sink_->prefix) pattern += c == '%' ? std::string("%%") : std::string(1, c);
  sink_->logger.set_pattern(pattern + "%H:%M:%S %^%l%$ %v");
  sink_->logger.set_level(to_spdlog(level));
}

void Logger::write(LogLevel level, std::string_view message) const {
  std::string text(message);
  for (std::size_t at = text.find('\n'); at != std::string::npos && !sink_->prefix.empty();
       at = text.find('\n', at + 1))
    text.insert(at + 1, sink_->prefix);
  sink_->logger.log(to_spdlog(level), spdlog::string_view_t(text.data(), text.size()));
}

}  // namespace farskip
