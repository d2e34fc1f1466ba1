// SPDX-License-Identifier: Apache-2.0
// The commands of `farskip data`, as a user runs them.
#include <fmt/format.h>

#include "farskip/base/file.h"
#include "support/catch.h"
#include "support/json.h"
#include "support/support.h"

namespace farskip::test {
namespace {

CommandResult run_data(const std::string& arguments) {
  return run_command(std::string(FARSKIP_BINARY) + " data " + arguments);
}

std::string tokenizer() {
  return (fixtures() / "tokenizer_gpt2/tokenizer.json").string();
}

TEST_CASE("tokenize reads JSON lines of any name and counts what it leaves out") {
  const TemporaryFolder folder;
  fs::create_directory(folder / "d");
  write_text_file(folder / "d/c.json", "{\"text\": \"the model\"}\n{\"text\": \"two\"}\n");
  write_text_file(folder / "d/D.JSONL", "{\"text\": \"three\"}\n");
  write_text_file(folder / "d/e.csv", "1,2\n");
  const auto made = run_data("tokenize --json " + (folder / "d").string() + " --tokenizer " + tokenizer() +
                             " --out " + (folder / "t").string());
  REQUIRE(made.status == 0);
  CHECK(test::parse_json(made.out)["documents"] == 3);
  CHECK_THAT(made.err, ContainsSubstring("1 of 3 files are not read: ") && ContainsSubstring("e.csv"));
}

TEST_CASE("decode prints the text of each document, and with --json the ids that it is made of") {
  const TemporaryFolder folder;
  write_text_file(folder / "a.jsonl", "{\"text\": \"the\\nmodel\"}\n{\"text\": \"two\"}\n");
  const std::string out = (folder / "t").string();
  REQUIRE(
      run_data("tokenize " + (folder / "a.jsonl").string() + " --tokenizer " + tokenizer() + " --out " + out)
          .status == 0);
  CHECK(run_data("decode " + out + " --tokenizer " + tokenizer()).out ==
        "the\nmodel<|endoftext|>\ntwo<|endoftext|>\n");
  const std::string lines = run_data("decode --json " + out + " --tokenizer " + tokenizer()).out;
  const auto first = test::parse_json(lines.substr(0, lines.find('\n')));
  CHECK(first["document"] == 0);
  CHECK(first["text"] == "the\nmodel<|endoftext|>");
  CHECK(first["ids"].back() == 0);
  // A file of another vocabulary: its ids have no text here.
  const std::string small = (folder / "small.json").string();
  REQUIRE(run_data("train-tokenizer " + (folder / "a.jsonl").string() + " --vocab-size 257 --out " + small)
              .status == 0);
  const auto foreign = run_data("decode " + out + " --tokenizer " + small);
  CHECK(foreign.status == 65);
  CHECK_THAT(foreign.err, ContainsSubstring("document 0"));
}

TEST_CASE("what a process that died has left of a tokenizer is gone after the next one, and nothing else") {
  const TemporaryFolder folder;
  write_text_file(folder / "a.txt", "some text");
  const std::string dead = ".tmp-" + std::to_string(std::stoi(run_command("echo $$").out));
  for (const char* name : {"t.json", "other.json"}) write_text_file(folder / (name + dead), "half");
  const std::string out = (folder / "t.json").string();
  REQUIRE(
      run_data("train-tokenizer " + (folder / "a.txt").string() + " --vocab-size 257 --out " + out).status ==
      0);
  CHECK(fs::exists(out));
  CHECK_FALSE(fs::exists(out + dead));
  CHECK(fs::exists(folder / ("other.json" + dead)));
}

TEST_CASE("a tokenizer is not learnt from nothing, and one with fewer tokens than asked for says so") {
  const TemporaryFolder folder;
  const std::string out = (folder / "t.json").string();
  write_text_file(folder / "empty.txt", "");
  write_text_file(folder / "mark.txt", "\xef\xbb\xbf");
  write_text_file(folder / "empty.jsonl", "{\"text\": \"\"}\n");
  for (const char* name : {"empty.txt", "mark.txt", "empty.jsonl"}) {
    CAPTURE(name);
    const auto result = run_data("train-tokenizer " + (folder / name).string() + " --out " + out);
    CHECK(result.status == 65);
    CHECK_THAT(result.err,
               ContainsSubstring("the sources hold no document with text") && ContainsSubstring(name));
    CHECK_FALSE(fs::exists(out));
  }
  write_text_file(folder / "a.txt", "abab");
  const auto few = run_data("train-tokenizer " + (folder / "a.txt").string() + " --out " + out);
  CHECK(few.status == 0);
  CHECK_THAT(few.err, ContainsSubstring("258 tokens, fewer than the 4096 of --vocab-size"));
  const auto enough =
      run_data("train-tokenizer " + (folder / "a.txt").string() + " --vocab-size 258 --out " + out);
  CHECK_THAT(enough.err, !ContainsSubstring("fewer than"));
}

TEST_CASE("a tokenizer that cannot cut a text is named with the text, and with what would help") {
  const TemporaryFolder folder;
  write_text_file(folder / "a.txt", std::string(60, 'a') + "!");
  auto file = test::parse_json(read_text_file(tokenizer()));
  const auto check = [&](const std::string& message) {
    const std::string path = (folder / "odd.json").string(), text = (folder / "a.txt").string();
    write_text_file(path, file.dump());
    const auto result =
        run_data("tokenize " + text + " --tokenizer " + path + " --out " + (folder / "t").string());
    CHECK(result.status == 65);
    CHECK_THAT(result.err, ContainsSubstring(path + message));
    return result.err;
  };
  auto slow = file;
  slow["pre_tokenizer"] = test::parse_json(R"({"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated", "invert": false},
      {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]})");
  std::swap(file, slow);
  CHECK_THAT(check(".pre_tokenizer"), ContainsSubstring("a.txt: cannot be tokenized: ") &&
                                          ContainsSubstring("gave up at byte 0") &&
                                          ContainsSubstring("possessive"));
  std::swap(file, slow);
  file["added_tokens"] = nlohmann::json::array();
  check(": has no end-of-document token; add <|endoftext|>");
}

TEST_CASE("a text that is no string is called what it is") {
  const TemporaryFolder folder;
  for (const auto& [value, found] : {std::pair{"5", "a number"},
                                     {"true", "true or false"},
                                     {"null", "null"},
                                     {"[\"a\"]", "a list"},
                                     {"{}", "an object"}}) {
    CAPTURE(value);
    write_text_file(folder / "a.jsonl", fmt::format("{{\"text\": {}}}\n", value));
    const auto result = run_data("tokenize " + (folder / "a.jsonl").string() + " --tokenizer " + tokenizer() +
                                 " --out " + (folder / "t").string());
    CHECK(result.status == 65);
    CHECK_THAT(result.err,
               ContainsSubstring(std::string("needs a string \"text\"; that of this one is ") + found));
  }
}

TEST_CASE("outputs of data commands that cannot be written are refused before the texts are read") {
  const TemporaryFolder folder;
  write_text_file(folder / "a.txt", "bad \xff");  // which would be exit code 65
  write_text_file(folder / "b.txt", "bad \xff");
  const std::string texts = folder.path().string() + "/a.txt " + folder.path().string() + "/b.txt";
  const auto check = [&](const std::string& arguments, int status, const std::string& message) {
    const auto result = run_data(arguments);
    INFO(arguments << ": " << result.err);
    CHECK(result.status == status);
    CHECK_THAT(result.err, ContainsSubstring(message));
  };
  const std::string tokenize = "tokenize " + texts + " --tokenizer " + tokenizer() + " --out ";
  check(tokenize + "/dev/full", 74, "is a device or pipe");
  check(tokenize + folder.path().string() + "/", 64, "no prefix");
  check(tokenize + (folder / "none/t").string(), 74, "cannot create");
  fs::create_directory(folder / "t-validation.bin");
  check(tokenize + (folder / "t").string() + " --holdout-every 2", 74, "t-validation.bin: is a folder");
  check(tokenize + (folder / "t").string() + " --holdout-every 1", 64, "nothing would be left");
  check(tokenize + (folder / "t").string(), 65, "not UTF-8");
  check("train-tokenizer " + texts + " --out " + folder.path().string(), 74, "is a folder");
  check("train-tokenizer " + texts + " --out /dev/full", 74, "is a device or pipe");
  CHECK_FALSE(fs::exists("/dev/full.bin"));
  CHECK(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()) == 3);
}

}  // namespace
}  // namespace farskip::test
