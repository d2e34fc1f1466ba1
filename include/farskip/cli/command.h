#pragma once
// The command line: one file per command, each adding its subcommand here.

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "farskip/base/error.h"
#include "farskip/base/log.h"

namespace CLI {
class App;
}

namespace farskip {

/// Options every command shares.
struct CommonOptions {
  bool json = false;   // one JSON object (or one per line) on stdout and nothing else there
  bool quiet = false;  // only warnings and errors on stderr
  Logger logger() const { return Logger(quiet ? LogLevel::warning : LogLevel::info); }
};

/// The command chosen on the command line, ready to run.
struct Command {
  CommonOptions common;
  std::function<ExitCode()> run;
};

void add_train(CLI::App& app, Command& command);
void add_forward(CLI::App& app, Command& command);
void add_eval(CLI::App& app, Command& command);
void add_generate(CLI::App& app, Command& command);
void add_convert(CLI::App& app, Command& command);
void add_inspect(CLI::App& app, Command& command);
void add_data(CLI::App& app, Command& command);
void add_bench(CLI::App& app, Command& command);
void add_doctor(CLI::App& app, Command& command);

/// Adds --json and --quiet, and makes `run` what happens when `subcommand` is chosen.
void finish_command(CLI::App* subcommand, Command& command, std::function<ExitCode()> run);
/// One line on stdout.
void print_json(const nlohmann::ordered_json& object);

/// Parses, runs, reports errors on stderr; the exit code of the process.
int run_command_line(int argc, char** argv);

}  // namespace farskip
