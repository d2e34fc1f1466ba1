// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer.h"

#include "farskip/base/error.h"
#include "support/catch.h"
#include "support/json.h"
#include "support/support.h"

using namespace farskip;
using nlohmann::json;

namespace {

using Ids = std::vector<std::int32_t>;

json gpt2_json() {
  return test::parse_json(read_text_file(test::fixtures() / "tokenizer_gpt2" / "tokenizer.json"));
}

Tokenizer load_json(const json& value) {
  return Tokenizer::from_json(value.dump(), "t.json");
}

json added(std::int32_t id, const std::string& content) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

/// `value` with one field changed, and the words that its refusal must have.
struct Refusal {
  const char* pointer;
  json value;
  const char* reason;
};

}  // namespace

TEST_CASE("Ids and decoded text equal the Hugging Face library's in every style") {
  const std::string style = GENERATE("gpt2", "llama3", "qwen", "deepseek", "smollm2");
  const auto folder = test::fixtures() / ("tokenizer_" + style);
  const Tokenizer tokenizer = Tokenizer::load(folder / "tokenizer.json");
  const json cases = test::parse_json(read_text_file(folder / "encoded.json"));
  CHECK(tokenizer.vocab_size() == 1200);
  REQUIRE(cases.size() >= 20);
  Tokenizer::Encoder encoder(tokenizer);
  for (const json& one : cases) {
    const auto text = one["text"].get<std::string>();
    INFO(style << ": " << text);
    CHECK(tokenizer.encode(text) == one["ids"].get<Ids>());
    CHECK(tokenizer.decode(one["ids"].get<Ids>()) == one["decoded"].get<std::string>());
    Ids again;  // a second time, from the encoder's memory
    encoder.encode(text, again);
    again.clear();
    encoder.encode(text, again);
    CHECK(again == one["ids"].get<Ids>());
  }
}

TEST_CASE("Every byte string that is UTF-8 comes back from its ids") {
  const Tokenizer tokenizer = Tokenizer::load(test::fixtures() / "tokenizer_gpt2" / "tokenizer.json");
  std::string text("\0 x \x7f", 5);
  for (char32_t c = 0x20; c < 0x3000; c += 7) text += c < 0x80 ? static_cast<char>(c) : ' ';
  CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
}

TEST_CASE("Text that is not UTF-8 is refused with the byte's offset") {
  const Tokenizer tokenizer = load_json(gpt2_json());
  CHECK_THROWS_WITH(tokenizer.encode("ab\xff"), ContainsSubstring("0xff at offset 2"));
  CHECK_THROWS_AS(tokenizer.encode("\xc3"), DataError);
}

TEST_CASE("Decoding half a character gives the replacement character, and an unknown id an error") {
  const Tokenizer tokenizer = load_json(gpt2_json());
  const std::int32_t half = tokenizer.token_id("Ã").value();  // byte 0xC3
  CHECK(tokenizer.token_bytes(half) == "\xC3");
  CHECK(tokenizer.decode(Ids{half}) == "\xEF\xBF\xBD");
  CHECK_THROWS_WITH(tokenizer.decode(Ids{1200}), ContainsSubstring("1200"));
  CHECK_THROWS_AS(tokenizer.decode(Ids{-1}), DataError);
}

TEST_CASE("Special tokens are found in text, and left out of decoded text on request") {
  const Tokenizer tokenizer = load_json(gpt2_json());
  CHECK(tokenizer.eos() == 0);
  CHECK(tokenizer.token_id("<|im_end|>") == 2);
  CHECK_FALSE(tokenizer.token_id("<|nothing|>"));
  const Ids ids = tokenizer.encode("a<|im_start|><|im_endb<|im_end|>");
  CHECK(ids.at(1) == 1);
  CHECK(ids.back() == 2);
  CHECK(tokenizer.decode(ids) == "a<|im_start|><|im_endb<|im_end|>");
  CHECK(tokenizer.decode(ids, true) == "a<|im_endb");
}

TEST_CASE("Of two added tokens at one place the longer wins, and lstrip and rstrip take white space") {
  json file = gpt2_json();
  file["added_tokens"].push_back(added(1200, "<s"));
  file["added_tokens"].push_back(added(1201, "<s>"));
  file["added_tokens"][4]["lstrip"] = true;
  file["added_tokens"][4]["rstrip"] = true;
  const Tokenizer tokenizer = load_json(file);
  CHECK(tokenizer.vocab_size() == 1202);
  CHECK(tokenizer.encode("<s<s>") == Ids{1200, 1201});
  const Ids a = tokenizer.encode("a"), b = tokenizer.encode("b");
  CHECK(tokenizer.encode("a \u3000<s>\n\tb") == Ids{a[0], 1201, b[0]});
  CHECK(tokenizer.encode(" <s> <s> ") == Ids{1201, 1201});
}

TEST_CASE("Normalized added tokens are looked for after normalization") {
  json file = gpt2_json();
  file["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}};
  file["added_tokens"].push_back(added(1200, "<\u00e9>"));
  CHECK(load_json(file).encode("<e\u0301>").size() > 1);
  CHECK(load_json(file).encode("<\u00e9>") == Ids{1200});
  file["added_tokens"][3]["normalized"] = true;
  CHECK(load_json(file).encode("<e\u0301>") == Ids{1200});
}

TEST_CASE("Merges may be written as strings") {
  json file = gpt2_json();
  for (json& merge : file["model"]["merges"])
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  const std::string text = "def f(x):\n    return self.value  # the value";
  CHECK(load_json(file).encode(text) == load_json(gpt2_json()).encode(text));
}

TEST_CASE("With ignore_merges a word that is a token stays whole") {
  json file = gpt2_json();
  file["model"]["vocab"]["zq"] = 1200;
  CHECK(load_json(file).encode("zq").size() == 2);
  file["model"]["ignore_merges"] = true;
  CHECK(load_json(file).encode("zq") == Ids{1200});
}

TEST_CASE("A prefix space, removed matches and literal patterns act as in the Hugging Face library") {
  const std::string space = "Ġ";
  json file = gpt2_json();
  file["pre_tokenizer"]["add_prefix_space"] = true;
  CHECK(load_json(file).encode("x") == load_json(gpt2_json()).encode(" x"));
  CHECK(load_json(file).encode(" x") == load_json(gpt2_json()).encode(" x"));
  const auto with_split = [](const json& pattern, bool invert) {
    json changed = gpt2_json();
    const json split = {{"type", "Split"}, {"pattern", pattern}, {"behavior", "Removed"}, {"invert", invert}};
    json last = changed["pre_tokenizer"];
    last["use_regex"] = false;
    changed["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {split, last}}};
    return load_json(changed);
  };
  const auto decoded = [](const Tokenizer& t, const std::string& text) { return t.decode(t.encode(text)); };
  CHECK(decoded(with_split({{"String", "."}}, false), "a.b..c") == "abc");
  CHECK(decoded(with_split({{"Regex", "\\d+"}}, false), "a1b22c") == "abc");
  CHECK(decoded(with_split({{"Regex", "\\d+"}}, true), "a1b22c") == "122");
}

TEST_CASE("A template's tokens stand around the text only when asked for") {
  json file = gpt2_json();
  file["post_processor"] = test::parse_json(R"({"type": "Sequence", "processors": [
    {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
    {"type": "TemplateProcessing",
     "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}],
     "pair": [],
     "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]},
                        "<|im_end|>": {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]}}}]})");
  const Tokenizer tokenizer = load_json(file);
  const Ids plain = tokenizer.encode("Hello");
  Ids around{1};
  around.insert(around.end(), plain.begin(), plain.end());
  around.push_back(2);
  CHECK(plain == load_json(gpt2_json()).encode("Hello"));
  CHECK(tokenizer.encode_with_special_tokens("Hello") == around);
  // What a model continues has no end yet, and begins once.
  const Ids begun(around.begin(), around.end() - 1);
  CHECK(tokenizer.encode_prompt("Hello") == begun);
  CHECK(tokenizer.encode_prompt(tokenizer.decode(begun)) == begun);
}

TEST_CASE("A very long word is merged in reasonable time") {
  const Tokenizer tokenizer = load_json(gpt2_json());
  const std::string word(1 << 20, 'e');
  CHECK(tokenizer.decode(tokenizer.encode(word)) == word);
  const std::string spaces = std::string(1 << 20, ' ') + "x";
  CHECK(tokenizer.decode(tokenizer.encode(spaces)) == spaces);
}

TEST_CASE("save writes what was loaded") {
  const test::TemporaryFolder folder;
  const auto path = test::fixtures() / "tokenizer_qwen" / "tokenizer.json";
  write_text_file(folder / "t.json", Tokenizer::load(path).json());
  CHECK(read_text_file(folder / "t.json") == read_text_file(path));
}

TEST_CASE("Whatever a tokenizer file asks for beyond what is supported is refused by name") {
  const json sentencepiece = {{"type", "Metaspace"}};
  const auto [pointer, value, reason] = GENERATE_COPY(values<Refusal>({
      {"/version", "2.0", "t.json.version"},
      {"/truncation", {{"max_length", 5}}, "t.json.truncation"},
      {"/padding", {{"length", 5}}, "t.json.padding"},
      {"/surprise", 1, "\"surprise\""},
      {"/normalizer", {{"type", "Lowercase"}}, "\"Lowercase\""},
      {"/normalizer", {{"type", "NFC"}, {"x", 1}}, "\"x\""},
      {"/pre_tokenizer", nullptr, "pre_tokenizer: null, where a value is expected"},
      {"/pre_tokenizer", sentencepiece, "\"Metaspace\""},
      {"/pre_tokenizer/x", true, "\"x\""},
      {"/pre_tokenizer/use_regex", 1, "use_regex"},
      {"/pre_tokenizer", {{"type", "Digits"}}, "ends with one"},
      {"/decoder", nullptr, "decoder: null, where a value is expected"},
      {"/decoder", sentencepiece, "\"Metaspace\""},
      {"/post_processor", {{"type", "BertProcessing"}}, "\"BertProcessing\""},
      {"/model/type", "Unigram", "Unigram"},
      {"/model/dropout", 0.1, "dropout"},
      {"/model/byte_fallback", true, "byte_fallback"},
      {"/model/end_of_word_suffix", "</w>", "end_of_word_suffix"},
      {"/model/continuing_subword_prefix", "##", "continuing_subword_prefix"},
      {"/model/unk_token", 0, "unk_token: a string"},
      {"/model/vocab/!", 4, "belongs to two tokens"},
      {"/model/vocab/!", -4, "a token id"},
      {"/model/vocab/!", 1.5, "a token id"},
      {"/model/vocab/!", 2000000000, "in a vocabulary of"},
      {"/model/merges/0", "one", "merges[0]"},
      {"/model/merges/0", "a b c", "merges[0]"},
      {"/model/merges/0", {"q", "zzz"}, "\"qzzz\" is not in the vocabulary"},
      {"/model/merges/0", {"ĠĠ", "Ġ"}, "stands twice"},
      {"/added_tokens/0/single_word", true, "single_word"},
      {"/added_tokens/0/content", "", "is empty"},
      {"/added_tokens/0/content", "<|im_end|>", "\"<|im_end|>\""},
      {"/added_tokens/0/id", 7, "id 7"},
      {"/added_tokens/0/color", "red", "\"color\""},
  }));
  json file = gpt2_json();
  file[json::json_pointer(pointer)] = value;
  INFO(pointer << " = " << value);
  CHECK_THROWS_AS(load_json(file), DataError);
  CHECK_THROWS_WITH(load_json(file), ContainsSubstring("t.json") && ContainsSubstring(reason));
}

TEST_CASE("Bytes without a token become the unknown token, or are left out without one") {
  json file = gpt2_json();
  CHECK(load_json(file).bytes_without_token().empty());
  file["model"]["vocab"].erase("^");
  file["model"]["vocab"].erase("~");
  const auto encode = [&](const std::string& text) { return load_json(file).encode(text); };
  const Ids plain = encode("x");
  CHECK(load_json(file).bytes_without_token() == std::vector<std::uint8_t>{0x5e, 0x7e});
  CHECK(encode("^~").empty());
  CHECK(encode("x ^~") == encode("x "));
  CHECK(encode("\xc3\xa9~^") == encode("\xc3\xa9"));
  file["model"]["unk_token"] = "<|endoftext|>";
  CHECK(encode("x^~") == Ids{plain[0], 0, 0});
  file["model"]["fuse_unk"] = true;
  CHECK(encode("x^~") == Ids{plain[0], 0});
  CHECK(encode("^?~") == Ids{0, encode("?")[0], 0});
  file["model"]["unk_token"] = "<unk>";
  CHECK_THROWS_WITH(encode("x"),
                    ContainsSubstring("t.json.model.unk_token: \"<unk>\"") && ContainsSubstring("byte 0x5e"));
}

TEST_CASE("A broken pattern and broken JSON are refused") {
  json file = gpt2_json();
  const json split = {
      {"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}, {"invert", false}};
  file["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {split, file["pre_tokenizer"]}}};
  CHECK_THROWS_WITH(load_json(file),
                    ContainsSubstring("pretokenizers[0]") && ContainsSubstring("does not compile"));
  file["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Sideways";
  CHECK_THROWS_WITH(load_json(file), ContainsSubstring("Sideways"));
  const std::string text = gpt2_json().dump();
  for (std::size_t size = 0; size < text.size(); size += 997)
    REQUIRE_THROWS_AS(Tokenizer::from_json(text.substr(0, size), "t.json"), DataError);
}
