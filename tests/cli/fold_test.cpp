// SPDX-License-Identifier: Apache-2.0
// farskip convert --fold as a person uses it.

#include "farskip/base/error.h"
#include "farskip/base/file.h"
#include "support/catch.h"
#include "support/json.h"
#include "support/support.h"

namespace farskip {
namespace {

test::CommandResult fold(const std::string& model, const fs::path& out, const std::string& options) {
  return test::run_command(fmt::format("{} convert {} {} --fold {} {}", FARSKIP_BINARY,
                                       (test::fixtures() / model).string(), out.string(),
                                       (test::fixtures() / "deepseek_v2" / "tokens").string(), options));
}

TEST_CASE("convert --fold writes the same tensors, says what each fit did, and the result can be read") {
  const test::TemporaryFolder folder;
  const auto result =
      fold("deepseek_v2", folder / "out", "--farskip full --fold-sequences 64 --sequence-length 32 --json");
  REQUIRE(result.status == 0);
  const auto said = test::parse_json(result.out);
  CHECK(said["tensors"] == 118);
  REQUIRE(said["edges"].size() == 19);
  CHECK(said["edges"][0]["layer"] == 0);
  CHECK(said["edges"][0]["block"] == "dense");
  CHECK(said["edges"][0]["side"] == "input");
  CHECK(said["edges"][0]["error_after"] < said["edges"][0]["error_before"]);
  CHECK(said["edges"][0]["ridge"] > 0.0);
  for (const char* key : {"loss_before", "loss_after", "seconds"}) CHECK(said[key] > 0.0);
  // The model's weights are random, and its loss no less than that of a rewired one: closer to it is better.
  const double teacher = said["loss_teacher"];
  CHECK(std::abs(said["loss_after"].get<double>() - teacher) <
        std::abs(said["loss_before"].get<double>() - teacher));
  const auto closer =
      fold("qwen3_moe", folder / "closer", "--farskip full --fold-sequences 16 --sequence-length 16 --json");
  const auto losses = nlohmann::json::parse(closer.out);
  CHECK(losses["loss_after"] > losses["loss_before"]);
  CHECK_THAT(closer.err, !ContainsSubstring("made the rewired model worse"));
  // Too few tokens lead away from it.
  const auto few = fold("llama", folder / "few", "--farskip full --fold-sequences 5 --sequence-length 32");
  CHECK(few.status == 0);
  CHECK_THAT(few.err, ContainsSubstring("made the rewired model worse") &&
                          ContainsSubstring("128 tokens are too few to fit 32 columns"));
  const auto read = test::run_command(
      fmt::format("{} inspect --json --verify {}", FARSKIP_BINARY, (folder / "out").string()));
  REQUIRE(read.status == 0);
  CHECK(test::parse_json(read.out)["farskip"] == "full");
}

TEST_CASE("convert --fold onto a model's own wiring writes the model itself") {
  const test::TemporaryFolder folder;
  const auto result = fold("llama", folder / "folded", "--farskip off --sequence-length 16 --json");
  REQUIRE(result.status == 0);
  CHECK(test::parse_json(result.out)["edges"].empty());
  REQUIRE(test::run_command(fmt::format("{} convert {} {}", FARSKIP_BINARY,
                                        (test::fixtures() / "llama").string(), (folder / "plain").string()))
              .status == 0);
  for (const char* file : {"model.safetensors", "config.json"})
    CHECK(read_text_file(folder / "folded" / file) == read_text_file(folder / "plain" / file));
}

TEST_CASE("convert --fold refuses what it cannot do before it computes") {
  const test::TemporaryFolder folder;
  const auto check = [](const test::CommandResult& result, int status, const std::string& message) {
    CHECK(result.status == status);
    CHECK_THAT(result.err, ContainsSubstring(message));
  };
  check(fold("llama", folder / "out", ""), 64, "--fold requires --farskip");
  check(fold("llama", folder / "out", "--farskip full --fold-sequences 0"), 64, "--fold-sequences");
  check(fold("llama", folder / "out", "--farskip full --sequence-length 4096"), 64,
        "max_position_embeddings is 256");
  check(fold("llama", "/proc/folded", "--farskip full"), 74, "/proc");
  check(fold("llama", test::fixtures() / "llama", "--farskip full"), 64, "holds a model already");
  check(
      test::run_command(fmt::format("TMPDIR=/none {} convert {} {} --farskip full --fold {}/tokens",
                                    FARSKIP_BINARY, (test::fixtures() / "llama").string(),
                                    (folder / "out").string(), (test::fixtures() / "deepseek_v2").string())),
      74, "set TMPDIR to a folder that can be written");
  CHECK(fs::is_empty(folder.path()));
}

TEST_CASE("convert --sensitivity says what each layer costs, and writes nothing") {
  const std::string model = (test::fixtures() / "deepseek_v2").string();
  const auto run = [&](const std::string& more) {
    return test::run_command(fmt::format("{} convert {} {}", FARSKIP_BINARY, model, more));
  };
  const std::string options =
      " --farskip full --sensitivity " + model + "/tokens --sensitivity-sequences 20 --sequence-length 32";
  const auto found = run(options + " --json");
  REQUIRE(found.status == 0);
  const auto json = test::parse_json(found.out);
  REQUIRE(json["layers"].size() == 4);
  for (int k = 0; k < 4; ++k) {
    CHECK(json["layers"][k]["layer"] == k);
    CHECK(json["layers"][k]["kl"] > 0.0);
  }
  CHECK(json["together"]["kl"] > 0.0);
  CHECK(json["tokens"] == 20 * 32);
  const auto table = run(options + " --layers 2-3");
  CHECK_THAT(table.out, ContainsSubstring("rewired   loss    KL      agreement\nnone ") &&
                            ContainsSubstring("\n2  ") && !ContainsSubstring("\n1  ") &&
                            ContainsSubstring("\ntogether "));
  for (const auto& [wrong, message] :
       {std::pair{"out" + options, "leave out DST"},
        {"--sensitivity " + model + "/tokens", "--sensitivity requires --farskip"},
        {"--farskip full", "DST is missing"},
        {"out --sequence-length 32", "are for --fold and --sensitivity"}}) {
    const auto refused = run(wrong);
    CHECK(refused.status == 64);
    CHECK_THAT(refused.err, ContainsSubstring(message));
  }
}

}  // namespace
}  // namespace farskip
