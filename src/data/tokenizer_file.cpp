// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer_file.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "data/json_fields.h"
#include "farskip/base/error.h"
#include "farskip/base/file.h"
#include "tensor/strict_json.h"

namespace farskip {
namespace {

using nlohmann::json;

std::int32_t read_id(const json& value, const std::string& where) {
  constexpr std::uint64_t kLargest = std::numeric_limits<std::int32_t>::max() - 1;
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > kLargest)
    throw DataError(fmt::format("{}: a token id (0 to {}) is expected, found {}", where, kLargest,
                                printable(value.dump())));
  return value.get<std::int32_t>();
}

const json& require_array(JsonFields& fields, const std::string& key) {
  const json& value = fields.require(key);
  if (!value.is_array())
    throw DataError(fmt::format("{}: a list is expected, found {}", fields.at(key), value.type_name()));
  return value;
}

std::vector<AddedToken> read_added_tokens(const json& list, const std::string& where) {
  std::vector<AddedToken> tokens;
  for (std::size_t i = 0; i < list.size(); ++i) {
    JsonFields fields(list[i], fmt::format("{}[{}]", where, i));
    AddedToken token;
    token.id = read_id(fields.require("id"), fields.at("id"));
    token.content = fields.require_string("content");
    token.strip_left = fields.boolean_or("lstrip", false);
    token.strip_right = fields.boolean_or("rstrip", false);
    token.normalized = fields.boolean_or("normalized", false);
    token.special = fields.boolean_or("special", false);
    if (fields.boolean_or("single_word", false))
      throw DataError(fmt::format("{}: true is not supported, only false", fields.at("single_word")));
    fields.finish();
    if (token.content.empty()) throw DataError(fmt::format("{}: is empty", fields.at("content")));
    tokens.push_back(std::move(token));
  }
  return tokens;
}

/// True if text is brought to normal form C.
bool read_normalizer(const json& value, const std::string& where) {
  if (value.is_null()) return false;
  JsonFields fields(value, where);
  const std::string type = fields.require_string("type");
  bool nfc = type == "NFC";
  if (type == "Sequence") {
    const json& steps = require_array(fields, "normalizers");
    for (std::size_t i = 0; i < steps.size(); ++i)
      nfc = read_normalizer(steps[i], fmt::format("{}[{}]", fields.at("normalizers"), i)) || nfc;
  } else if (!nfc) {
    throw DataError(
        fmt::format("{}: normalizer \"{}\" is not supported; null, NFC and a Sequence of them are", where,
                    printable(type)));
  }
  fields.finish();
  return nfc;
}

void check_decoder(const json& value, const std::string& where) {
  JsonFields fields(value, where);
  if (const std::string type = fields.require_string("type"); type != "ByteLevel")
    throw DataError(fmt::format("{}: decoder \"{}\" is not supported; ByteLevel is", where, printable(type)));
  for (const char* key : {"add_prefix_space", "trim_offsets", "use_regex"})
    fields.boolean_or(key, true);  // no effect
  fields.finish();
}

/// One entry of a TemplateProcessing's "single": appends to before or after; true for the text's own place.
bool read_template_piece(const json& piece, const json& special_tokens, const std::string& where,
                         std::vector<std::int32_t>& ids) {
  JsonFields fields(piece, where);
  if (const json& text = fields.get("Sequence"); !text.is_null()) {
    JsonFields sequence(text, fields.at("Sequence"));
    sequence.require_string("id");
    sequence.get("type_id");
    sequence.finish();
    fields.finish();
    return true;
  }
  JsonFields token(fields.require("SpecialToken"), fields.at("SpecialToken"));
  const std::string name = token.require_string("id");
  token.get("type_id");
  token.finish();
  fields.finish();
  const auto entry = special_tokens.find(name);
  if (entry == special_tokens.end())
    throw DataError(fmt::format("{}: \"{}\" is not among special_tokens", where, printable(name)));
  JsonFields description(*entry, where + " " + name);
  for (const json& id : require_array(description, "ids")) ids.push_back(read_id(id, description.at("ids")));
  return false;
}

void read_post_processor(const json& value, const std::string& where, TokenizerFile& file) {
  if (value.is_null()) return;
  JsonFields fields(value, where);
  const std::string type = fields.require_string("type");
  if (type == "ByteLevel") {
    for (const char* key : {"add_prefix_space", "trim_offsets", "use_regex"})
      fields.boolean_or(key, true);  // no effect
  } else if (type == "Sequence") {
    const json& steps = require_array(fields, "processors");
    for (std::size_t i = 0; i < steps.size(); ++i)
      read_post_processor(steps[i], fmt::format("{}[{}]", fields.at("processors"), i), file);
  } else if (type == "TemplateProcessing") {
    fields.get("pair");  // for two texts at once, which nothing here encodes
    const json& special_tokens = fields.require("special_tokens");
    const json& pieces = require_array(fields, "single");
    bool seen_text = false;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const std::string place = fmt::format("{}[{}]", fields.at("single"), i);
      auto& ids = seen_text ? file.template_after : file.template_before;
      if (read_template_piece(pieces[i], special_tokens, place, ids)) {
        if (seen_text) throw DataError(fmt::format("{}: the text stands twice", place));
        seen_text = true;
      }
    }
    if (!seen_text) throw DataError(fmt::format("{}: the text has no place", fields.at("single")));
  } else {
    throw DataError(
        fmt::format("{}: post-processor \"{}\" is not supported; null, ByteLevel, TemplateProcessing and a "
                    "Sequence of them are",
                    where, printable(type)));
  }
  fields.finish();
}

std::vector<std::pair<std::string, std::string>> read_merges(const json& list, const std::string& where) {
  std::vector<std::pair<std::string, std::string>> merges;
  merges.reserve(list.size());
  for (std::size_t i = 0; i < list.size(); ++i) {
    const json& entry = list[i];
    if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
      merges.emplace_back(entry[0].get<std::string>(), entry[1].get<std::string>());
      continue;
    }
    const std::string text = entry.is_string() ? entry.get<std::string>() : "";
    const std::size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
      throw DataError(fmt::format("{}[{}]: \"left right\" or [\"left\", \"right\"] is expected, found {}",
                                  where, i, printable(entry.dump())));
    merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  return merges;
}

StringToId read_vocabulary(const json& object, const std::string& where) {
  StringToId vocabulary;
  if (!object.is_object()) throw DataError(fmt::format("{}: an object is expected", where));
  vocabulary.reserve(object.size());
  std::set<std::int32_t> ids;
  for (const auto& [token, value] : object.items()) {
    const std::int32_t id = read_id(value, fmt::format("{} \"{}\"", where, printable(token)));
    if (!ids.insert(id).second)
      throw DataError(
          fmt::format("{}: id {} belongs to two tokens, \"{}\" is one", where, id, printable(token)));
    vocabulary.emplace(token, id);
  }
  return vocabulary;
}

/// Reads "model" into the vocabulary and returns the merger.
BpeModel read_model(const json& value, const std::string& where, StringToId& vocabulary) {
  JsonFields fields(value, where);
  // Old files have no type.
  if (const json& type = fields.get("type"); !type.is_null() && type != "BPE")
    throw DataError(fmt::format("{}: model {} is not supported; BPE is", where, printable(type.dump())));
  if (const json& dropout = fields.get("dropout"); !dropout.is_null() && dropout != 0.0)
    throw DataError(
        fmt::format("{}: {} is not supported; null is", fields.at("dropout"), printable(dropout.dump())));
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (const json& affix = fields.get(key); !affix.is_null() && affix != "")
      throw DataError(
          fmt::format("{}: {} is not supported; null is", fields.at(key), printable(affix.dump())));
  if (fields.boolean_or("byte_fallback", false))
    throw DataError(fmt::format("{}: true is not supported: only byte-level vocabularies are",
                                fields.at("byte_fallback")));
  BpeOptions options;
  if (!fields.get("unk_token").is_null()) options.unknown = fields.require_string("unk_token");
  options.fuse_unknown = fields.boolean_or("fuse_unk", false);
  options.ignore_merges = fields.boolean_or("ignore_merges", false);
  vocabulary = read_vocabulary(fields.require("vocab"), fields.at("vocab"));
  const auto merges = read_merges(require_array(fields, "merges"), fields.at("merges"));
  fields.finish();
  return BpeModel(vocabulary, merges, options, where);
}

void check_added_tokens(const std::vector<AddedToken>& tokens, const StringToId& vocabulary,
                        const std::string& where) {
  std::unordered_map<std::int32_t, std::string> by_id;
  std::set<std::string> contents;
  for (const auto& [token, id] : vocabulary) by_id.emplace(id, token);
  for (const AddedToken& token : tokens) {
    const std::string name = printable(token.content);
    if (!contents.insert(token.content).second)
      throw DataError(fmt::format("{}: \"{}\" stands twice", where, name));
    const auto [entry, is_new] = by_id.emplace(token.id, token.content);
    if (!is_new && entry->second != token.content)
      throw DataError(fmt::format("{}: \"{}\" has id {}, which belongs to \"{}\"", where, name, token.id,
                                  printable(entry->second)));
    if (const auto in_model = vocabulary.find(token.content);
        in_model != vocabulary.end() && in_model->second != token.id)
      throw DataError(fmt::format("{}: \"{}\" has id {} here and {} in the model's vocabulary", where, name,
                                  token.id, in_model->second));
  }
}

}  // namespace

TokenizerFile parse_tokenizer_file(std::string_view text, const std::string& where) {
  const json root = parse_strict_json(text, where + ": not a tokenizer.json");
  if (root.is_object() && !root.contains("model"))
    throw DataError(fmt::format("{}: not a tokenizer.json: \"model\" is missing", where));
  JsonFields fields(root, where);
  if (const json& version = fields.get("version"); !version.is_null() && version != "1.0")
    throw DataError(
        fmt::format("{}: {} is not supported; \"1.0\" is", fields.at("version"), printable(version.dump())));
  fields.require_null("truncation", "texts are never cut");
  fields.require_null("padding", "texts are never padded");
  StringToId vocabulary;
  BpeModel model = read_model(fields.require("model"), fields.at("model"), vocabulary);
  TokenizerFile file{{},
                     read_normalizer(fields.get("normalizer"), fields.at("normalizer")),
                     PreTokenizer(fields.require("pre_tokenizer"), fields.at("pre_tokenizer")),
                     std::move(vocabulary),
                     std::move(model),
                     {},
                     {}};
  if (const json& list = fields.get("added_tokens"); list.is_array())
    file.added_tokens = read_added_tokens(list, fields.at("added_tokens"));
  else if (!list.is_null())
    throw DataError(fmt::format("{}: a list is expected", fields.at("added_tokens")));
  check_added_tokens(file.added_tokens, file.vocabulary, fields.at("added_tokens"));
  check_decoder(fields.require("decoder"), fields.at("decoder"));
  read_post_processor(fields.get("post_processor"), fields.at("post_processor"), file);
  fields.finish();
  return file;
}

std::string write_tokenizer_file(const std::vector<std::string>& special_tokens,
                                 const std::vector<std::string>& tokens,
                                 const std::vector<std::pair<std::string, std::string>>& merges) {
  using nlohmann::ordered_json;
  const ordered_json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  ordered_json added = ordered_json::array(), vocabulary = ordered_json::object(),
               pairs = ordered_json::array();
  for (std::size_t i = 0; i < tokens.size(); ++i) vocabulary.push_back({tokens[i], i});
  for (std::size_t i = 0; i < special_tokens.size(); ++i)
    added.push_back({{"id", i},
                     {"content", special_tokens[i]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  for (const auto& [left, right] : merges) pairs.push_back(ordered_json::array({left, right}));
  const ordered_json model = {{"type", "BPE"},
                              {"dropout", nullptr},
                              {"unk_token", nullptr},
                              {"continuing_subword_prefix", nullptr},
                              {"end_of_word_suffix", nullptr},
                              {"fuse_unk", false},
                              {"byte_fallback", false},
                              {"ignore_merges", false},
                              {"vocab", std::move(vocabulary)},
                              {"merges", std::move(pairs)}};
  const ordered_json root = {{"version", "1.0"},
                             {"truncation", nullptr},
                             {"padding", nullptr},
                             {"added_tokens", std::move(added)},
                             {"normalizer", nullptr},
                             {"pre_tokenizer", byte_level},
                             {"post_processor", nullptr},
                             {"decoder", byte_level},
                             {"model", model}};
  return root.dump(2) + "\n";
}

}  // namespace farskip
