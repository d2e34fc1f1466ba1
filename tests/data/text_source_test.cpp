#include "farskip/data/text_source.h"

#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <thread>

#include "farskip/base/error.h"
#include "farskip/data/token_file.h"
#include "support/catch.h"
#include "support/support.h"

using namespace farskip;

namespace {

void write(const fs::path& path, std::string_view text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

Tokenizer gpt2() {
  return Tokenizer::load(test::fixtures() / "tokenizer_gpt2" / "tokenizer.json");
}

std::vector<std::string> documents_of(const fs::path& file) {
  std::vector<std::string> documents;
  for_each_document(file, [&](std::string_view text) { documents.emplace_back(text); });
  return documents;
}

using Paths = std::vector<fs::path>;

}  // namespace

TEST_CASE("Folders are searched recursively for text and sorted; named files keep their order") {
  const test::TemporaryFolder folder;
  for (const char* name :
       {"d/b.txt", "d/a/z.md", "d/a.rst", "d/c.jsonl", "d/skip.py", "d/e.txt.gz", "named.py"})
    write(folder / name, "x");
  const fs::path root = folder.path();
  CHECK(list_text_files(Paths{root / "named.py", root / "d"}) ==
        Paths{root / "named.py", root / "d/a.rst", root / "d/a/z.md", root / "d/b.txt", root / "d/c.jsonl"});
  CHECK_THROWS_AS(list_text_files(Paths{root / "none"}), MissingInputError);
  fs::create_directory(root / "empty");
  CHECK_THROWS_WITH(list_text_files(Paths{root / "empty"}), ContainsSubstring("holds no .txt"));
}

TEST_CASE("A text file is one document and a JSONL line another") {
  const test::TemporaryFolder folder;
  write(folder / "a.txt", "two\nlines\n");
  CHECK(documents_of(folder / "a.txt") == std::vector<std::string>{"two\nlines\n"});
  write(folder / "a.jsonl",
        "{\"text\": \"one\\n\\u00e9\", \"meta\": {\"x\": 1}}\r\n\n  \n{\"text\":\"\"}\n{\"text\":\"end\"}");
  CHECK(documents_of(folder / "a.jsonl") == std::vector<std::string>{"one\n\u00e9", "", "end"});
  write(folder / "empty.jsonl", "");
  CHECK(documents_of(folder / "empty.jsonl").empty());
}

TEST_CASE("JSONL lines longer than the read buffer come whole") {
  const test::TemporaryFolder folder;
  std::vector<std::string> expected;
  std::string file;
  for (const std::size_t size : {10U, 1048560U, 3000000U, 1U, 1048576U, 5U}) {
    expected.emplace_back(size, static_cast<char>('a' + size % 26));
    file += "{\"text\":\"" + expected.back() + "\"}\n";
  }
  write(folder / "a.jsonl", file);
  CHECK(documents_of(folder / "a.jsonl") == expected);
}

TEST_CASE("Bytes that are not UTF-8 are named with file, line and offset") {
  const test::TemporaryFolder folder;
  write(folder / "a.txt", "abc\xff");
  CHECK_THROWS_WITH(documents_of(folder / "a.txt"), ContainsSubstring("a.txt: byte 0xff at offset 3"));
  write(folder / "a.jsonl", "{\"text\":\"a\"}\n{\"text\":\"\xc3\"}\n");
  CHECK_THROWS_WITH(documents_of(folder / "a.jsonl"), ContainsSubstring("a.jsonl:2: byte 0xc3 at offset 22"));
}

TEST_CASE("Lines that are not objects with a text are named") {
  const test::TemporaryFolder folder;
  for (const char* line :
       {"[1]", "3", "{\"txt\": \"a\"}", "{\"text\": 3}", "{\"text\": \"a\"", "{\"text\":\"\\ud800\"}"}) {
    INFO(line);
    write(folder / "a.jsonl", std::string("{\"text\":\"a\"}\n") + line);
    CHECK_THROWS_AS(documents_of(folder / "a.jsonl"), DataError);
    CHECK_THROWS_WITH(documents_of(folder / "a.jsonl"), ContainsSubstring("a.jsonl:2"));
  }
}

TEST_CASE("Tokenized text has every document with its end token") {
  const test::TemporaryFolder folder;
  const Tokenizer tokenizer = gpt2();
  write(folder / "d/a.txt", "Hello world");
  write(folder / "d/b.jsonl", "{\"text\":\"second\"}\n{\"text\":\"\"}\n");
  tokenize_text(Paths{folder / "d"}, tokenizer, (folder / "out").string());
  const TokenFile file((folder / "out").string(), tokenizer.vocab_size());
  CHECK(file.type() == TokenType::u16);
  REQUIRE(file.num_documents() == 3);
  CHECK(tokenizer.decode(file.document(0)) == "Hello world<|endoftext|>");
  CHECK(tokenizer.decode(file.document(1)) == "second<|endoftext|>");
  CHECK(file.document(2) == std::vector<std::int32_t>{0});
  write(folder / "none.jsonl", "\n");
  CHECK_THROWS_AS(tokenize_text(Paths{folder / "none.jsonl"}, tokenizer, (folder / "no").string()),
                  DataError);
  CHECK_FALSE(fs::exists(folder / "no.bin"));
}

TEST_CASE("The cache is used again, and not when text, path or tokenizer differ") {
  const test::TemporaryFolder folder;
  const Tokenizer tokenizer = gpt2();
  const fs::path cache = folder / "cache";
  write(folder / "a.txt", "some text");
  const std::string first = tokenize_cached(Paths{folder / "a.txt"}, tokenizer, cache);
  const auto written = fs::last_write_time(first + ".bin");
  CHECK(tokenize_cached(Paths{folder / "a.txt"}, tokenizer, cache) == first);
  CHECK(fs::last_write_time(first + ".bin") == written);
  const auto qwen = Tokenizer::load(test::fixtures() / "tokenizer_qwen" / "tokenizer.json");
  CHECK(tokenize_cached(Paths{folder / "a.txt"}, qwen, cache) != first);
  fs::copy_file(folder / "a.txt", folder / "b.txt");
  CHECK(tokenize_cached(Paths{folder / "b.txt"}, tokenizer, cache) != first);
  write(folder / "a.txt", "Some text");
  CHECK(tokenize_cached(Paths{folder / "a.txt"}, tokenizer, cache) != first);
  write(folder / "a.txt", "some text");
  CHECK(tokenize_cached(Paths{folder / "a.txt"}, tokenizer, cache) == first);
}

TEST_CASE("A failed run leaves nothing in the cache") {
  const test::TemporaryFolder folder;
  write(folder / "a.txt", "bad \xff");
  CHECK_THROWS_AS(tokenize_cached(Paths{folder / "a.txt"}, gpt2(), folder / "cache"), DataError);
  CHECK(fs::is_empty(folder / "cache"));
}

TEST_CASE("Threads and processes that fill one cache at once all get the whole tokens") {
  const test::TemporaryFolder folder;
  const Tokenizer tokenizer = gpt2();
  std::string text;
  for (int i = 0; i < 20000; ++i) text += "word" + std::to_string(i) + " ";
  write(folder / "a.txt", text);
  const auto fill = [&] {
    const TokenFile file(tokenize_cached(Paths{folder / "a.txt"}, tokenizer, folder / "cache"));
    return tokenizer.decode(file.document(0), true) == text;
  };
  const pid_t child = ::fork();
  if (child == 0) ::_exit(fill() ? 0 : 1);
  std::vector<char> good(3, 0);
  std::vector<std::thread> threads;
  for (char& one : good) threads.emplace_back([&] { one = fill() ? 1 : 0; });
  for (std::thread& thread : threads) thread.join();
  int status = -1;
  ::waitpid(child, &status, 0);
  CHECK(status == 0);
  CHECK(good == std::vector<char>(3, 1));
  CHECK(std::distance(fs::directory_iterator(folder / "cache"), fs::directory_iterator()) == 1);
}
