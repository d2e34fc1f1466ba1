// SPDX-License-Identifier: Apache-2.0
#include "infer/text_journal.h"

#include <nlohmann/json.hpp>

#include "data/text_stream.h"
#include "farskip/base/error.h"
#include "tensor/strict_json.h"

namespace farskip {
namespace {

constexpr const char* kAsked = "texts_of";

[[noreturn]] void refuse(const fs::path& path, std::int64_t line, std::string_view why) {
  throw DataError(fmt::format("{}:{}: {}; remove the file to begin anew, or name another prefix",
                              path.string(), line, why));
}

std::vector<std::int32_t> tokens_of(std::string_view line, const fs::path& path, std::int64_t number) {
  const nlohmann::json object = parse_strict_json(line, fmt::format("{}:{}", path.string(), number));
  if (!object.is_object() || !object.contains("tokens") || !object["tokens"].is_array())
    refuse(path, number, "is no text");
  for (const nlohmann::json& id : object["tokens"])
    if (!id.is_number_integer()) refuse(path, number, "holds what is no token");
  return object["tokens"].get<std::vector<std::int32_t>>();
}

/// Calls use(line, number) for each whole line. Returns the bytes of these.
template <class F>
std::uint64_t for_each_line(const fs::path& path, const F& use) {
  LineReader lines(path, false);
  std::string_view line;
  std::uint64_t whole = 0;
  const std::uint64_t size = fs::file_size(path);
  for (std::int64_t number = 1; lines.next(line); ++number) {
    const std::uint64_t end = lines.line_start() + line.size() + 1;
    if (end > size) break;  // cut off while it was written
    use(line, number);
    whole = end;
  }
  return whole;
}

}  // namespace

TextJournal::TextJournal(const std::string& prefix, const std::string& asked)
    : prefix_(prefix), path_(prefix + ".partial.jsonl") {
  const std::string header = nlohmann::json{{kAsked, asked}}.dump();
  for (const char* suffix : {".bin", ".idx"})
    if (!fs::exists(path_) && fs::exists(prefix + suffix))
      throw UsageError(fmt::format("{}{} exists already; remove it, or name another prefix", prefix, suffix));
  file_ = std::make_unique<AppendFile>(path_);  // from here on no other process writes it
  const std::uint64_t whole = for_each_line(path_, [&](std::string_view line, std::int64_t number) {
    if (number == 1 && line != header)
      refuse(path_, 1, "was begun with another model, other prompts or other settings");
    if (number > 1) tokens_of(line, path_, number);
    num_texts_ = number - 1;
  });
  std::error_code failure;
  fs::resize_file(path_, whole, failure);
  if (failure) throw IoError(fmt::format("{}: cannot cut: {}", path_.string(), failure.message()));
  if (whole == 0) file_->append(header + "\n");
}

void TextJournal::add(std::span<const std::int32_t> tokens) {
  file_->append(nlohmann::json{{"tokens", tokens}}.dump() + "\n");
  ++num_texts_;
}

std::uint64_t TextJournal::finish(std::int64_t vocab_size) {
  TokenFileWriter writer(prefix_, token_type_for(vocab_size));
  for_each_line(path_, [&](std::string_view line, std::int64_t number) {
    if (number > 1) writer.add_document(tokens_of(line, path_, number));
  });
  writer.commit();
  file_.reset();
  fs::remove(path_);
  return writer.num_tokens();
}

}  // namespace farskip
