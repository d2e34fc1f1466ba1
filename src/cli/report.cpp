#include <nlohmann/json.hpp>

#include "farskip/base/file.h"
#include "farskip/cli/command.h"
#include "farskip/report/page.h"

namespace farskip {
namespace {

struct Options {
  std::vector<std::string> folders;
  std::string out;
};

ExitCode run(const Options& options, const CommonOptions& common) {
  std::vector<RunLog> runs;
  for (const std::string& folder : options.folders) runs.push_back(read_run_log(folder));
  label_runs(runs);
  const fs::path out =
      options.out.empty() ? fs::path(options.folders[0]) / "report.html" : fs::path(options.out);
  write_text_file(out, report_html(runs));
  const Logger logger = common.logger();
  for (const RunLog& log : runs)
    for (const std::string& note : log.notes) logger.warning("{}: {}", log.folder, note);
  if (common.json) {
    nlohmann::ordered_json object = comparison_json(runs);
    object["page"] = out.string();
    print_json(object);
  } else {
    fmt::print("{}\n", out.string());
  }
  return ExitCode::ok;
}

}  // namespace

void add_report(Subcommand& root) {
  auto o = std::make_shared<Options>();
  Subcommand sub = root.add("report", "One self-contained HTML page about one run, or several side by side");
  sub.positionals("RUN_DIR", o->folders, "Run directories; the first gives the place of the page");
  sub.path("--out", o->out, "File to write; default: RUN_DIR/report.html of the first run");
  sub.run([o](const CommonOptions& common) { return run(*o, common); });
}

}  // namespace farskip
