// SPDX-License-Identifier: Apache-2.0
// Models evaluated on the command line.

#include "farskip/base/file.h"
#include "support/catch.h"
#include "support/json.h"
#include "support/support.h"

namespace farskip {
namespace {

std::string fixture(const std::string& name) {
  return (test::fixtures() / name).string();
}
test::CommandResult farskip_command(const std::string& arguments) {
  return test::run_command(fmt::format("{} {}", FARSKIP_BINARY, arguments));
}

TEST_CASE("a text that is shorter than the sequence is evaluated as long as it is") {
  const std::string model = fixture("qwen3_moe"),
                    eval = "eval --json --model " + model + " --data " + model + "/tokens";
  const auto info = test::parse_json(farskip_command("data info --json " + model + "/tokens").out);
  const auto length = info["tokens"].get<std::int64_t>() - 1;
  const auto whole = farskip_command(fmt::format("{} --sequence-length {}", eval, length));
  REQUIRE(whole.status == 0);
  CHECK_THAT(whole.err, !ContainsSubstring("cut from"));
  const auto cut = farskip_command(eval + " --sequence-length 1048576");  // which would take terabytes
  REQUIRE(cut.status == 0);
  CHECK_THAT(cut.err, ContainsSubstring(fmt::format("--sequence-length: cut from 1048576 to {}", length)));
  CHECK(cut.out == whole.out);
}

TEST_CASE("eval measures a model against a teacher") {
  const std::string model = fixture("qwen3_moe"), eval = "eval --model " + model + " --teacher " + model +
                                                         " --data " + model + "/tokens --sequence-length 32";
  const auto same = farskip_command(eval + " --json"),
             rewired = farskip_command(eval + " --farskip full --json");
  REQUIRE(same.status == 0);
  REQUIRE(rewired.status == 0);
  const auto a = test::parse_json(same.out), b = test::parse_json(rewired.out);
  CHECK(a["kl"] == 0.0);
  CHECK(a["agreement"] == 1.0);
  CHECK(a["loss"] == a["teacher_loss"]);
  CHECK(b["kl"] > 0.0);
  CHECK(b["agreement"] < 1.0);
  CHECK(b["teacher_loss"] == a["loss"]);
  CHECK_THAT(farskip_command(eval).out, ContainsSubstring("KL 0.0000 nats/token, agreement 100.00%"));
  CHECK(farskip_command("eval --model " + model + " --teacher " + model + " --tasks none.jsonl").status ==
        64);
}

TEST_CASE("eval scores multiple-choice tasks, alone or beside held-out text") {
  const test::TemporaryFolder folder;
  const std::string model = (folder / "model").string(), one = (folder / "one.jsonl").string(),
                    small = fixture("tasks") + "/small.jsonl";
  std::filesystem::copy(fixture("qwen3_moe"), model);
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"})
    std::filesystem::copy(test::fixtures() / "tasks" / name, model);
  write_text_file(one, "{\"context\": \"the\", \"choices\": [\" end\"], \"gold\": 0}\n");
  const std::string eval = "eval --model " + model + " --tasks " + small + " " + one;
  const auto alone = farskip_command(eval + " --json");
  REQUIRE(alone.status == 0);
  CHECK_THAT(alone.err, ContainsSubstring("small: 18 of 68 choices are"));
  const auto found = test::parse_json(alone.out);
  CHECK_FALSE(found.contains("loss"));
  REQUIRE(found["tasks"].size() == 2);
  auto harness = test::parse_json(read_text_file(fixture("tasks") + "/harness.json"))["qwen3_moe"];
  harness.erase("log_likelihoods");
  harness.update({{"name", "small"}, {"samples", 20}});
  CHECK(found["tasks"][0] == harness);
  CHECK(found["tasks"][1] == nlohmann::json{{"name", "one"},
                                            {"accuracy", 1.0},
                                            {"accuracy_stderr", nullptr},
                                            {"accuracy_norm", 1.0},
                                            {"accuracy_norm_stderr", nullptr},
                                            {"samples", 1}});
  const auto both = farskip_command(eval + " --json --data " + model + "/tokens");
  REQUIRE(both.status == 0);
  CHECK(test::parse_json(both.out)["tasks"] == found["tasks"]);
  CHECK(test::parse_json(both.out).contains("loss"));
  const auto text = farskip_command(eval);
  CHECK_THAT(
      text.out,
      ContainsSubstring("small: accuracy 25.00% ± 9.93, normalized by length 35.00% ± 10.94, 20 samples") &&
          ContainsSubstring("one: accuracy 100.00%, "));
}

}  // namespace
}  // namespace farskip
