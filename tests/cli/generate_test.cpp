// SPDX-License-Identifier: Apache-2.0
// Texts continued on the command line.
#include <sstream>

#include "farskip/base/file.h"
#include "support/catch.h"
#include "support/commands.h"
#include "support/json.h"
#include "support/support.h"

namespace farskip {
namespace {

using nlohmann::json;
using test::farskip_command;
using test::TemporaryFolder;
using test::train_small_run;

/// generate with a small model and a tokenizer whose ids it has.
test::CommandResult generate(const std::string& arguments) {
  return test::run_command(
      fmt::format("{0} generate --model {1}/llama --tokenizer {1}/tasks/tokenizer.json {2}", FARSKIP_BINARY,
                  test::fixtures().string(), arguments));
}

std::vector<json> lines_of(const std::string& text) {
  std::vector<json> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(test::parse_json(line));
  return lines;
}

TEST_CASE("a text ends before a stop string of the command line or of its prompt") {
  const TemporaryFolder folder;
  const std::string all = " --json --max-tokens 30 --prompt 'the list of'";
  const std::string text = test::parse_json(generate(all).out)["text"];
  const std::string stop = text.substr(text.size() / 2, 2);
  const std::string expected = text.substr(0, text.find(stop));
  const json stopped = test::parse_json(generate(all + " --stop nowhere '" + stop + "'").out);
  CHECK(stopped["text"] == expected);
  CHECK(stopped["finish"] == "stop");
  const std::string prompts = (folder / "p.jsonl").string();
  write_text_file(prompts, json{{"prompt", "the list of"}, {"stop", stop}}.dump() + "\n" +
                               json{{"prompt", "the list of"}, {"stop", json::array()}}.dump() + "\n");
  const auto lines = lines_of(generate("--max-tokens 30 --prompts " + prompts).out);
  REQUIRE(lines.size() == 2);
  CHECK((lines[0]["text"] == expected && lines[0]["finish"] == "stop"));
  CHECK((lines[1]["text"] == text && lines[1]["finish"] == "length"));
}

TEST_CASE("prompts that hold nothing, or what is not known, are refused by file and line") {
  const TemporaryFolder folder;
  const std::string prompts = (folder / "p.jsonl").string();
  const auto check = [&](const std::string& content, const std::string& message) {
    write_text_file(prompts, content);
    const auto result = generate("--prompts " + prompts);
    CAPTURE(content);
    CHECK(result.status == 65);
    CHECK_THAT(result.err, ContainsSubstring("p.jsonl") && ContainsSubstring(message));
  };
  check("", "holds no prompt");
  check("\n \n", "holds no prompt");
  check("{\"prompt\": \"a\", \"tempurature\": 1}", ":1: \"tempurature\" is not known here; allowed: ");
  check("\n{\"prompt\": \"a\", \"stop\": [\"b\", 1]}", ":2.stop is [\"b\",1]; allowed: a text, or a list");
  check("{\"prompt\": \"a\", \"stop\": \"\"}", "has a text of 0 bytes; allowed: 1 to 1024");
}

TEST_CASE("a tokenizer with more tokens than the model has is pointed out") {
  const auto result = test::run_command(fmt::format(
      "{0} generate --model {1}/llama --tokenizer {1}/tokenizer_smollm2/tokenizer.json --prompt '!' "
      "--max-tokens 1",
      FARSKIP_BINARY, test::fixtures().string()));
  CHECK(result.status == 0);
  CHECK_THAT(result.err, ContainsSubstring("warning") && ContainsSubstring("and the model a vocabulary of"));
}

TEST_CASE("a prompt that fills the context is refused, and a text that it cuts short says so") {
  const TemporaryFolder folder;
  const std::string run = train_small_run(folder).string();
  std::string prompt;
  for (int i = 0; i < 64; ++i) prompt += "\xc3\xa9 ";
  const auto full = farskip_command("generate --model " + run + " --prompt '" + prompt + "'");
  CHECK(full.status == 64);
  CHECK_THAT(full.err, ContainsSubstring("max_position_embeddings is 64"));
  const auto cut =
      farskip_command("generate --json --model " + run + " --prompt 'the model' --max-tokens 100");
  REQUIRE(cut.status == 0);
  const json made = test::parse_json(cut.out);
  if (made["finish"] == "context") {
    CHECK_THAT(cut.err, ContainsSubstring("of 100 tokens"));
  } else {
    CHECK(made["finish"] == "stop");
  }
  const auto eval =
      farskip_command("eval --model " + run + " --data " + (test::fixtures() / "qwen3_moe").string() +
                      "/tokens --sequence-length 65 --max-sequences 1");
  CHECK(eval.status == 0);
  CHECK_THAT(eval.err, ContainsSubstring("--sequence-length is 65") && ContainsSubstring("64"));
}

TEST_CASE("generate stops at every end token of the model's files") {
  const TemporaryFolder folder;
  const fs::path run = train_small_run(folder);
  const std::string out = (folder / "out").string();
  REQUIRE(farskip_command("convert " + run.string() + " " + out).status == 0);
  fs::remove(out + "/model.manifest.json");
  const std::string command = "generate --json --max-tokens 8 --prompt 'the model' --model " + out;
  const json free = test::parse_json(farskip_command(command).out);
  REQUIRE(free["ids"].size() >= 1);
  const int first = free["ids"][0];
  write_text_file(out + "/generation_config.json", fmt::format("{{\"eos_token_id\": [0, {}]}}", first));
  const json stopped = test::parse_json(farskip_command(command).out);
  CHECK(stopped["ids"].empty());
  CHECK(stopped["finish"] == "stop");
}

TEST_CASE("generate puts the begin token of the tokenizer's template before a prompt, once") {
  const TemporaryFolder folder;
  const fs::path run = train_small_run(folder);
  json tokenizer = test::parse_json(read_text_file(folder / "tokenizer.json"));
  tokenizer["post_processor"] = test::parse_json(R"({
    "type": "TemplateProcessing", "pair": [],
    "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}})");
  write_text_file(folder / "begins.json", tokenizer.dump());
  const auto made = [&](const std::string& prompt, const std::string& more) {
    const auto result = farskip_command("generate --json --max-tokens 4 --model " + run.string() +
                                        " --prompt '" + prompt + "' " + more);
    INFO(result.err);
    REQUIRE(result.status == 0);
    return test::parse_json(result.out);
  };
  const std::string begins = "--tokenizer " + (folder / "begins.json").string();
  const json explicit_token = made("<|endoftext|>the model", "");
  for (const json& o : {made("the model", begins), made("<|endoftext|>the model", begins)}) {
    CHECK(o["prompt_tokens"] == explicit_token["prompt_tokens"]);
    CHECK(o["ids"] == explicit_token["ids"]);
  }
  CHECK(made("the model", "")["prompt_tokens"] == explicit_token["prompt_tokens"].get<int>() - 1);
}

TEST_CASE("bench refuses texts that are longer than the model has positions") {
  const TemporaryFolder folder;
  const std::string config = (folder / "c.yaml").string();
  write_text_file(
      config,
      "run_dir: r\nmodel: {family: llama, vocab_size: 64, hidden_size: 32, intermediate_size: 32, "
      "num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1, "
      "max_position_embeddings: 64}\n");
  const auto bench = [&](const std::string& arguments) {
    return test::run_command(
        fmt::format("{} bench {} --repetitions 1 --device cpu {}", FARSKIP_BINARY, arguments, config));
  };
  CHECK(bench("prefill --requests 1 --lengths 64").status == 0);
  CHECK(bench("decode --batches 1 --lengths 63").status == 0);
  for (const char* bad : {"prefill --requests 1 --lengths 8,65", "decode --batches 1 --lengths 64"}) {
    const auto result = bench(bad);
    CHECK(result.status == 64);
    CHECK_THAT(result.err, ContainsSubstring("--lengths: 6") && ContainsSubstring("max_position_embeddings"));
  }
}

}  // namespace
}  // namespace farskip
