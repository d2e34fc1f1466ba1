// SPDX-License-Identifier: Apache-2.0
#include "data/text_source.h"

#include <zlib.h>

#include <fstream>
#include <iterator>

#include "farskip/base/error.h"
#include "support/catch.h"
#include "support/support.h"

using namespace farskip;

namespace {

const Logger kQuiet(LogLevel::off);

void write(const fs::path& path, std::string_view text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

std::string packed(std::string_view text) {
  const test::TemporaryFolder folder;
  const fs::path path = folder / "x.gz";
  gzFile file = ::gzopen(path.c_str(), "wb");
  ::gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
  ::gzclose(file);
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

Tokenizer gpt2() {
  return Tokenizer::load(test::fixtures() / "tokenizer_gpt2" / "tokenizer.json");
}

using Texts = std::vector<std::string>;
using Paths = std::vector<fs::path>;

Texts documents_of(const fs::path& file) {
  Texts documents;
  for_each_document(file, [&](std::string_view text) { documents.emplace_back(text); });
  return documents;
}

/// Of a file with this name and content.
Texts documents_in(const std::string& name, std::string_view content) {
  const test::TemporaryFolder folder;
  write(folder / name, content);
  return documents_of(folder / name);
}

TEST_CASE("folders are searched recursively for text and sorted; named files keep their order") {
  const test::TemporaryFolder folder;
  for (const char* name : {"d/b.txt", "d/a/z.MD", "d/a.rst", "d/c.jsonl", "d/skip.py", "d/e.txt.gz",
                           "d/F.JSONL.GZ", "d/g.json", "d/h.ndjson", "d/i.gz", "d/j.json.zst", "named.py"})
    write(folder / name, "x");
  const fs::path root = folder.path();
  CHECK(list_text_files(Paths{root / "named.py", root / "d"}, kQuiet) ==
        Paths{root / "named.py", root / "d/F.JSONL.GZ", root / "d/a.rst", root / "d/a/z.MD", root / "d/b.txt",
              root / "d/c.jsonl", root / "d/e.txt.gz", root / "d/g.json", root / "d/h.ndjson"});
  CHECK_THROWS_AS(list_text_files(Paths{root / "none"}, kQuiet), MissingInputError);
}

TEST_CASE("a folder without text is missing input, and what it holds instead is named") {
  const test::TemporaryFolder folder;
  const Paths sources{folder.path()};
  CHECK_THROWS_WITH(list_text_files(sources, kQuiet), ContainsSubstring("holds no text; FarSkip reads .txt"));
  for (const char* name : {"a.png", "b.png", "c.png", "d.png", "e.png"}) write(folder / name, "x");
  CHECK_THROWS_WITH(list_text_files(sources, kQuiet),
                    ContainsSubstring("a.png") && ContainsSubstring("and 2 more"));
}

TEST_CASE(
    "links in a folder: to files they are followed, to folders, to nothing and in circles they are not") {
  const test::TemporaryFolder folder;
  write(folder / "elsewhere/a.txt", "x");
  fs::create_directory(folder / "d");
  fs::create_symlink(folder / "elsewhere/a.txt", folder / "d/a.txt");
  fs::create_symlink(folder / "elsewhere", folder / "d/b");
  fs::create_symlink(".", folder / "d/self");
  fs::create_symlink("circle.txt", folder / "d/circle.txt");
  fs::create_symlink("nothing", folder / "d/nothing.txt");
  CHECK(list_text_files(Paths{folder / "d"}, kQuiet) == Paths{folder / "d/a.txt"});
}

TEST_CASE("a text file is one document and a JSONL line another") {
  CHECK(documents_in("a.txt", "two\nlines\n") == Texts{"two\nlines\n"});
  CHECK(documents_in("a.txt", "no end of line") == Texts{"no end of line"});
  CHECK(documents_in("a.txt", "\r\nstays\r\n") == Texts{"\r\nstays\r\n"});
  CHECK(documents_in("a.txt", "").empty());
  CHECK(documents_in("name without ending", "x") == Texts{"x"});
  CHECK(documents_in("a b\nc.txt", "x") == Texts{"x"});
  constexpr const char* lines =
      "{\"text\": \"one\\n\\u00e9\", \"meta\": {\"x\": 1}}\r\n\n  \n{\"text\":\"\"}\n{\"text\":\"end\"}";
  for (const char* name : {"a.jsonl", "a.JSONL", "a.ndjson", "a.json"})
    CHECK(documents_in(name, lines) == Texts{"one\n\u00e9", "", "end"});
  CHECK(documents_in("a.jsonl", "").empty());
}

TEST_CASE("a JSON file is an array of objects, one object, or JSON lines under another name") {
  const Texts two{"one", "two"};
  CHECK(documents_in("a.json", "[{\"text\": \"one\"},\n {\"text\": \"two\"}]\n") == two);
  CHECK(documents_in("a.json", "\n[\n{\"text\": \"one\"}, {\"text\": \"two\"}\n]") == two);
  CHECK(documents_in("a.json", "{\"text\": \"one\"}\n{\"text\": \"two\"}\n") == two);
  CHECK(documents_in("a.json", "{\n  \"text\": \"one\"\n}\n") == Texts{"one"});
  CHECK(documents_in("a.json", "[]").empty());
  CHECK(documents_in("a.json", " \n").empty());
  CHECK_THROWS_WITH(documents_in("a.json", "[{\"text\": \"one\"}, 3]"),
                    ContainsSubstring("a.json: element 1: number instead of an object"));
  CHECK_THROWS_WITH(documents_in("a.json", "{\"id\": 1, \"content\": \"x\"}"),
                    ContainsSubstring("\"text\"; this one has \"content\", \"id\""));
  CHECK_THROWS_AS(documents_in("a.json", "[{\"text\": \"one\"}"), DataError);
}

TEST_CASE("text compressed by gzip is unpacked, also in several parts; damage and cuts are named") {
  const std::string lines = packed("{\"text\": \"one\"}\n") + packed("{\"text\": \"two\"}\n");
  CHECK(documents_in("a.jsonl.gz", lines) == Texts{"one", "two"});
  CHECK(documents_in("a.json.gz", lines) == Texts{"one", "two"});
  const std::string large(3000000, 'x');
  CHECK(documents_in("a.TXT.GZ", packed(large)) == Texts{large});
  for (const std::size_t size : {std::size_t{1}, std::size_t{12}, lines.size() - 1})
    CHECK_THROWS_WITH(documents_in("a.jsonl.gz", lines.substr(0, size)), ContainsSubstring("cut off"));
  CHECK_THROWS_WITH(documents_in("a.txt.gz", "plain"), ContainsSubstring("not gzip data"));
  CHECK_THROWS_AS(documents_in("a.txt.gz", packed("x") + "rest"), DataError);
}

TEST_CASE("JSONL lines longer than the read buffer come whole") {
  Texts expected;
  std::string file;
  for (const std::size_t size : {10U, 1048560U, 3000000U, 1U, 1048576U, 5U}) {
    expected.emplace_back(size, static_cast<char>('a' + size % 26));
    file += "{\"text\":\"" + expected.back() + "\"}\n";
  }
  CHECK(documents_in("a.jsonl", file) == expected);
  CHECK(documents_in("a.jsonl.gz", packed(file)) == expected);
}

TEST_CASE("a byte order mark is no text") {
  CHECK(documents_in("a.txt", "\xef\xbb\xbfx") == Texts{"x"});
  CHECK(documents_in("a.txt", "\xef\xbb\xbf").empty());
  CHECK(documents_in("a.jsonl", "\xef\xbb\xbf{\"text\":\"x\"}") == Texts{"x"});
  CHECK(documents_in("a.json", "\xef\xbb\xbf[{\"text\":\"x\"}]") == Texts{"x"});
}

TEST_CASE("bytes that are not UTF-8 are named with file, line and offset") {
  CHECK_THROWS_WITH(documents_in("a.txt", "abc\xff"), ContainsSubstring("a.txt: byte 0xff at offset 3"));
  CHECK_THROWS_WITH(documents_in("a.jsonl", "{\"text\":\"a\"}\n{\"text\":\"\xc3\"}\n"),
                    ContainsSubstring("a.jsonl:2: byte 0xc3 at offset 22"));
}

TEST_CASE("files that are not text are refused by name, whatever they are called") {
  using namespace std::string_view_literals;
  CHECK_THROWS_WITH(documents_in("a.txt", packed("x")), ContainsSubstring("is a gzip file"));
  CHECK_THROWS_WITH(documents_in("a.jsonl.zst", "\x28\xb5\x2f\xfd..."), ContainsSubstring("is a zstd file"));
  CHECK_THROWS_WITH(documents_in("a.jsonl", "\x28\xb5\x2f\xfd..."), ContainsSubstring("is a zstd file"));
  CHECK_THROWS_WITH(documents_in("a.parquet", "PAR1..."), ContainsSubstring("is a Parquet file"));
  CHECK_THROWS_WITH(documents_in("a.txt", "\xff\xfeh\0i\0"sv), ContainsSubstring("is UTF-16 text"));
  CHECK_THROWS_WITH(documents_in("a.txt", "h\0i\0"sv), ContainsSubstring("byte 0x00 at offset 1"));
}

TEST_CASE("JSON under the name of plain text is refused: braces and keys are not its text") {
  for (const char* name : {"corpus", "a.txt", "a.md", "a.data"}) {
    INFO(name);
    for (const char* content :
         {"{\"text\": \"the model\"}", "{\"text\": \"one\"}\n{\"text\": \"two\"}\n", "[{\"text\": \"one\"}]",
          "{\n \"text\": \"one\"\n}", "\n{\"content\": \"one\"}\n\n{\"content\": \"two\"}"})
      CHECK_THROWS_WITH(documents_in(name, content), ContainsSubstring("holds JSON"));
  }
  for (const char* content :
       {"{\"a\": 1}\nis an object in JSON.", "{not json}", "[1, 2]", "[link]: target", "{"})
    CHECK(documents_in("a.md", content) == Texts{content});
}

TEST_CASE("lines that are not objects with a text are named") {
  for (const char* line :
       {"[1]", "3", "{\"txt\": \"a\"}", "{\"text\": 3}", "{\"text\": \"a\"", "{\"text\":\"\\ud800\"}"}) {
    INFO(line);
    const std::string content = std::string("{\"text\":\"a\"}\n") + line;
    CHECK_THROWS_AS(documents_in("a.jsonl", content), DataError);
    CHECK_THROWS_WITH(documents_in("a.jsonl", content), ContainsSubstring("a.jsonl:2"));
  }
}

TEST_CASE("tokenized text has every document with its end token") {
  const test::TemporaryFolder folder;
  const Tokenizer tokenizer = gpt2();
  write(folder / "a.txt", "Hello world");
  write(folder / "b.jsonl", "{\"text\":\"second\"}\n{\"text\":\"\"}\n");
  write(folder / "empty.txt", "");
  const std::string prefix = (folder / "out").string();
  TokenFileWriter writer(prefix, TokenType::u16);
  add_text(Paths{folder / "a.txt", folder / "b.jsonl", folder / "empty.txt"}, tokenizer, writer, kQuiet);
  writer.commit();
  const TokenFile file(prefix, tokenizer.vocab_size());
  REQUIRE(file.num_documents() == 3);
  CHECK(tokenizer.decode(file.document(0)) == "Hello world<|endoftext|>");
  CHECK(tokenizer.decode(file.document(1)) == "second<|endoftext|>");
  CHECK(file.document(2) == std::vector<std::int32_t>{0});
  TokenFileWriter none((folder / "no").string(), TokenType::u16);
  CHECK_THROWS_WITH(add_text(Paths{folder / "empty.txt"}, tokenizer, none, kQuiet),
                    ContainsSubstring("no document: ") && ContainsSubstring("empty.txt"));
}

}  // namespace
