// SPDX-License-Identifier: Apache-2.0
#pragma once
// Logging to stderr. A Logger is a cheap value handle; nothing is process-wide.

#include <fmt/format.h>

#include <memory>
#include <string>
#include <string_view>

namespace farskip {

enum class LogLevel { debug, info, warning, error, off };

/// Log lines go to stderr (stdout is for results). Copies share one sink.
class Logger {
 public:
  /// Every line begins with `prefix`, those within a message too.
  explicit Logger(LogLevel level = LogLevel::info, std::string prefix = {});

  template <class... Args>
  void debug(fmt::format_string<Args...> format, Args&&... args) const {
    write(LogLevel::debug, fmt::format(format, std::forward<Args>(args)...));
  }
  template <class... Args>
  void info(fmt::format_string<Args...> format, Args&&... args) const {
    write(LogLevel::info, fmt::format(format, std::forward<Args>(args)...));
  }
  template <class... Args>
  void warning(fmt::format_string<Args...> format, Args&&... args) const {
    write(LogLevel::warning, fmt::format(format, std::forward<Args>(args)...));
  }
  template <class... Args>
  void error(fmt::format_string<Args...> format, Args&&... args) const {
    write(LogLevel::error, fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  void write(LogLevel level, std::string_view message) const;
  struct Sink;
  std::shared_ptr<Sink> sink_;
};

}  // namespace farskip
