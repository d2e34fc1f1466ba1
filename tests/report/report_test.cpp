// SPDX-License-Identifier: Apache-2.0
// The page as a reader and a program see it: figures, escaping, size, faults of files.

#include <map>

#include "farskip/base/error.h"
#include "report/page.h"
#include "support/catch.h"
#include "support/json.h"
#include "support/support.h"

namespace farskip {
namespace {

const std::string kConfig =
    "# The resolved configuration\n# farskip: 0.1.0\n# commit: abc1234\n# machine: Some CPU, 2 cores\n# "
    "ranks: 2\n"
    "name: \"tiny\"\nseed: 7\ndevice: cpu\nprecision: fp32\n"
    "model: {family: qwen3_moe, vocab_size: 100, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: "
    "4,\n"
    "  num_key_value_heads: 2, num_experts: 4, num_experts_per_tok: 2, moe_intermediate_size: 16}\n"
    "farskip: {mode: delay, layers: 0-1, delay: 2}\nparallel: {expert: 2}\n"
    "train: {global_batch: 8, sequence_length: 64}\n";

std::string metrics_line(std::int64_t step, double loss) {
  nlohmann::ordered_json line{{"step", step},
                              {"loss", loss},
                              {"grad_norm", 1.5},
                              {"learning_rate", 1e-3},
                              {"tokens", 512 * step},
                              {"tokens_per_second", 1000.0 + static_cast<double>(step)},
                              {"step_seconds", 0.5},
                              {"exposed_comm_seconds", 0.1},
                              {"hidden_comm_seconds", 0.3},
                              {"peak_memory_bytes", 1 << 20}};
  if (step % 10 == 0) {
    line["validation_loss"] = loss + 0.25;
    line["expert_rows"] = {{"0", {10, 20, 30, 40}}, {"1", {100, 0, 0, 0}}};
  }
  return line.dump() + "\n";
}
std::string metrics_text(std::int64_t steps) {
  std::string text;
  for (std::int64_t step = 1; step <= steps; ++step)
    text += metrics_line(step, 5.0 - static_cast<double>(step) / static_cast<double>(steps));
  return text;
}

/// A step of 10 ms: the transport runs from 1 to 7, the rank waits for it from 5 to 7.
std::string trace_text() {
  const auto name = [](const char* what, int track, const char* text) {
    return nlohmann::json{
        {"ph", "M"}, {"name", what}, {"pid", 1}, {"tid", track}, {"args", {{"name", text}}}};
  };
  const auto span = [](int track, double begin, double end, const char* text, const char* scope) {
    return nlohmann::json{{"ph", "X"},
                          {"pid", 1},
                          {"tid", track},
                          {"ts", begin * 1000},
                          {"dur", (end - begin) * 1000},
                          {"name", text},
                          {"args", {{"scope", scope}}}};
  };
  return nlohmann::json{
      {"traceEvents",
       {name("process_name", 0, "overlapped"), name("thread_name", 0, "computation"),
        name("thread_name", 1, "transport"), span(0, 0, 1, "matmul", "0.attention.forward"),
        span(0, 1, 5, "matmul", "0.attention.backward"),
        span(0, 5, 7, "wait exchange_rows", "0.routed.backward"), span(0, 7, 10, "adamw", "none.update"),
        span(1, 1, 7, "exchange_rows", "0.routed.backward")}}}
      .dump();
}

struct Folder {
  test::TemporaryFolder temporary;
  fs::path write(const std::string& name, const std::string& config, const std::string& metrics) const {
    const fs::path folder = temporary / name;
    fs::create_directories(folder);
    if (!config.empty()) write_text_file(folder / "config.yaml", config);
    if (!metrics.empty()) write_text_file(folder / "metrics.jsonl", metrics);
    return folder;
  }
};

std::vector<RunLog> read_runs(const std::vector<fs::path>& folders) {
  std::vector<RunLog> runs;
  for (const fs::path& folder : folders) runs.push_back(read_run_log(folder));
  label_runs(runs);
  return runs;
}

std::size_t count_of(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++count;
  return count;
}

TEST_CASE("a page shows every part that a run has data for, and nothing from outside") {
  const Folder folder;
  const fs::path run = folder.write("run", kConfig, metrics_text(100));
  write_text_file(run / "trace.json", trace_text());
  write_text_file(run / "exit.json", "{\"reason\":\"done\",\"step\":100}");
  std::vector<RunLog> runs = read_runs({run});
  const std::string page = report_html(runs);
  for (const char* part :
       {"<h1>tiny</h1>", "qwen3_moe", "4 experts, top 2", "delay:2 (layers 0-1)", "ranks 2 (experts over 2)",
        "Some CPU, 2 cores", "abc1234", "<b>Loss</b>", "validation", "tokens/s", "Exposed communication",
        "Gradient norm", "Learning rate", "<b>Rows per expert</b>", "<b>Overlap</b>", "overlapped",
        "<dd>done</dd>"})
    CHECK_THAT(page, ContainsSubstring(part));
  for (const char* absent : {"Divergence", "Agreement", "Recovered", "Balance loss", "not finite", "http://",
                             "https://", "src=", "@import", "url("})
    CHECK(page.find(absent) == std::string::npos);
  CHECK(runs[0].notes.empty());
}

TEST_CASE("a run that is not at its last step says at which it is") {
  const Folder folder;
  const auto state_of = [&](std::int64_t planned, const std::string& reason) {
    const fs::path run =
        folder.write("run", fmt::format("name: tiny\ntrain: {{steps: {}}}\n", planned), metrics_text(20));
    write_text_file(run / "exit.json", "{\"reason\":\"" + reason + "\"}");
    std::vector<RunLog> runs = read_runs({run});
    const std::string page = report_html(runs);
    const std::size_t at = page.find("<dt>state</dt><dd>") + 18;
    return page.substr(at, page.find('<', at) - at);
  };
  CHECK(state_of(20, "done") == "done");
  CHECK(state_of(15, "done") == "done, step 20 of 15");  // the configuration was shortened afterwards
  CHECK(state_of(300, "stopped on request") == "stopped on request, step 20 of 300");
}

TEST_CASE("the comparison has the figures of the metrics") {
  const Folder folder;
  std::vector<RunLog> runs = read_runs({folder.write("run", kConfig, metrics_text(100))});
  const nlohmann::ordered_json object = comparison_json(runs);
  const auto& row = object["runs"][0];
  CHECK(row["name"] == "tiny");
  CHECK(row["wiring"] == "delay:2 (layers 0-1)");
  CHECK(row["ranks"] == 2);
  CHECK(row["steps"] == 100);
  CHECK(row["tokens"] == 51200);
  CHECK(row["loss"].get<double>() == Catch::Approx(4.045));  // of the last ten steps
  CHECK(row["validation_loss"].get<double>() == Catch::Approx(4.25));
  CHECK(row["tokens_per_second"].get<double>() == Catch::Approx(1051));
  CHECK(row["exposed_share"].get<double>() == Catch::Approx(0.2));
  CHECK(row["hidden_share"].get<double>() == Catch::Approx(0.75));
  CHECK(row["peak_memory_bytes"] == 1 << 20);
  CHECK_FALSE(row.contains("kl"));
}

TEST_CASE("lists and maps of a configuration are facts too, and so is a wiring that is not known") {
  const Folder folder;
  const auto facts = [&](const std::string& config) {
    const RunLog run = read_run_log(folder.write("run", config, metrics_text(1)));
    return std::map<std::string, std::string>(run.facts.begin(), run.facts.end());
  };
  const auto listed = facts(
      "farskip: {mode: full, layers: [1, 3]}\n"
      "distill: {teacher: \"models/big\", loss: {kl: 0.9, sft: 0.1}}\n");
  CHECK(listed.at("wiring") == "full (layers [1, 3])");
  CHECK(listed.at("distillation") == "{kl: 0.9, sft: 0.1}, teacher models/big");
  CHECK(facts("farskip: {mode: ladder, layers: all}\n").at("wiring") == "ladder");
  CHECK(facts("farskip: {mode: off, layers: 0-1}\n").at("wiring") == "off");
  CHECK(facts("farskip: {mode: sideways, layers: [2]}\n").at("wiring") == "{mode: sideways, layers: [2]}");
  CHECK(facts("farskip: {mode: delay}\n").at("wiring") == "{mode: delay}");
  CHECK(facts("farskip: full\n").at("wiring") == "full");
  CHECK(facts("distill: {teacher: t}\n").at("distillation") == "kl, teacher t");
  const auto none = facts("name: x\nfarskip:\ndistill: {loss: kl}\n");
  CHECK_FALSE(none.contains("distillation"));
}

TEST_CASE("metrics of a distillation have charts and columns of their own") {
  const Folder folder;
  const fs::path run =
      folder.write("run", "",
                   "{\"step\":1,\"kl\":0.5,\"agreement\":0.25,\"teacher_loss\":2.0,\"loss\":3.0}\n"
                   "{\"step\":2,\"kl\":0.125,\"agreement\":0.75,\"recovered\":0.97,\"student_loss\":2.25,"
                   "\"routing_flips\":{\"1\":0.25,\"3\":0.125,\"x\":1},"
                   "\"validation_kl\":0.0625,\"teacher_loss\":2.0,\"loss\":2.5}\n");
  std::vector<RunLog> runs = read_runs({run});
  const auto row = comparison_json(runs)["runs"][0];
  CHECK(row["kl"].get<double>() == Catch::Approx(0.0625));
  CHECK(row["loss"].get<double>() == 2.25);  // the student's, not the objective
  CHECK(row["agreement"].get<double>() == Catch::Approx(0.75));
  CHECK(row["recovered_share"].get<double>() == Catch::Approx(0.97));
  const std::string page = report_html(runs);
  for (const char* part : {"Divergence from the teacher", "Agreement with the teacher", "Recovered share",
                           "97.0%", "<b>Objective</b>", "Routing flips by layer", "width:50.0%"})
    CHECK_THAT(page, ContainsSubstring(part));
}

TEST_CASE("several runs share charts, are told apart, and the better figure is marked") {
  const Folder folder;
  const fs::path a = folder.write("a", kConfig, metrics_text(100)),
                 b = folder.write("b", kConfig, metrics_text(40));
  std::vector<RunLog> runs = read_runs({a, b, a});
  CHECK(runs[0].label == "a");  // all three are called tiny
  CHECK(runs[1].label == "b");
  CHECK(runs[2].label == a.string());
  const std::string page = report_html(runs);
  CHECK_THAT(page, ContainsSubstring("Loss, training"));
  CHECK_THAT(page, ContainsSubstring("Loss, validation"));
  CHECK_THAT(page, ContainsSubstring("<td class=\"best\">4.0375</td>"));
}

TEST_CASE("what is the same constant in all runs is a line in another chart, and not a chart") {
  const Folder folder;
  const auto metrics = [](double loss, double teacher) {
    std::string text;
    for (int step = 1; step <= 3; ++step)
      text += fmt::format(
          "{{\"step\":{0},\"loss\":3.0,\"validation_loss\":{1},\"validation_teacher_loss\":{2},"
          "\"validation_untrained_loss\":4.0}}\n",
          step, loss - 0.1 * step, teacher);
    return text;
  };
  const fs::path a = folder.write("a", "name: a\n", metrics(3.0, 2.5)),
                 b = folder.write("b", "name: b\n", metrics(3.5, 2.5)),
                 c = folder.write("c", "name: c\n", metrics(3.5, 2.25));
  const auto page_of = [](const std::vector<fs::path>& folders) {
    std::vector<RunLog> runs = read_runs(folders);
    return report_html(runs);
  };
  const std::string same = page_of({a, b}), other = page_of({a, c});
  for (const char* title : {"Loss, teacher, validation", "Loss, rewired, not distilled"})
    CHECK(count_of(same, title) == 0);
  for (const char* line : {"data-label=\"teacher\"", "data-label=\"rewired, not distilled\""})
    CHECK_THAT(same, ContainsSubstring(line));
  CHECK(count_of(other, "Loss, teacher, validation") == 1);  // not the same in both
  CHECK(count_of(other, "Loss, rewired, not distilled") == 0);
}

TEST_CASE("what files and folders are called cannot become markup") {
  const Folder folder;
  const std::string evil = "<script>alert(1)</script>\\\"'&";
  const fs::path run =
      folder.write("<img src=x onerror=alert(2)>",
                   "# machine: <script>alert(3)\nname: \"" + evil + "\"\nfarskip: {mode: '<b>'}\n",
                   metrics_text(20) + "{\"step\":21,\"<script>\":1}\n");
  std::string trace = trace_text();
  for (const char* word : {"overlapped", "adamw", "none.update"})
    trace.replace(trace.find(word), std::string(word).size(), "</script><script>alert(4)</script>");
  write_text_file(run / "trace.json", trace);
  write_text_file(run / "exit.json", "{\"reason\":\"<script>alert(5)\"}");
  std::vector<RunLog> runs = read_runs({run, run});
  const std::string page = report_html(runs);
  CHECK(page.find("alert(1)</script>") == std::string::npos);
  CHECK(page.find("<script>alert") == std::string::npos);
  CHECK(page.find("<img") == std::string::npos);
  CHECK(count_of(page, "<script") == 3);  // of the page, and the texts of each timeline
  CHECK(count_of(page, "</script") == 3);
  std::vector<RunLog> alone = read_runs({run});
  CHECK_THAT(report_html(alone),
             ContainsSubstring("<h1>&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;</h1>"));
}

TEST_CASE("a cut last line, noise and values that are not finite cost only themselves") {
  const Folder folder;
  const auto page_of = [&](const std::string& metrics, std::string& notes) {
    std::vector<RunLog> runs = read_runs({folder.write("run", "", metrics)});
    const std::string page = report_html(runs);
    notes.clear();
    for (const std::string& note : runs[0].notes) notes += note;
    return page;
  };
  std::string notes;
  page_of(metrics_text(30) + "{\"step\":31,\"lo", notes);
  CHECK(notes == "The last line of metrics.jsonl is cut off and left out.");
  page_of("[1,2]\n" + metrics_text(30) + "\n\n{\"step\":\"x\"}\n\x01\xff\n", notes);
  CHECK(notes == "3 of 33 lines of metrics.jsonl cannot be read and are left out.");
  const std::string page = page_of(metrics_text(3) +
                                       "{\"step\":4,\"loss\":NaN}\n{\"step\":5,\"loss\":null}\n"
                                       "{\"step\":6,\"loss\": -Infinity}\n{\"step\":7,\"loss\":1e999}\n",
                                   notes);
  CHECK(notes == "1 of 7 lines of metrics.jsonl cannot be read and are left out.");
  CHECK_THAT(page, ContainsSubstring("3 values are not finite"));
  CHECK(page.find("nan") == std::string::npos);
  CHECK(page.find("inf,") == std::string::npos);
}

TEST_CASE("a step that was written twice counts as it was written last") {
  RunLog run;
  read_metrics(metrics_line(1, 5) + metrics_line(2, 4) + metrics_line(3, 3) + "{\"step\":3,\"kl\":1}" + "\n" +
                   metrics_line(2, 7),
               run);
  CHECK(run.find("kl")->empty());
  const Curve& loss = *run.find("loss");
  REQUIRE(loss.size() == 2);
  CHECK(loss[1].x == 2);
  CHECK(loss[1].y == 7);
  CHECK(summarise_run(run).steps == 2);
}

TEST_CASE("a folder without a run is refused with what is missing") {
  const Folder folder;
  CHECK_THROWS_AS(read_run_log(folder.temporary / "none"), MissingInputError);
  CHECK_THROWS_AS(read_run_log(folder.write("empty", kConfig, "")), MissingInputError);
  CHECK_THROWS_AS(read_run_log(folder.write("noise", "", "hello\n")), DataError);
}

TEST_CASE("a broken configuration or trace is said and left out") {
  const Folder folder;
  const fs::path run = folder.write("run", "a: [\n", metrics_text(5));
  write_text_file(run / "trace.json", trace_text().substr(0, 200));
  write_text_file(run / "exit.json", "{");
  std::vector<RunLog> runs = read_runs({run});
  const std::string page = report_html(runs);
  REQUIRE(runs[0].notes.size() == 2);
  CHECK_THAT(runs[0].notes[0], ContainsSubstring("config.yaml"));
  CHECK_THAT(runs[0].notes[1], ContainsSubstring("trace.json"));
  CHECK_THAT(page, ContainsSubstring("class=\"notes\""));
  CHECK(runs[0].label == "run");
}

TEST_CASE("pages of long runs stay below a megabyte") {
  const Folder folder;
  const fs::path run = folder.write("run", kConfig, metrics_text(50000));
  nlohmann::json events = test::parse_json(trace_text());
  nlohmann::json& list = events["traceEvents"];
  for (int i = 0; i < 60000; ++i) {
    nlohmann::json span = list[3 + static_cast<std::size_t>(i % 5)];
    span["ts"] = 10000 + 10 * i;
    span["dur"] = 6;
    list.push_back(span);
  }
  write_text_file(run / "trace.json", events.dump());
  std::vector<RunLog> one = read_runs({run});
  CHECK(report_html(one).size() < 1'000'000);
  const std::vector<RunLog> many(20, one[0]);
  std::vector<RunLog> runs = many;
  label_runs(runs);
  const std::string page = report_html(runs);
  CHECK(page.size() < 1'000'000);
  CHECK_THAT(page, ContainsSubstring("the first 16 of 20 runs"));
}

}  // namespace
}  // namespace farskip
