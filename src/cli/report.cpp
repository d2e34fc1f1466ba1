// SPDX-License-Identifier: Apache-2.0
#include "cli/record.h"
#include "farskip/base/file.h"
#include "report/page.h"

namespace farskip {
namespace {

struct Options {
  std::vector<std::string> folders;
  std::string out;
};

/// A page may replace a page, and nothing else: not a file of the run, its checkpoints or its configuration.
void refuse_other_file(const fs::path& out) {
  std::error_code ignored;
  if (!fs::is_regular_file(out, ignored) || fs::file_size(out, ignored) == 0) return;
  std::string begin(kPageBegin.size(), ' ');
  const InputFile file(out);
  if (file.size() >= begin.size()) file.read_at(0, std::as_writable_bytes(std::span(begin)));
  if (begin != kPageBegin)
    throw UsageError(fmt::format("--out {} would overwrite a file that is no report page; name another file",
                                 out.string()));
}

ExitCode run(const Options& options, const CommonOptions& common) {
  std::vector<RunLog> runs;
  for (const std::string& folder : options.folders) runs.push_back(read_run_log(folder));
  label_runs(runs);
  const fs::path out =
      options.out.empty() ? fs::path(options.folders[0]) / "report.html" : fs::path(options.out);
  refuse_other_file(out);
  write_text_file(out, report_html(runs));
  const Logger logger = common.logger();
  for (const RunLog& log : runs)
    for (const std::string& note : log.notes) logger.warning("{}: {}", log.folder, note);
  Record result = comparison_json(runs);
  result["page"] = out.string();
  print_result(result, "{page}", common);
  return ExitCode::ok;
}

}  // namespace

void add_report(Subcommand& root) {
  auto o = std::make_shared<Options>();
  Subcommand sub =
      root.add("report", "Write one self-contained HTML page about one run, or several side by side");
  sub.positionals("RUN_DIR", o->folders, "Run directories; the page goes into the first one");
  sub.path("--out", o->out, "File to write; default: RUN_DIR/report.html of the first run");
  sub.run([o](const CommonOptions& common) { return run(*o, common); });
}

}  // namespace farskip
