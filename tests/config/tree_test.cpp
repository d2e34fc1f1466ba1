// SPDX-License-Identifier: Apache-2.0
// What the parser accepts, with positions; what it writes; overrides.
#include "farskip/config/tree.h"

#include <filesystem>

#include "farskip/base/file.h"
#include "farskip/config/scalar.h"
#include "support/catch.h"
#include "support/support.h"

using namespace farskip;

namespace {

std::string place(const ConfigNode* node) {
  REQUIRE(node != nullptr);
  return describe(node->position);
}

std::string message_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no UsageError";
}

}  // namespace

TEST_CASE("a parsed tree keeps order, kinds, quotes and positions in characters") {
  const ConfigNode tree =
      parse_yaml_text("a: 1\nbé: {c: \"2\", é: x}\nlist:\n  - 3\n  - [4, 5]\nnone:\nlast: ~\n", "f.yaml");
  REQUIRE(tree.kind == ConfigNode::Kind::map);
  REQUIRE(tree.children.size() == 5);
  CHECK(tree.children[0].key == "a");
  CHECK(place(tree.find("a")) == "f.yaml:1:4");
  CHECK(describe(tree.find("bé")->key_position) == "f.yaml:2:1");
  CHECK(place(tree.find("bé")) == "f.yaml:2:5");
  CHECK(place(tree.find("bé")->find("c")) == "f.yaml:2:9");
  CHECK(place(tree.find("bé")->find("é")) == "f.yaml:2:17");
  CHECK(tree.find("bé")->find("c")->quoted);
  CHECK_FALSE(tree.find("a")->quoted);
  CHECK(place(&tree.find("list")->children[1].children[1]) == "f.yaml:5:9");
  CHECK(tree.find("none")->kind == ConfigNode::Kind::null);
  CHECK(place(tree.find("none")) == "f.yaml:6:1");
  CHECK(tree.find("last")->kind == ConfigNode::Kind::null);
  CHECK(tree.find("absent") == nullptr);
}

TEST_CASE("a byte order mark and Windows line ends change nothing") {
  const ConfigNode plain = parse_yaml_text("a: 1\nb:\n  c: x\n", "f");
  const ConfigNode windows = parse_yaml_text(
      "\xEF\xBB\xBF"
      "a: 1\r\nb:\r\n  c: x\r\n",
      "f");
  CHECK(plain == windows);
  CHECK(place(windows.find("b")->find("c")) == "f:3:6");
}

TEST_CASE("JSON is read with its tabs, escapes, null, booleans and numbers") {
  const ConfigNode tree = parse_yaml_text(
      "{\n\t\"a\":\t1e-05,\"b\":[true,false,null],\n\t\"c\" : \"t\\u00e9\\\"\\/\\n\",\n\t\"d\": {}, \"e\": "
      "[], \"f\": -2.5E+3\n}\n",
      "j");
  CHECK(tree.find("a")->text == "1e-05");
  REQUIRE(tree.find("b")->children.size() == 3);
  CHECK(tree.find("b")->children[0].text == "true");
  CHECK(tree.find("b")->children[2].kind == ConfigNode::Kind::null);
  CHECK(tree.find("c")->text == "té\"/\n");
  CHECK(tree.find("c")->quoted);
  CHECK(tree.find("d")->kind == ConfigNode::Kind::map);
  CHECK(tree.find("e")->kind == ConfigNode::Kind::list);
  CHECK(tree.find("f")->text == "-2.5E+3");
  CHECK(place(tree.find("f")) == "j:4:25");
}

TEST_CASE("a tab inside a JSON string stays a tab") {
  CHECK(parse_yaml_text("{\"a\\\"\":\t\"x\ty\"}", "j").find("a\"")->text == "x\ty");
}

TEST_CASE("a JSON file of one long line is read at once") {
  std::string text = "{";
  for (int i = 0; i < 30000; ++i) text += fmt::format("{}\"key é{}\":{}", i > 0 ? "," : "", i, i);
  CHECK(parse_yaml_text(text + "}", "j").children.size() == 30000);
}

TEST_CASE("written trees read back equal") {
  const ConfigNode tree = parse_yaml_text(
      "a: 1\nb: {c: \"2\", d: [x, \"a, b\", [], {}, {k: v}]}\n\"odd key: \": 'null'\ne: |\n  two\n  "
      "lines\nf: ~\n"
      "g: \"\\x07 \\\\ \\\" é\"\nh: -1e-3\ni: \"-\"\nj: plain, with comma\nk: \"true\"\nl: {}\nm: \"\"\nn: "
      "'*x'\n"
      "o: .5\np: some words\n",
      "f");
  INFO(to_yaml(tree));
  CHECK(tree == parse_yaml_text(to_yaml(tree), "g"));
  CHECK_FALSE(parse_yaml_text("a: 1", "f") == parse_yaml_text("a: \"1\"", "f"));
  CHECK_FALSE(parse_yaml_text("a: 1", "f") == parse_yaml_text("b: 1", "f"));
}

TEST_CASE("numbers made by hand read back as the same double") {
  for (const double value : {0.0, 1.0, 1e-8, 0.1, 1.0 / 3, 1e300, -2.5, 5e-324, 1.7976931348623157e308}) {
    ConfigNode tree;
    tree.set("x", make_node(value));
    CHECK(parse_real(parse_yaml_text(to_yaml(tree), "f").find("x")->text).value == value);
  }
}

TEST_CASE("overrides set scalars, lists and new sections, and say where they come from") {
  ConfigNode tree = parse_yaml_text("train: {steps: 5, optimizer: {eps: 1}}\ncheckpoint:\n", "f");
  apply_override(tree, "train.steps=20");
  apply_override(tree, "train.optimizer.betas=[0.9, 0.99]");
  apply_override(tree, "checkpoint.keep=2");
  apply_override(tree, "farskip.layers=0-3");
  apply_override(tree, "name=\"a=b\"");
  apply_override(tree, "seed=null");
  CHECK(tree ==
        parse_yaml_text("train: {steps: 20, optimizer: {eps: 1, betas: [0.9, 0.99]}}\ncheckpoint: {keep: 2}\n"
                        "farskip: {layers: 0-3}\nname: \"a=b\"\nseed: null\n",
                        "g"));
  CHECK(place(tree.find("train")->find("steps")) == "command line: train.steps=20");
  apply_override(tree, "train={steps: 7}");
  CHECK(*tree.find("train") == *parse_yaml_text("train: {steps: 7}", "g").find("train"));
}

TEST_CASE("malformed overrides are refused with the words of the command line") {
  const auto refuse = [](const std::string& assignment) {
    return message_of([&] {
      ConfigNode tree = parse_yaml_text("train: {steps: 5}\ndata: {tokens: [a]}\n", "f");
      apply_override(tree, assignment);
    });
  };
  CHECK_THAT(refuse("train.steps"),
             ContainsSubstring("command line: train.steps: not of the form key.path=value"));
  CHECK_THAT(refuse("=5"), ContainsSubstring("not of the form"));
  CHECK_THAT(refuse("train..steps=5"), ContainsSubstring("not of the form"));
  CHECK_THAT(refuse("--steps=5x y=1"), !ContainsSubstring("\n"));
  CHECK_THAT(refuse("train.steps="), ContainsSubstring("no value after ="));
  CHECK_THAT(refuse("train.steps=[1,"), ContainsSubstring("train.steps: the value cannot be read"));
  CHECK_THAT(refuse("train.steps=*x"), ContainsSubstring("alias"));
  CHECK_THAT(refuse("train.steps={a: 1, a: 2}"), ContainsSubstring("duplicate key"));
  CHECK_THAT(refuse("train.steps.x=1"), ContainsSubstring("train.steps is an integer and has no keys"));
  CHECK_THAT(refuse("data.tokens.0=b"), ContainsSubstring("data.tokens is a list and has no keys"));
  std::string deep = "a";
  for (int i = 0; i < 100000; ++i) deep += ".a";
  CHECK_THAT(refuse(deep + "=1"), ContainsSubstring("not of the form"));
}

TEST_CASE("the first difference of two trees has its path and both values") {
  const auto difference = [](const std::string& left, const std::string& right) -> std::string {
    const auto found = first_difference(parse_yaml_text(left, "l"), parse_yaml_text(right, "r"));
    return found ? fmt::format("{}: {} | {}", found->path, found->left, found->right) : "";
  };
  CHECK(difference("a: {b: 1, c: [x, 2]}\n", "a:\n  c: [x, 2]\n  b: 1\n").empty());
  CHECK(difference("a: {b: 1e-3}", "a: {b: 1e-2}") == "a.b: 1e-3 | 1e-2");
  CHECK(difference("a: 1\nb: 1\nc: 1", "a: 1\nb: 2\nc: 2") == "b: 1 | 2");
  CHECK(difference("a: [1, 2]", "a: [1, 3]") == "a: [1, 2] | [1, 3]");
  CHECK(difference("a: 1", "a: \"1\"") == "a: 1 | \"1\"");
  CHECK(difference("a: 1", "a: 1\nb: {c: 2}") == "b.c: nothing | 2");
  CHECK(difference("a: 1\nb: {c: 2}", "a: 1\nb: null") == "b.c: 2 | nothing");
  CHECK(difference("a: null", "b: null").empty());
}

TEST_CASE("a missing file is no input, a folder is a mistake of usage") {
  const test::TemporaryFolder folder;
  CHECK_THROWS_AS(parse_yaml_file(folder / "none.yaml"), MissingInputError);
  CHECK_THROWS_AS(parse_yaml_file(folder.path()), UsageError);
}

TEST_CASE("a file's faults can be bad data instead of bad usage") {
  const test::TemporaryFolder folder;
  write_text_file(folder / "config.json", "{\"a\": 1, \"a\": 2}");
  ErrorList errors(ExitCode::bad_data);
  parse_yaml_file(folder / "config.json", errors);
  CHECK_THROWS_AS(errors.throw_if_any(), DataError);
  write_text_file(folder / "config.json", "{\"a\": ");
  ErrorList fatal(ExitCode::bad_data);
  CHECK_THROWS_AS(parse_yaml_file(folder / "config.json", fatal), DataError);
}
