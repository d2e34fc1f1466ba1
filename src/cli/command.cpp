#include "farskip/cli/command.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <new>
#include <nlohmann/json.hpp>

#include "farskip/base/version.h"

namespace farskip {
namespace {

int report(const std::string& message, ExitCode code) {
  std::fprintf(stderr, "farskip: error: %s\n", message.c_str());
  return static_cast<int>(code);
}

int run_guarded(const Command& command) {
  try {
    return static_cast<int>(command.run());
  } catch (const InternalError& e) {
    return report(
        std::string(e.what()) + "\nThis is a bug in FarSkip; please report it with the command line.",
        e.code());
  } catch (const Error& e) {
    return report(e.what(), e.code());
  } catch (const std::bad_alloc&) {
    return report("out of memory; use a smaller train.micro_batch or sequence_length", ExitCode::internal);
  } catch (const std::exception& e) {
    return report(e.what(), ExitCode::internal);
  }
}

}  // namespace

void finish_command(CLI::App* subcommand, Command& command, std::function<ExitCode()> run) {
  subcommand->add_flag("--json", command.common.json, "Print one JSON object (or one per line) on stdout");
  subcommand->add_flag("-q,--quiet", command.common.quiet, "Log warnings and errors only");
  subcommand->callback([&command, run = std::move(run)] { command.run = run; });
}

void print_json(const nlohmann::ordered_json& object) {
  std::printf("%s\n", object.dump().c_str());
  std::fflush(stdout);
}

int run_command_line(int argc, char** argv) {
  CLI::App app(
      "FarSkip: train mixture-of-experts models, convert them to FarSkip wiring, and measure the overlap");
  app.name("farskip");
  app.set_version_flag("--version", fmt::format("farskip {} ({})", version(), commit()));
  app.require_subcommand(1);
  Command command;
  add_train(app, command);
  add_forward(app, command);
  add_eval(app, command);
  add_generate(app, command);
  add_convert(app, command);
  add_inspect(app, command);
  add_data(app, command);
  add_bench(app, command);
  add_doctor(app, command);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& e) {
    return app.exit(e);  // --help, --version
  } catch (const CLI::ParseError& e) {
    return report(std::string(e.what()) + "\nsee 'farskip --help' or 'farskip COMMAND --help'",
                  ExitCode::usage);
  }
  return run_guarded(command);
}

}  // namespace farskip
