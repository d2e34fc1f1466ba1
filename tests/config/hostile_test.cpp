// SPDX-License-Identifier: Apache-2.0
// Texts made to hurt: every one ends in a typed error, soon, without much memory.
#include <sys/resource.h>
#include <unistd.h>

#include <ctime>
#include <fstream>
#include <random>

#include "farskip/base/file.h"
#include "farskip/config/run_config.h"
#include "farskip/config/tree.h"
#include "support/catch.h"
#include "support/support.h"

using namespace farskip;

namespace {

/// Of this process's own work, so that a busy machine fails no test; sanitizers slow it about tenfold.
double seconds_since(std::clock_t start) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr double slowdown = 15;
#else
  constexpr double slowdown = 1;
#endif
  return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC / slowdown;
}

std::string refuse(const std::string& text) {
  const std::clock_t start = std::clock();
  std::string message = "accepted";
  try {
    parse_yaml_text(text, "f");
  } catch (const UsageError& error) {
    message = error.what();
  }
  CHECK(seconds_since(start) < 1.0);
  return message;
}

std::string repeat(const std::string& text, std::size_t times) {
  std::string out;
  for (std::size_t i = 0; i < times; ++i) out += text;
  return out;
}

const char* const good_config =
    "name: example\nseed: 1\ndevice: auto\nmodel: {family: olmoe, hidden_size: 256}\nfarskip: {mode: full, "
    "layers: "
    "\"0-3\"}\ndata:\n  tokens: [a, b]\n  weights: [1.0, 2]\ntrain:\n  steps: 1000\n  learning_rate: "
    "{schedule: "
    "cosine, peak: 1.0e-3}  # comment\n  note: |\n    block\n    text\n";

/// Ends well if the text is either read or refused as the user's mistake.
bool reads_or_refuses(const std::string& text) {
  try {
    ErrorList errors;
    const ConfigNode tree = parse_yaml_text(text, "f", errors);
    read_run_config(tree, errors);
    errors.throw_if_any();
    return true;
  } catch (const UsageError& error) {
    return std::string(error.what()).size() < 100000;
  }
}

}  // namespace

TEST_CASE("a YAML bomb is refused at its first anchor") {
  std::string text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n";
  for (char c = 'b'; c < 'k'; ++c) {
    text += fmt::format("{}: &{} [", c, c);
    for (int i = 0; i < 10; ++i) text += fmt::format("{}*{}", i > 0 ? ", " : "", static_cast<char>(c - 1));
    text += "]\n";
  }
  CHECK_THAT(refuse(text), ContainsSubstring("f:1:4: YAML anchor"));
}

TEST_CASE("a list that contains itself is refused") {
  CHECK_THAT(refuse("x: &x [*x]"), ContainsSubstring("f:1:4: YAML anchor"));
  CHECK_THAT(refuse("x: [*x]"), ContainsSubstring("alias"));
}

TEST_CASE("deep nesting is refused at the limit, in every style") {
  CHECK(refuse(repeat("[", 64) + repeat("]", 64)) == "accepted");
  CHECK_THAT(refuse(repeat("[", 65) + repeat("]", 65)),
             ContainsSubstring("f:1:65: nested more than 64 levels deep"));
  for (const std::size_t times : {std::size_t{100}, std::size_t{5000}, std::size_t{170000}}) {
    for (const char* opening : {"[", "{", "{a: ", "[{a: ", "- ", "? ", "- - ", "-\t", "{? ", "&a [", "!a "})
      CHECK(refuse(repeat(opening, times)) != "accepted");
  }
  std::string indented;
  for (std::size_t i = 0; i < 1000; ++i) indented += std::string(i, ' ') + "a:\n";
  CHECK_THAT(refuse(indented), ContainsSubstring("nested more than 64 levels deep"));
}

TEST_CASE("texts of a megabyte that never end are refused soon") {
  for (const char* part :
       {"\"",    "'",           "a",      "a: ", ": ",   "a:\n",  "|\n ", "# \n",   "---\n",
        "...\n", "%YAML 1.2\n", "\n",     "\t",  " ",    "*a ",   "&a ",  "!!str ", "\\",
        ",",     "}",           "\"a\":", "{a",  "'a' ", "? a\n", "a\n\n"}) {
    const std::string text = repeat(part, max_config_bytes / std::string(part).size());
    INFO(part);
    refuse(text);
  }
}

TEST_CASE("too many values are refused") {
  CHECK(refuse("[" + repeat("1,", 99000) + "1]") == "accepted");
  CHECK_THAT(refuse("[" + repeat("1,", 100000) + "1]"), ContainsSubstring("more than 100000 values"));
}

TEST_CASE("a file of 100 MB is refused without being read") {
  const test::TemporaryFolder folder;
  { std::ofstream(folder / "big.yaml") << "a: 1\n"; }
  std::filesystem::resize_file(folder / "big.yaml", 100'000'000);
  struct rusage before {
  }, after{};
  ::getrusage(RUSAGE_SELF, &before);
  const std::clock_t start = std::clock();
  try {
    load_run_config(folder / "big.yaml", {});
    FAIL("accepted");
  } catch (const UsageError& error) {
    CHECK_THAT(error.what(),
               ContainsSubstring("big.yaml: 100000000 bytes; a configuration has at most 1048576 bytes"));
  }
  CHECK(seconds_since(start) < 0.1);
  ::getrusage(RUSAGE_SELF, &after);
  CHECK(after.ru_maxrss - before.ru_maxrss < 20'000);  // KiB
}

TEST_CASE("texts that hold nothing are refused") {
  for (const char* text :
       {"", "\n\n", "   ", "# only a comment\n", "---\n", "null\n", "~", "---\n...\n", "\xEF\xBB\xBF"})
    CHECK_THAT(refuse(text), ContainsSubstring("f:1:1: empty"));
}

TEST_CASE("a second document is refused where it begins") {
  CHECK_THAT(refuse("a: 1\n---\nb: 2\n"), ContainsSubstring("f:2:1: a second document begins"));
  CHECK_THAT(refuse("a: 1\n---\n"), ContainsSubstring("second document"));
  CHECK(refuse("---\na: 1\n...\n") == "accepted");
}

TEST_CASE("bytes that are no UTF-8 text are refused where they stand") {
  CHECK_THAT(refuse("a: 1\nbé: \xff\n"), ContainsSubstring("f:2:5: byte 0xff is not UTF-8"));
  CHECK_THAT(refuse("a: \xc3"), ContainsSubstring("f:1:4: byte 0xc3"));
  CHECK_THAT(refuse("a: \xed\xa0\x80"), ContainsSubstring("byte 0xed"));      // a surrogate
  CHECK_THAT(refuse("a: \xc0\xaf"), ContainsSubstring("byte 0xc0"));          // overlong
  CHECK_THAT(refuse("a: \xe0\x80\xaf"), ContainsSubstring("byte 0xe0"));      // overlong
  CHECK_THAT(refuse("a: \xf4\x90\x80\x80"), ContainsSubstring("byte 0xf4"));  // past the last code point
  CHECK_THAT(refuse(std::string("a: \0b", 5)), ContainsSubstring("control character 0x00"));
  CHECK_THAT(refuse("\xff\xfe"
                    "a"),
             ContainsSubstring("f:1:1: byte 0xff"));  // UTF-16
  CHECK(refuse("a: \"é 漢 😀\"") == "accepted");
}

TEST_CASE("random bytes are refused or read, never worse") {
  const std::clock_t start = std::clock();
  std::mt19937_64 random(1);
  const std::string alphabet = "ab01: -[]{},\n\n  \t\"'#&*!|>%@`?~.\\=+_eE\xc3\xa9";
  for (int seed = 0; seed < 2000; ++seed) {
    std::string text;
    const std::size_t length = random() % 200;
    if (seed % 4 == 0) {
      for (std::size_t i = 0; i < length; ++i) text += static_cast<char>(random() & 0xFF);
    } else if (seed % 4 == 1) {
      for (std::size_t i = 0; i < length; ++i) text += alphabet[random() % alphabet.size()];
    } else {
      text = good_config;
      for (std::size_t i = 0; i < 1 + random() % 8; ++i) {
        const std::size_t at = random() % text.size();
        if (random() % 2 == 0)
          text[at] = alphabet[random() % (alphabet.size() - 2)];
        else
          text.insert(at, text.substr(random() % text.size(), random() % 20));
      }
    }
    INFO("seed " << seed << ": " << text);
    CHECK(reads_or_refuses(text));
  }
  CHECK(seconds_since(start) < 1.0);
}
