// SPDX-License-Identifier: Apache-2.0
#include "run/metrics.h"

#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/failpoint.h"
#include "base/folder.h"
#include "base/run_files.h"
#include "checkpoint/checkpoint_files.h"
#include "farskip/base/error.h"

namespace farskip {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string duration_text(double seconds) {
  const auto s = static_cast<std::int64_t>(seconds);
  if (s < 3600) return fmt::format("{}:{:02}", s / 60, s % 60);
  return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
}

/// The step of a line; none: it is damaged.
std::optional<std::int64_t> step_of(const std::string& line) {
  const auto object = nlohmann::json::parse(line, nullptr, false);
  if (!object.is_object() || !object.contains("step") || !object["step"].is_number_unsigned())
    return std::nullopt;
  const auto step = object["step"].get<std::uint64_t>();
  if (step < 1 || step > INT64_MAX) return std::nullopt;
  return static_cast<std::int64_t>(step);
}

/// What of an older file stays: whole lines of steps up to `first_step`. A last line without an end was being
/// written when its run died.
std::string keep_lines(const std::string& text, const fs::path& path, std::int64_t first_step,
                       const Logger& logger) {
  std::string kept;
  std::int64_t number = 0, num_kept = 0, first_damaged = 0, damaged = 0;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    ++number;
    const std::optional<std::int64_t> step = step_of(line);
    if (!step && !lines.eof()) {
      if (damaged++ == 0) first_damaged = number;
    } else if (step && *step <= first_step) {
      kept += line + "\n";
      ++num_kept;
    }
  }
  if (damaged > 0)
    logger.warning("{}: {} damaged lines are left out, the first is line {}", path.string(), damaged,
                   first_damaged);
  if (num_kept < first_step)
    logger.warning("{}: has lines for {} of the {} steps before this start", path.string(), num_kept,
                   first_step);
  return kept;
}

/// The steps of a run that begins anew are none of those in an older file, which may be all that is left of
/// them.
void set_aside_old_lines(const std::string& text, const fs::path& path, const Logger& logger) {
  std::int64_t count = 0;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) count += step_of(line) ? 1 : 0;
  if (count == 0) return;
  const fs::path aside = fmt::format("{}.replaced-{}", path.string(), make_run_id());
  std::error_code failure;
  fs::rename(path, aside, failure);
  if (failure) throw IoError(fmt::format("{}: cannot rename: {}", path.string(), failure.message()));
  logger.warning(
      "{}: the run begins anew from step 0, from no checkpoint; {} lines of earlier steps are set aside as "
      "{}",
      path.string(), count, aside.filename().string());
}

}  // namespace

MetricsFile::MetricsFile(const fs::path& path, std::int64_t first_step, const Logger& logger) {
  if (const auto text = read_if_inside(path.parent_path(), path.filename().string(), kMostMetricsBytes)) {
    if (first_step == 0) set_aside_old_lines(*text, path, logger);
    write_text_file(path, keep_lines(*text, path, first_step, logger));
  } else if (first_step > 0) {
    logger.warning("{}: is not there; it begins with step {}", path.string(), first_step + 1);
  }
  file_.emplace(path);
}

void MetricsFile::append(const StepMetrics& metrics) {
  failpoint("metrics.append");
  file_->append(metrics.json() + "\n");
}

Progress::Progress(std::int64_t steps, std::int64_t first_step, Logger logger)
    : steps_(steps),
      first_step_(first_step),
      logger_(std::move(logger)),
      terminal_(::isatty(2) == 1),
      started_(now()) {}

Progress::~Progress() {
  if (line_open_) std::fputc('\n', stderr);
}

void Progress::show(const StepMetrics& m) {
  const double t = now();
  const bool last = m.step == steps_;
  const double wait = terminal_ ? 0.1 : 10.0;
  if (!last && !m.validation_loss && m.step > first_step_ + 1 && t - last_shown_ < wait) return;
  last_shown_ = t;
  const double left =
      (t - started_) / static_cast<double>(m.step - first_step_) * static_cast<double>(steps_ - m.step);
  const std::string result = std::isnan(m.loss)
                                 ? "without targets"
                                 : fmt::format("loss {:.4f}  grad norm {:.3f}", m.loss, m.grad_norm);
  std::string line = fmt::format("step {}/{}  {}  lr {:.2e}  {:.0f} tokens/s  {:.3f} TFLOP/s", m.step, steps_,
                                 result, m.learning_rate, m.tokens_per_second, m.model_tflops);
  // In the local stage the head reads the teacher's stream, so that its KL says nothing about the student.
  if (const auto kl = m.distill.find("kl"); kl != m.distill.end() && !m.distill.contains("local_loss"))
    line += fmt::format("  kl {:.4f}", kl->second);
  if (m.validation_loss)
    line += std::isnan(*m.validation_loss) ? "  no validation loss"
                                           : fmt::format("  validation {:.4f}", *m.validation_loss);
  if (const auto r = m.distill.find("recovered"); r != m.distill.end())
    line += fmt::format("  recovered {:.1f}%", 100.0 * r->second);
  line += fmt::format("  {} left", duration_text(left));
  if (!terminal_) {
    logger_.info("{}", line);
    return;
  }
  std::fprintf(stderr, "\r\033[K%s", line.c_str());
  if (m.validation_loss || last) std::fputc('\n', stderr);
  line_open_ = !(m.validation_loss || last);
  std::fflush(stderr);
}

}  // namespace farskip
