// SPDX-License-Identifier: Apache-2.0
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <thread>

#include "data/text_source.h"
#include "farskip/base/error.h"
#include "support/catch.h"
#include "support/support.h"

using namespace farskip;

namespace {

void write(const fs::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary) << text;
}

const Tokenizer& gpt2() {
  static const Tokenizer tokenizer = Tokenizer::load(test::fixtures() / "tokenizer_gpt2" / "tokenizer.json");
  return tokenizer;
}

std::string tokenize(const fs::path& file, const fs::path& cache, const Tokenizer& tokenizer = gpt2()) {
  return tokenize_cached(std::vector<fs::path>{file}, tokenizer, cache, Logger(LogLevel::off));
}

std::ptrdiff_t count_entries(const fs::path& folder) {
  return std::distance(fs::directory_iterator(folder), fs::directory_iterator());
}

TEST_CASE("the cache is used again, and not when text, path or tokenizer differ") {
  const test::TemporaryFolder folder;
  const fs::path cache = folder / "cache";
  write(folder / "a.txt", "some text");
  const std::string first = tokenize(folder / "a.txt", cache);
  const auto written = fs::last_write_time(first + ".bin");
  CHECK(tokenize(folder / "a.txt", cache) == first);
  CHECK(fs::last_write_time(first + ".bin") == written);
  const auto qwen = Tokenizer::load(test::fixtures() / "tokenizer_qwen" / "tokenizer.json");
  CHECK(tokenize(folder / "a.txt", cache, qwen) != first);
  fs::copy_file(folder / "a.txt", folder / "b.txt");
  CHECK(tokenize(folder / "b.txt", cache) != first);
  write(folder / "a.txt", "Some text");
  CHECK(tokenize(folder / "a.txt", cache) != first);
  write(folder / "a.txt", "some text");
  CHECK(tokenize(folder / "a.txt", cache) == first);
}

TEST_CASE("a failed run leaves nothing in the cache") {
  const test::TemporaryFolder folder;
  write(folder / "a.txt", "bad \xff");
  CHECK_THROWS_AS(tokenize(folder / "a.txt", folder / "cache"), DataError);
  CHECK(fs::is_empty(folder / "cache"));
}

TEST_CASE("what a killed run left in the cache is removed, what a running one fills is not") {
  const test::TemporaryFolder folder;
  const fs::path cache = folder / "cache";
  write(folder / "a.txt", "some text");
  const fs::path place = fs::path(tokenize(folder / "a.txt", cache)).parent_path();
  const pid_t killed = ::fork();
  if (killed == 0) ::_exit(0);
  ::waitpid(killed, nullptr, 0);
  const fs::path abandoned = fmt::format("{}.tmp-{}-0123abcd", place.string(), killed);
  fs::create_directory(abandoned);
  write(abandoned / "tokens.bin.tmp-7", "half");
  CHECK(count_entries(cache) == 2);
  tokenize(folder / "a.txt", cache);
  CHECK(count_entries(cache) == 1);
}

TEST_CASE("threads and processes that fill one cache at once all get the whole tokens") {
  const test::TemporaryFolder folder;
  std::string text;
  for (int i = 0; i < 20000; ++i) text += "word" + std::to_string(i) + " ";
  write(folder / "a.txt", text);
  gpt2();
  const auto fill = [&] {
    const TokenFile file(tokenize(folder / "a.txt", folder / "cache"));
    return gpt2().decode(file.document(0), true) == text;
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
  CHECK(count_entries(folder / "cache") == 1);
}

}  // namespace
