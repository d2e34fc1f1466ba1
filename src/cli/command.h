// SPDX-License-Identifier: Apache-2.0
#pragma once
// The command line: one file per command, each adding itself to the root here. The parser library stays
// behind this header, in src/cli/command.cpp.

#include <concepts>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "farskip/base/error.h"
#include "farskip/base/log.h"
#include "farskip/config/scalar.h"

namespace CLI {
class App;
}

namespace farskip {

/// Options every command shares.
struct CommonOptions {
  bool json = false;   // one JSON object (or one per line) on stdout and nothing else there
  bool quiet = false;  // only warnings and errors on stderr
  /// Silent on all ranks of a launcher but the first: what is done before a job begins (job.h, whose Job
  /// has a logger for every rank), they all do alike.
  Logger logger() const;
};

struct Command {
  CommonOptions common;
  std::string name;                                   // of the subcommand that was chosen
  std::function<ExitCode(const CommonOptions&)> run;  // what it does
  bool on_ranks = false;                              // as a job (job.h)
  std::vector<std::string> rank_commands;             // all that are jobs
};

/// One subcommand. Values that options are bound to must outlive the parse: keep them in a shared_ptr that
/// the function given to run() holds too. A value's content at the time of the call is its default.
class Subcommand {
 public:
  Subcommand(CLI::App& app, Command& command) : app_(app), command_(command) {}

  /// Of what is only repeated for a better median.
  static constexpr int kMostRepetitions = 1'000'000;

  /// A subcommand of this one.
  Subcommand add(const std::string& name, const std::string& help);
  /// A path that must be given, or several. Paths are refused where a shell should have expanded them
  /// (config/scalar.h), and so are paths and texts that are given and empty: only a default may be.
  void positional(const std::string& name, std::string& path, const std::string& help);
  void optional_positional(const std::string& name, std::string& path, const std::string& help);
  void positionals(const std::string& name, std::vector<std::string>& paths, const std::string& help);
  /// Assignments `key.path=value` to keys of the configuration.
  void overrides(std::vector<std::string>& values);
  void path(const std::string& name, std::string& value, const std::string& help);
  /// Several values may follow the name.
  void paths(const std::string& name, std::vector<std::string>& values, const std::string& help);
  void required_path(const std::string& name, std::string& value, const std::string& help);
  void text(const std::string& name, std::string& value, const std::string& help);
  /// Several values may follow the name.
  void texts(const std::string& name, std::vector<std::string>& values, const std::string& help);
  /// May be empty: whether that means something is for the command to say.
  void required_text(const std::string& name, std::string& value, const std::string& help);
  /// Read as configurations are: decimal, and no more than T holds.
  template <std::signed_integral T>
  void integer(const std::string& name, T& value, const std::string& help, std::int64_t min,
               std::int64_t max = std::numeric_limits<T>::max()) {
    add_integer(name, value, help, within<T>({min, max}),
                [&value](std::int64_t given) { value = static_cast<T>(given); });
  }
  void real(const std::string& name, double& value, const std::string& help, double min, double max);
  void flag(const std::string& name, bool& value, const std::string& help);
  /// An option that does nothing without another is refused without it. Both are added before.
  void needs(const std::string& name, const std::string& other);
  /// Adds --json and --quiet, and says what the subcommand does, in one process.
  void run(std::function<ExitCode(const CommonOptions&)> run);
  /// The same for one that calls run_job, and so may be started on many ranks.
  void run_on_ranks(std::function<ExitCode(const CommonOptions&)> run);

 private:
  void add_integer(const std::string& name, std::int64_t value, const std::string& help,
                   const IntegerRange& range, std::function<void(std::int64_t)> use);
  void bind(std::function<ExitCode(const CommonOptions&)> run, bool on_ranks);
  CLI::App& app_;
  Command& command_;
};

void add_train(Subcommand& root);
void add_distill(Subcommand& root);
void add_forward(Subcommand& root);
void add_eval(Subcommand& root);
void add_generate(Subcommand& root);
void add_serve(Subcommand& root);
void add_convert(Subcommand& root);
void add_inspect(Subcommand& root);
void add_data(Subcommand& root);
void add_bench(Subcommand& root);
void add_bench_comm(Subcommand& bench);
void add_bench_distill(Subcommand& bench);
void add_bench_inference(Subcommand& bench);
void add_bench_ops(Subcommand& bench);
void add_bench_step(Subcommand& bench);
void add_plan(Subcommand& root);
void add_report(Subcommand& root);
void add_doctor(Subcommand& root);

/// Parses, runs, reports errors on stderr; the exit code of the process. Errors before a job begins are the
/// same on all ranks of a launcher: the first reports them.
int run_command_line(int argc, char** argv);

}  // namespace farskip
