// SPDX-License-Identifier: Apache-2.0
#include "data/text_source.h"

#include <nlohmann/json.hpp>

#include "data/text_stream.h"
#include "data/unicode.h"
#include "farskip/base/error.h"
#include "tensor/strict_json.h"

namespace farskip {
namespace {

constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf", kBlank = " \t\r\n";

std::string_view without_mark(std::string_view text) {
  return text.starts_with(kByteOrderMark) ? text.substr(kByteOrderMark.size()) : text;
}

bool is_blank(std::string_view text) {
  return text.find_first_not_of(kBlank) == std::string_view::npos;
}

/// What files begin with that are no text, and how they become text.
struct ForeignFormat {
  std::string_view begin, name, cure;
};
constexpr ForeignFormat kForeignFormats[] = {
    {"\x1f\x8b", "a gzip file", "let its name end in .gz"},
    {"\x28\xb5\x2f\xfd", "a zstd file", "unpack it (zstd -d)"},
    {"\xfd"
     "7zXZ",
     "an xz file", "unpack it (unxz)"},
    {"BZh", "a bzip2 file", "unpack it (bunzip2)"},
    {"PK\x03\x04", "a zip archive", "unpack it (unzip)"},
    {"PAR1", "a Parquet file", "write its texts to a .jsonl file"},
    {"ARROW1", "an Arrow file", "write its texts to a .jsonl file"},
    {"%PDF-", "a PDF", "extract its text (pdftotext)"},
    {"\xff\xfe", "UTF-16 text", "convert it (iconv -f UTF-16 -t UTF-8)"},
    {"\xfe\xff", "UTF-16 text", "convert it (iconv -f UTF-16 -t UTF-8)"}};

void refuse_foreign(const std::string& place, std::string_view text) {
  for (const auto& [begin, name, cure] : kForeignFormats)
    if (text.starts_with(begin))
      throw DataError(fmt::format("{}: is {}, which is not read as text; {}", place, name, cure));
}

/// `offset`: of the text in its file.
void check_utf8(const std::string& place, std::string_view text, std::uint64_t offset) {
  if (const auto bad = find_invalid_utf8(text))
    throw DataError(
        fmt::format("{}: byte {:#04x} at offset {} is not UTF-8; convert the file (iconv -t UTF-8)", place,
                    static_cast<unsigned char>(text[*bad]), offset + *bad));
}

/// The string "text" of an object.
const std::string& text_of(const nlohmann::json& object, const std::string& place) {
  if (!object.is_object())
    throw DataError(
        fmt::format("{}: {} instead of an object with a string \"text\"", place, object.type_name()));
  const auto text = object.find("text");
  if (text != object.end() && text->is_string()) return text->get_ref<const std::string&>();
  if (text != object.end()) {
    const std::string found = text->is_number()    ? "a number"
                              : text->is_boolean() ? "true or false"
                              : text->is_null()    ? "null"
                              : text->is_array()   ? "a list"
                                                   : "an object";
    throw DataError(
        fmt::format("{}: an object needs a string \"text\"; that of this one is {}", place, found));
  }
  std::vector<std::string> keys;
  for (const auto& [key, value] : object.items()) keys.push_back(fmt::format("\"{}\"", printable(key)));
  throw DataError(fmt::format("{}: an object needs a string \"text\"; this one has {}", place,
                              keys.empty() ? "no keys" : fmt::format("{}", fmt::join(keys, ", "))));
}

using UseDocument = std::function<void(std::string_view)>;

void use_json_lines(const fs::path& path, const UseDocument& use) {
  for_each_json_line(path, [&](const nlohmann::json& object, const std::string& place, std::uint64_t start) {
    use(text_of(object, fmt::format("{} (byte {})", place, start)));
  });
}

/// Whether a text is one JSON object a line. Two lines tell.
bool is_json_lines(std::string_view text) {
  int objects = 0;
  while (objects < 2 && !is_blank(text)) {
    text.remove_prefix(text.find_first_not_of(kBlank));
    const std::string_view line = text.substr(0, text.find('\n'));
    if (line.front() != '{' || !nlohmann::json::accept(line)) return false;
    text.remove_prefix(line.size());
    ++objects;
  }
  return objects > 0;
}

void for_each_json_document(const fs::path& path, bool gzip, const UseDocument& use) {
  {
    LineReader lines(path, gzip);
    std::string_view line;
    while (lines.next(line) && is_blank(without_mark(line))) continue;
    if (is_json_lines(without_mark(line))) return use_json_lines(path, use);
  }
  TextStream stream(path, gzip);
  const std::string whole = read_rest(stream), place = printable(path.string(), 1000);
  refuse_foreign(place, whole);
  check_utf8(place, whole, 0);
  const std::string_view text = without_mark(whole);
  if (is_blank(text)) return;
  const nlohmann::json value = parse_strict_json(text, place);
  if (!value.is_array()) return use(text_of(value, place));
  for (std::size_t i = 0; i < value.size(); ++i)
    use(text_of(value[i], fmt::format("{}: element {}", place, i)));
}

/// A whole file that is one JSON value may begin an array or an object that goes over many lines.
bool is_json(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(kBlank);
  if (begin == std::string_view::npos || (text[begin] != '{' && text[begin] != '[')) return false;
  if (is_json_lines(text)) return true;
  const std::size_t next = text.find_first_not_of(kBlank, begin + 1);
  const char inside = next == std::string_view::npos ? '\0' : text[next];
  return inside == (text[begin] == '{' ? '"' : '{') && nlohmann::json::accept(text);
}

void use_plain_text(const fs::path& path, bool gzip, const UseDocument& use) {
  TextStream stream(path, gzip);
  const std::string whole = read_rest(stream);
  const std::string place = printable(path.string(), 1000);
  refuse_foreign(place, whole);
  check_utf8(place, whole, 0);
  const std::string_view text = without_mark(whole);
  if (const std::size_t nul = whole.find('\0'); nul != std::string::npos)
    throw DataError(fmt::format("{}: byte 0x00 at offset {}: a binary file, not text", place, nul));
  if (is_json(text))
    throw DataError(fmt::format(
        "{}: holds JSON, which would be read with its braces and keys; let its name end in .jsonl "
        "(one object a line) or .json",
        place));
  if (!text.empty()) use(text);
}

}  // namespace

JsonLines::JsonLines(const fs::path& file)
    : file_(file), lines_(file, text_format(file).value_or(TextFormat{}).gzip) {}

bool JsonLines::next(nlohmann::json& value) {
  std::string_view line;
  while (lines_.next(line)) {
    place_ = fmt::format("{}:{}", printable(file_.string(), 1000), ++number_);
    if (number_ == 1) refuse_foreign(place_, line);
    check_utf8(place_, line, lines_.line_start());
    if (number_ == 1) line = without_mark(line);
    if (is_blank(line)) continue;
    value = parse_strict_json(line, place_);
    return true;
  }
  return false;
}

void for_each_json_line(const fs::path& path, const UseJsonLine& use) {
  JsonLines lines(path);
  for (nlohmann::json value; lines.next(value);) use(value, lines.place(), lines.line_start());
}

void for_each_document(const fs::path& file, const UseDocument& use) {
  const auto [layout, gzip] = text_format(file).value_or(TextFormat{});
  switch (layout) {
    case TextLayout::plain:
      return use_plain_text(file, gzip, use);
    case TextLayout::json_lines:
      return use_json_lines(file, use);
    case TextLayout::json:
      return for_each_json_document(file, gzip, use);
  }
}

void add_text(std::span<const fs::path> files, const Tokenizer& tokenizer, TokenFileWriter& writer,
              const Logger& logger) {
  const auto eos = tokenizer.eos();
  if (!eos)
    throw DataError(fmt::format("{}: has no end-of-document token; add <|endoftext|> to its added_tokens",
                                tokenizer.where()));
  Tokenizer::Encoder encoder(tokenizer);
  std::vector<std::int32_t> ids;
  std::vector<fs::path> without;
  for (const fs::path& file : files) {
    const std::uint64_t before = writer.num_documents();
    for_each_document(file, [&](std::string_view text) {
      ids.clear();
      try {
        encoder.encode(text, ids);
      } catch (const DataError& error) {
        throw DataError(
            fmt::format("{}: cannot be tokenized: {}", printable(file.string(), 1000), error.what()));
      }
      ids.push_back(*eos);
      writer.add_document(ids);
    });
    if (writer.num_documents() == before) without.push_back(file);
  }
  if (writer.num_documents() == 0)
    throw DataError(fmt::format("the sources hold no document: {}", name_some(without)));
  if (!without.empty())
    logger.warning("{} of {} files hold no document: {}", without.size(), files.size(), name_some(without));
}

}  // namespace farskip
