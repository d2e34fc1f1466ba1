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
    return static_cast<int>(command.run(command.common));
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

Subcommand Subcommand::add(const std::string& name, const std::string& help) {
  app_.require_subcommand(1);
  return {*app_.add_subcommand(name, help), command_};
}

void Subcommand::positional(const std::string& name, std::string& value, const std::string& help) {
  app_.add_option(name, value, help)->required();
}
void Subcommand::positionals(const std::string& name, std::vector<std::string>& values,
                             const std::string& help, bool required) {
  app_.add_option(name, values, help)->required(required);
}
void Subcommand::text(const std::string& name, std::string& value, const std::string& help) {
  app_.add_option(name, value, help)->capture_default_str();
}
void Subcommand::required_text(const std::string& name, std::string& value, const std::string& help) {
  app_.add_option(name, value, help)->required();
}
void Subcommand::integer(const std::string& name, std::int64_t& value, const std::string& help,
                         std::int64_t min, std::int64_t max) {
  app_.add_option(name, value, help)->check(CLI::Range(min, max))->capture_default_str();
}
void Subcommand::real(const std::string& name, double& value, const std::string& help, double min,
                      double max) {
  app_.add_option(name, value, help)->check(CLI::Range(min, max))->capture_default_str();
}
void Subcommand::flag(const std::string& name, bool& value, const std::string& help) {
  app_.add_flag(name, value, help);
}
void Subcommand::run(std::function<ExitCode(const CommonOptions&)> run) {
  flag("--json", command_.common.json, "Print one JSON object (or one per line) on stdout");
  flag("-q,--quiet", command_.common.quiet, "Log warnings and errors only");
  app_.callback([&command = command_, run = std::move(run)] { command.run = run; });
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
  Command command;
  Subcommand root(app, command);
  add_train(root);
  add_forward(root);
  add_eval(root);
  add_generate(root);
  add_convert(root);
  add_inspect(root);
  add_data(root);
  add_bench(root);
  add_doctor(root);
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
