// SPDX-License-Identifier: Apache-2.0
// The typed reader: values, mistakes with their places, unknown keys.
#include "farskip/config/reader.h"

#include "support/catch.h"

using namespace farskip;

namespace {

enum class Colour { red, green };
constexpr Choice<Colour> colour_names[] = {{"red", Colour::red}, {"green", Colour::green}};

/// The report after `read` saw `text`; finish() is called for it.
std::string report(const std::string& text, const std::function<void(Reader&)>& read) {
  ErrorList errors;
  const ConfigNode tree = parse_yaml_text(text, "f");
  Reader reader(tree, errors);
  read(reader);
  reader.finish();
  return errors.report();
}

}  // namespace

TEST_CASE("every type is read") {
  ErrorList errors;
  const ConfigNode tree = parse_yaml_text(
      "i: -7\nr: 1e-3\ns: 1.0e-3\nb: true\nt: some text\nc: green\nl: [1, 2]\nx: [0.5, 1]\nw: [a, "
      "\"b\"]\ncs: [red]\n"
      "m: 1.5GiB\nauto: auto\nrate: 48GB/s\nbits: 100Gbit/s\nn: ~\nsub: {k: 3}\nfixed: false\none: 1\nskip: "
      "{a: b}\n",
      "f");
  Reader reader(tree, errors);
  CHECK(reader.integer("i") == -7);
  CHECK(reader.real("r") == 1e-3);
  CHECK(reader.real("s") == 1e-3);
  CHECK(reader.boolean("b"));
  CHECK(reader.string("t") == "some text");
  CHECK(reader.choice("c", colour_names) == Colour::green);
  CHECK(reader.integers("l", {.min = 1}, {}, {}) == std::vector<std::int64_t>{1, 2});
  CHECK(reader.reals("x", {.min = 0}, {.min = 2, .max = 2}, {}) == std::vector<double>{0.5, 1.0});
  CHECK(reader.strings("w") == std::vector<std::string>{"a", "b"});
  CHECK(reader.choices("cs", colour_names) == std::vector<Colour>{Colour::red});
  CHECK(reader.optional_memory("m") == std::uint64_t{1610612736});
  CHECK(reader.optional_memory("auto", "auto") == std::nullopt);
  CHECK(reader.optional_rate("rate") == 48e9);
  CHECK(reader.optional_rate("bits") == 12.5e9);
  CHECK(reader.optional_integer("n") == std::nullopt);
  CHECK(reader.optional_integer("absent") == std::nullopt);
  CHECK(reader.integer("absent", {.min = 1}, 5) == 5);
  CHECK(reader.real("absent", {}, 0.5) == 0.5);
  CHECK(reader.choice("absent", colour_names, Colour::green) == Colour::green);
  CHECK(reader.optional_choice("absent", colour_names) == std::nullopt);
  Reader sub = reader.section("sub");
  CHECK(sub.integer("k") == 3);
  sub.finish();
  reader.require_value("fixed", false, "no");
  reader.require_value("one", 1, "no");
  reader.require_value("absent2", 1.5, "no");
  reader.ignore("skip");
  reader.finish();
  CHECK(errors.report().empty());
}

TEST_CASE("numbers that other readers bend are refused, each with its reason") {
  const auto integer = [](const std::string& text) {
    return report("k: " + text, [](Reader& r) { r.integer("k", {.min = 0, .max = 100}); });
  };
  CHECK(integer("100").empty());
  CHECK(integer("0").empty());
  CHECK(
      integer("010") ==
      "f:1:4: k: \"010\" has a leading zero, which some read as octal; write 10; allowed: integer, 0 to 100");
  CHECK_THAT(integer("000"), ContainsSubstring("write 0;"));
  CHECK_THAT(integer("0x10"), ContainsSubstring("hexadecimal"));
  CHECK_THAT(integer("0o17"), ContainsSubstring("octal"));
  CHECK_THAT(integer("1_000"), ContainsSubstring("has underscores; write 1000"));
  CHECK_THAT(integer("1e2"), ContainsSubstring("is not an integer; write 100"));
  CHECK_THAT(integer("20.0"), ContainsSubstring("is not an integer; write 20"));
  CHECK_THAT(integer("2.5"), ContainsSubstring("is not an integer; allowed"));
  CHECK_THAT(integer("+5"), ContainsSubstring("plus sign"));
  CHECK_THAT(integer("101"), ContainsSubstring("101 is out of range; allowed: integer, 0 to 100"));
  CHECK_THAT(integer("-1"), ContainsSubstring("-1 is out of range"));
  CHECK_THAT(integer("99999999999999999999"), ContainsSubstring("does not fit into 64 bits"));
  CHECK_THAT(integer("\"5\""), ContainsSubstring("is text; write it without quotes"));
  CHECK_THAT(integer("yes"), ContainsSubstring("\"yes\" is not an integer"));
  CHECK_THAT(integer("[5]"), ContainsSubstring("a list stands here"));
  CHECK_THAT(integer("{a: 5}"), ContainsSubstring("a map stands here"));
  CHECK_THAT(integer("~"), ContainsSubstring("f:1:1: k: there is no value"));

  const auto real = [](const std::string& text) {
    return report("k: " + text, [](Reader& r) { r.real("k", {.min = 0, .max = 1, .above_min = true}); });
  };
  for (const char* good : {"1", "0.5", ".5", "1e-3", "1.0e-3", "1E-3", "1.", "5e-1"})
    CHECK(real(good).empty());
  CHECK(real("0") == "f:1:4: k: 0 is out of range; allowed: number > 0 and <= 1");
  for (const char* bad : {".nan", ".inf", "-.INF", "nan", "1e400", "1e", "e5", "1,5", "0x1p3", "1_0", "01.5",
                          "--1", "1.2.3", "\"1\""})
    CHECK(!real(bad).empty());
  CHECK_THAT(real(".nan"), ContainsSubstring("is not finite"));
  CHECK_THAT(real("1e400"), ContainsSubstring("beyond the range of a double"));

  const auto boolean = [](const std::string& text) {
    return report("k: " + text, [](Reader& r) { r.boolean("k"); });
  };
  CHECK_THAT(boolean("yes"), ContainsSubstring("\"yes\" is not true or false; write true"));
  CHECK_THAT(boolean("Off"), ContainsSubstring("write false"));
  CHECK_THAT(boolean("True"), ContainsSubstring("write true"));
  CHECK_THAT(boolean("\"true\""), ContainsSubstring("without quotes"));
}

TEST_CASE("sizes and rates need a unit that is known") {
  const auto memory = [](const std::string& text) {
    return report("k: " + text, [](Reader& r) { r.optional_memory("k", "auto"); });
  };
  for (const char* good : {"auto", "512MiB", "512 MiB", "0.5GB", "7B", "\"1kB\""}) {
    INFO(good);
    CHECK((memory(good).empty() || good[0] == '"'));
  }
  CHECK_THAT(memory("512"), ContainsSubstring("has no unit; allowed: auto, a size such as 512MiB"));
  CHECK_THAT(memory("512mb"), ContainsSubstring("unknown unit \"mb\""));
  CHECK_THAT(memory("-1GB"), ContainsSubstring("negative"));
  CHECK_THAT(memory("GB"), ContainsSubstring("does not begin with a number"));
  CHECK_THAT(memory("1e30TB"), ContainsSubstring("more than 2^62 bytes"));
  const auto rate = [](const std::string& text) {
    return report("k: " + text, [](Reader& r) { r.optional_rate("k"); });
  };
  CHECK(rate("1.5GiB/s").empty());
  CHECK_THAT(rate("48GB"), ContainsSubstring("per second"));
  CHECK_THAT(rate("/s"), ContainsSubstring("does not begin with a number"));
}

TEST_CASE("all mistakes come at once, sorted by place, one a line") {
  const std::string all =
      report("z: x\nsection:\n  b: 5\n  a: no\nlist: [1, x, 3, 0]\nextra: 1\n", [](Reader& r) {
        r.integers("list", {.min = 1}, {}, {});
        Reader s = r.section("section");
        s.boolean("a");
        s.choice("b", colour_names);
        s.string("missing");
        s.finish();
        r.integer("z");
      });
  CHECK(all ==
        "f:1:4: z: \"x\" is not an integer; allowed: integer\n"
        "f:3:3: section.missing: this key is missing; allowed: text\n"
        "f:3:6: section.b: \"5\" is not known; allowed: red, green\n"
        "f:4:6: section.a: \"no\" is not true or false; write false; allowed: true, false\n"
        "f:5:11: list[1]: \"x\" is not an integer; allowed: integer >= 1\n"
        "f:5:17: list[3]: 0 is out of range; allowed: integer >= 1\n"
        "f:6:1: extra: unknown key; the nearest valid key is list; keys here: list, section, z");
}

TEST_CASE("an unknown key is answered with the nearest one, also of another section") {
  const auto read = [](Reader& r) {
    Reader s = r.section("train");
    s.integer("steps", {}, 1);
    s.integer("micro_batch", {}, 1);
    s.finish();
    Reader c = r.section("checkpoint");
    c.integer("every", {}, 1);
    c.finish();
  };
  CHECK_THAT(report("train: {step: 1}", read),
             ContainsSubstring("f:1:9: train.step: unknown key; did you mean train.steps?"));
  CHECK_THAT(report("train: {micro-batch: 1}", read), ContainsSubstring("did you mean train.micro_batch?"));
  CHECK_THAT(report("train: {Steps: 1}", read), ContainsSubstring("did you mean train.steps?"));
  CHECK_THAT(report("train: {stpes: 1}", read), ContainsSubstring("did you mean train.steps?"));
  CHECK_THAT(report("steps: 1", read),
             ContainsSubstring("f:1:1: steps: unknown key; did you mean train.steps?"));
  CHECK_THAT(report("train: {every: 1}", read), ContainsSubstring("did you mean checkpoint.every?"));
  CHECK_THAT(report("trian: {steps: 1}", read), ContainsSubstring("did you mean train?"));
  CHECK_THAT(report("train: {zzzzzzzz: 1}", read), ContainsSubstring("keys here: steps, micro_batch"));
}

TEST_CASE("a value of the wrong shape does not make its keys missing") {
  CHECK(report("section: 5", [](Reader& r) {
          Reader s = r.section("section");
          s.string("needed");
          s.finish();
        }) == "f:1:10: section: an integer stands here; allowed: a map of key: value lines");
}

TEST_CASE("a value that is not built is refused with the reason") {
  const auto read = [](Reader& r) {
    r.require_value("bias", false, "projections have no bias here");
    r.require_value("act", "silu", "only SwiGLU is built");
  };
  CHECK(report("bias: false\nact: silu", read).empty());
  CHECK(report("bias: ~", read).empty());
  CHECK(report("bias: true\nact: gelu", read) ==
        "f:1:7: bias: \"true\" is not supported: projections have no bias here; allowed: false\n"
        "f:2:6: act: \"gelu\" is not supported: only SwiGLU is built; allowed: silu");
}

TEST_CASE("beyond a hundred mistakes the rest are counted") {
  std::string text;
  for (int i = 0; i < 250; ++i) text += "key" + std::to_string(i) + ": 1\n";
  CHECK_THAT(report(text, [](Reader& r) { r.integer("a", {}, 1); }),
             ContainsSubstring("\nand 150 more mistakes"));
}
