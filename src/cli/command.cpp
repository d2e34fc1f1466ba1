// SPDX-License-Identifier: Apache-2.0
#include "cli/command.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <iostream>
#include <thread>

#include "backend/cpu/machine.h"
#include "base/environment.h"
#include "base/failpoint.h"
#include "base/stop_signals.h"
#include "base/version.h"
#include "cli/failure.h"
#include "farskip/config/errors.h"

namespace farskip {
namespace {

/// Of this process among those that a launcher started, MPI's or another.
int process_rank() {
  if (const auto place = launcher_place()) return place->rank;
  const auto foreign = foreign_launcher();
  return foreign ? foreign->rank : 0;
}

bool is_first_process() {
  return process_rank() == 0;
}

/// The first process speaks for all. The others give it time, since a launcher ends a job as soon as one
/// process fails; one that is still there has an error of its own.
int report(const Failure& failure) {
  const int rank = process_rank();
  if (rank > 0) {
    const DieOnTerminate guard;
    std::this_thread::sleep_for(std::chrono::milliseconds(2000 + 20 * std::min(rank, 100)));
  }
  print_error(rank > 0 ? fmt::format("rank {}: {}", rank, failure.message) : failure.message);
  return static_cast<int>(failure.code);
}

void refuse_lonely_ranks() {
  const auto launcher = foreign_launcher();
  if (!launcher) return;
  throw UsageError(
      fmt::format("{} started {} processes without MPI, and each of them would believe to be alone; start "
                  "the ranks with {}. "
                  "Processes that have nothing to do with each other are started with env -u {}",
                  launcher->name, launcher->size, launcher->instead, launcher->variable));
}

void check_threads(const Logger& logger) {
  const int threads = cpu::check_threads(), processors = usable_cores(0);
  if (processors > 0 && threads > processors)
    logger.warning(
        "OMP_NUM_THREADS is {}, and this process may use {} processors: its threads wait for each "
        "other; use at most {}",
        threads, processors, processors);
}

void refuse_many_ranks(const Command& command) {
  const auto place = launcher_place();
  if (!place || place->size <= 1 || command.on_ranks) return;
  throw UsageError(
      fmt::format("{} runs in one process, but the launcher started {}; commands for many ranks: {}",
                  command.name, place->size, fmt::join(command.rank_commands, ", ")));
}

int run_guarded(const Command& command) {
  try {
    check_failpoint();
    refuse_lonely_ranks();
    refuse_many_ranks(command);
    check_threads(command.common.logger());
    return static_cast<int>(command.run(command.common));
  } catch (const std::exception&) {
    return report(describe_current_exception());
  }
}

/// Given, and empty: a variable of the shell without a value, most of the time.
std::string refuse_empty(const std::string& text) {
  return text.empty() ? "is empty; give a value, or leave it out where it is optional" : "";
}

const CLI::Validator is_not_empty([](const std::string& text) { return refuse_empty(text); }, "", "text");

const CLI::Validator is_path(
    [](const std::string& text) {
      if (text.empty()) return refuse_empty(text);
      const std::string why = parse_path(text).reason;
      return why.empty() ? why : quote_for_message(text) + " " + why;
    },
    "", "path");

/// An option whose text `parse` reads as a number of this range.
template <class T, class Range>
void add_number(CLI::App& app, const std::string& name, const std::string& fallback, const std::string& help,
                const Range& range, Parsed<T> (*parse)(std::string_view),
                std::type_identity_t<std::function<void(T)>> use) {
  const auto read = [name, range, parse, use = std::move(use)](const std::string& text) {
    Parsed<T> number = parse(text);
    if (number.value && !contains(range, *number.value)) number = {{}, "is out of range"};
    if (!number.value)
      throw CLI::ValidationError(
          name, fmt::format("{} {}; allowed: {}", quote_for_message(text), number.reason, describe(range)));
    use(*number.value);
  };
  app.add_option_function<std::string>(name, read, help)->type_name(describe(range))->default_str(fallback);
}

/// "bench step"
std::string full_name(const CLI::App& app) {
  const CLI::App* const parent = app.get_parent();
  return parent == nullptr || parent->get_parent() == nullptr ? app.get_name()
                                                              : full_name(*parent) + " " + app.get_name();
}

}  // namespace

Logger CommonOptions::logger() const {
  if (!is_first_process()) return Logger(LogLevel::off);
  return Logger(quiet ? LogLevel::warning : LogLevel::info);
}

Subcommand Subcommand::add(const std::string& name, const std::string& help) {
  app_.require_subcommand(1);
  return {*app_.add_subcommand(name, help), command_};
}

void Subcommand::positional(const std::string& name, std::string& path, const std::string& help) {
  app_.add_option(name, path, help)->required()->check(is_path)->type_name("PATH");
}
void Subcommand::optional_positional(const std::string& name, std::string& path, const std::string& help) {
  app_.add_option(name, path, help)->check(is_path)->type_name("PATH");
}
void Subcommand::positionals(const std::string& name, std::vector<std::string>& paths,
                             const std::string& help) {
  app_.add_option(name, paths, help)->required()->check(is_path)->type_name("PATH");
}
void Subcommand::overrides(std::vector<std::string>& values) {
  app_.add_option("overrides", values, "key.path=value, for instance train.steps=20");
}
void Subcommand::path(const std::string& name, std::string& value, const std::string& help) {
  app_.add_option(name, value, help)->check(is_path)->type_name("PATH");
}
void Subcommand::paths(const std::string& name, std::vector<std::string>& values, const std::string& help) {
  app_.add_option(name, values, help)->check(is_path)->type_name("PATH");
}
void Subcommand::required_path(const std::string& name, std::string& value, const std::string& help) {
  app_.add_option(name, value, help)->required()->check(is_path)->type_name("PATH");
}
void Subcommand::text(const std::string& name, std::string& value, const std::string& help) {
  app_.add_option(name, value, help)->check(is_not_empty)->capture_default_str();
}
void Subcommand::texts(const std::string& name, std::vector<std::string>& values, const std::string& help) {
  app_.add_option(name, values, help)->check(is_not_empty);
}
void Subcommand::required_text(const std::string& name, std::string& value, const std::string& help) {
  app_.add_option(name, value, help)->required();
}
void Subcommand::add_integer(const std::string& name, std::int64_t value, const std::string& help,
                             const IntegerRange& range, std::function<void(std::int64_t)> use) {
  add_number(app_, name, fmt::format("{}", value), help, range, parse_integer, std::move(use));
}
void Subcommand::real(const std::string& name, double& value, const std::string& help, double min,
                      double max) {
  add_number(app_, name, fmt::format("{}", value), help, RealRange{.min = min, .max = max}, parse_real,
             [&value](double given) { value = given; });
}
void Subcommand::flag(const std::string& name, bool& value, const std::string& help) {
  app_.add_flag(name, value, help);
}
void Subcommand::needs(const std::string& name, const std::string& other) {
  app_.get_option(name)->needs(app_.get_option(other));
}
void Subcommand::run(std::function<ExitCode(const CommonOptions&)> run) {
  bind(std::move(run), false);
}
void Subcommand::run_on_ranks(std::function<ExitCode(const CommonOptions&)> run) {
  command_.rank_commands.push_back(full_name(app_));
  bind(std::move(run), true);
}
void Subcommand::bind(std::function<ExitCode(const CommonOptions&)> run, bool on_ranks) {
  flag("--json", command_.common.json, "Print one JSON object (or one per line) on stdout");
  flag("-q,--quiet", command_.common.quiet, "Log warnings and errors only");
  app_.callback([&command = command_, name = full_name(app_), run = std::move(run), on_ranks] {
    command.name = name;
    command.run = run;
    command.on_ranks = on_ranks;
  });
}

namespace {

/// The first word that should be a command and is none, with those that are; empty: there is none.
std::string unknown_command(const CLI::App& app, const std::vector<std::string>& words) {
  const CLI::App* at = &app;
  for (const std::string& word : words) {
    const auto commands = at->get_subcommands([](const CLI::App*) { return true; });
    if (commands.empty() || word.starts_with('-')) break;
    const auto found = std::find_if(commands.begin(), commands.end(),
                                    [&](const CLI::App* c) { return c->get_name() == word; });
    if (found == commands.end()) {
      std::vector<std::string> names;
      for (const CLI::App* c : commands) names.push_back(c->get_name());
      return fmt::format("'{}' is not a command{}; allowed: {}", word,
                         at == &app ? "" : " of " + at->get_name(), fmt::join(names, ", "));
    }
    at = *found;
  }
  return {};
}

/// What was printed must have arrived: a result that is lost is no success.
int end_of_output(int code) {
  const bool lost = std::fflush(stdout) != 0 || std::ferror(stdout) != 0 || !std::cout.flush();
  return lost && code == 0 ? report({"standard output: cannot write all of it", ExitCode::io}) : code;
}

}  // namespace

int run_command_line(int argc, char** argv) {
  prepare_process();
  std::set_terminate(end_with_message);
  CLI::App app(
      "FarSkip: train mixture-of-experts models, convert them to FarSkip wiring, and measure the overlap");
  app.name("farskip");
  app.set_version_flag("--version", fmt::format("farskip {} ({})", version(), commit()));
  Command command;
  Subcommand root(app, command);
  add_train(root);
  add_distill(root);
  add_forward(root);
  add_eval(root);
  add_generate(root);
  add_serve(root);
  add_convert(root);
  add_inspect(root);
  add_data(root);
  add_plan(root);
  add_bench(root);
  add_report(root);
  add_doctor(root);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& e) {
    return end_of_output(is_first_process() ? app.exit(e) : e.get_exit_code());  // --help, --version
  } catch (const CLI::ParseError& e) {
    const std::string unknown = unknown_command(app, {argv + 1, argv + argc});
    return report({(unknown.empty() ? std::string(e.what()) : unknown) +
                       "\nsee 'farskip --help' or 'farskip COMMAND --help'",
                   ExitCode::usage});
  }
  return end_of_output(run_guarded(command));
}

}  // namespace farskip
