// SPDX-License-Identifier: Apache-2.0
#include "data/task_file.h"

#include "farskip/base/error.h"
#include "support/catch.h"
#include "support/support.h"

using namespace farskip;

namespace {

Task task_in(const std::string& name, std::string_view content) {
  const test::TemporaryFolder folder;
  write_text_file(folder / name, std::string(content));
  return read_task(folder / name);
}

TEST_CASE("a task has the items of its lines, each with its place, and the name of its file") {
  const Task task =
      task_in("arc.easy.jsonl",
              "\xef\xbb\xbf{\"context\": \"a \", \"choices\": [\"b\", \" \\u00e9\"], \"gold\": 1}\r\n\n"
              "{\"gold\": 0, \"id\": 7, \"context\": \"\", \"choices\": [\"\\n\"]}");
  CHECK(task.name == "arc.easy");
  REQUIRE(task.items.size() == 2);
  CHECK(task.items[0].context == "a ");
  CHECK(task.items[0].choices == std::vector<std::string>{"b", " \u00e9"});
  CHECK(task.items[0].gold == 1);
  CHECK_THAT(task.items[0].place, ContainsSubstring("arc.easy.jsonl:1"));
  CHECK(task.items[1].context.empty());
  CHECK(task.items[1].choices == std::vector<std::string>{"\n"});
  CHECK_THAT(task.items[1].place, ContainsSubstring("arc.easy.jsonl:3"));
}

TEST_CASE("a line that is no item is refused with file, line, key and what is allowed") {
  const std::pair<const char*, const char*> cases[] = {
      {"{\"context\": \"a\", ", "t.jsonl:2"},
      {"{\"context\": \"\xff\", \"choices\": [\"b\"], \"gold\": 0}", "t.jsonl:2: byte 0xff"},
      {"{\"context\": \"\\ud800\", \"choices\": [\"b\"], \"gold\": 0}", "t.jsonl:2"},
      {"{\"context\": \"a\", \"context\": \"a\", \"choices\": [\"b\"], \"gold\": 0}", "t.jsonl:2"},
      {"[1]", "t.jsonl:2: an object is expected, found array"},
      {"{\"choices\": [\"b\"], \"gold\": 0}", "t.jsonl:2: \"context\" is missing"},
      {"{\"context\": 3, \"choices\": [\"b\"], \"gold\": 0}", "t.jsonl:2.context: a string is expected"},
      {"{\"context\": \"a\", \"gold\": 0}", "t.jsonl:2: \"choices\" is missing"},
      {"{\"context\": \"a\", \"choices\": [], \"gold\": 0}", "t.jsonl:2.choices: an empty list; allowed"},
      {"{\"context\": \"a\", \"choices\": \"b\", \"gold\": 0}", "t.jsonl:2.choices: string; allowed"},
      {"{\"context\": \"a\", \"choices\": [\"b\", 2], \"gold\": 0}", "t.jsonl:2.choices[1]: 2; allowed"},
      {"{\"context\": \"a\", \"choices\": [\"b\", \"\"], \"gold\": 0}",
       "t.jsonl:2.choices[1]: \"\"; allowed"},
      {"{\"context\": \"a\", \"choices\": [\"b\"]}", "t.jsonl:2: \"gold\" is missing"},
      {"{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"gold\": 2}", "t.jsonl:2.gold: 2; allowed"},
      {"{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"gold\": -1}", "an integer from 0 to 1"},
      {"{\"context\": \"a\", \"choices\": [\"b\"], \"gold\": 0.0}", "t.jsonl:2.gold: 0.0"},
      {"{\"context\": \"a\", \"choices\": [\"b\"], \"gold\": \"0\"}", "t.jsonl:2.gold: \"0\""},
      {"{\"context\": \"a\", \"choices\": [\"b\"], \"gold\": 18446744073709551616}", "t.jsonl:2"}};
  const std::string good = "{\"context\": \"a\", \"choices\": [\"b\"], \"gold\": 0}\n";
  for (const auto& [line, message] : cases) {
    CAPTURE(line);
    CHECK_THROWS_AS(task_in("t.jsonl", good + line), DataError);
    CHECK_THROWS_WITH(task_in("t.jsonl", good + line), ContainsSubstring(message));
  }
  CHECK_THROWS_WITH(task_in("t.jsonl", "\n"), ContainsSubstring("holds no item"));
  CHECK_THROWS_AS(read_task("/nowhere/t.jsonl"), MissingInputError);
}

}  // namespace
