// SPDX-License-Identifier: Apache-2.0
#include "hub/companions.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/folder.h"
#include "data/unicode.h"
#include "model/family.h"
#include "tensor/strict_json.h"

namespace farskip {
namespace {

constexpr const char* kTokenizer = "tokenizer.json";
constexpr const char* kTokenizerConfig = "tokenizer_config.json";
constexpr const char* kGeneration = "generation_config.json";
constexpr const char *kChatTemplate = "chat_template.jinja", *kChatTemplateJson = "chat_template.json";
constexpr const char* kTravelling[] = {
    kTokenizer,   kTokenizerConfig, "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", kGeneration,      kChatTemplateJson,         kChatTemplate,       "LICENSE"};
constexpr std::uint64_t kMaxBytes = 256 << 20;

/// Written anew for the model that leaves, or of the folder alone.
bool is_rewritten(const std::string& name) {
  const bool weights = name.starts_with("model") && name.find(".safetensors") != std::string::npos;
  return weights || name.starts_with('.') || name == "config.json" || name == "manifest.json" ||
         name == "model.manifest.json";
}

nlohmann::json parse_object(const std::string& text, const std::string& where) {
  nlohmann::json value = parse_strict_json(text, where);
  if (!value.is_object())
    throw DataError(fmt::format("{}: an object is expected, found {}", where, value.type_name()));
  return value;
}

/// A tokenizer of a kind that is not built travels all the same, but nothing else called by its name.
void read_tokenizer(const std::string& text, const std::string& where, Companions& companions) {
  try {
    companions.tokenizer = Tokenizer::from_json(text, where);
  } catch (const DataError& fault) {
    const nlohmann::json file = parse_object(text, where);
    if (!file.contains("model") || !file["model"].is_object()) throw;
    companions.tokenizer_fault = fault.what();
  }
}

void check_content(const std::string& name, const std::string& text, const std::string& where,
                   Companions& companions) {
  if (name == kTokenizer)
    read_tokenizer(text, where, companions);
  else if (name.ends_with(".json"))
    parse_object(text, where);
  else if (const auto bad = find_invalid_utf8(text))
    throw DataError(fmt::format("{}: not UTF-8 text: byte {:#04x} at offset {}", where,
                                static_cast<unsigned char>(text[*bad]), *bad));
}

std::vector<std::int64_t> read_ids(const nlohmann::json& value, const std::string& where) {
  std::vector<std::int64_t> ids;
  if (value.is_null()) return ids;
  for (const nlohmann::json& id : value.is_array() ? value : nlohmann::json::array({value})) {
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() > INT32_MAX)
      throw DataError(
          fmt::format("{}: eos_token_id: {} is no token id; allowed: an integer from 0 on, or a "
                      "list of them",
                      where, printable(id.dump())));
    ids.push_back(id.get<std::int64_t>());
  }
  return ids;
}

/// The config that is written with such an id could not be read again.
void check_in_vocabulary(const std::vector<std::int64_t>& ids, const ModelConfig& config) {
  for (const std::int64_t id : ids)
    if (config.vocab_size > 0 && id >= config.vocab_size)
      throw DataError(
          fmt::format("{}: eos_token_id: {} is out of range; allowed: 0 to {}, the model's vocabulary",
                      kGeneration, id, config.vocab_size - 1));
}

bool contains_all(const std::vector<std::int64_t>& ids, const std::vector<std::int64_t>& wanted) {
  return std::all_of(wanted.begin(), wanted.end(),
                     [&](std::int64_t id) { return std::find(ids.begin(), ids.end(), id) != ids.end(); });
}

}  // namespace

Companions read_companions(const std::filesystem::path& folder) {
  Companions companions;
  for (const char* name : kTravelling)
    if (std::optional<std::string> text = read_if_inside(folder, name, kMaxBytes)) {
      check_content(name, *text, (folder / name).string(), companions);
      companions.texts.emplace(name, *std::move(text));
    }
  for (const std::string& name : list_entries(folder))
    if (!companions.texts.contains(name) && !is_rewritten(name)) companions.left_behind.push_back(name);
  return companions;
}

Companions read_companions(const std::filesystem::path& folder, const Tokenizer& tokenizer) {
  Companions companions = folder.empty() ? Companions{} : read_companions(folder);
  std::string& text = companions.texts[kTokenizer];
  if (text == tokenizer.json()) return companions;
  companions = {};
  companions.texts[kTokenizer] = tokenizer.json();
  companions.tokenizer = tokenizer;
  return companions;
}

std::vector<std::int64_t> find_end_tokens(const ModelConfig& config, const Companions& companions) {
  std::vector<std::int64_t> ids = config.eos_tokens;
  if (const auto file = companions.texts.find(kGeneration); file != companions.texts.end()) {
    std::vector<std::int64_t> more = read_ids(
        parse_object(file->second, kGeneration).value("eos_token_id", nlohmann::json()), kGeneration);
    const Family* const family = find_family(config.family);
    if (family != nullptr && family->class_end_token && *family->class_end_token >= config.vocab_size)
      std::erase(more, *family->class_end_token);
    check_in_vocabulary(more, config);
    if (!contains_all(ids, more) && !contains_all(more, ids))
      throw DataError(fmt::format(
          "eos_token_id is [{}] in config.json and [{}] in {}, and each has ids that the other has "
          "not; make them agree, or remove one of them",
          fmt::join(ids, ", "), fmt::join(more, ", "), kGeneration));
    if (contains_all(more, ids)) ids = more;
  }
  if (ids.empty() && companions.tokenizer)
    if (const auto eos = companions.tokenizer->eos();
        eos && (config.vocab_size == 0 || *eos < config.vocab_size))
      ids.push_back(*eos);
  return ids;
}

namespace {

/// An object of a file of the folder; an empty one where there is no such file.
nlohmann::json read_object(const Companions& companions, const char* name) {
  const auto file = companions.texts.find(name);
  return file == companions.texts.end() ? nlohmann::json::object() : parse_object(file->second, name);
}

/// A token that tokenizer_config.json names, as a text; empty where it names none.
std::string named_token(const nlohmann::json& config, const char* key) {
  nlohmann::json token = config.value(key, nlohmann::json());
  if (token.is_object()) token = token.value("content", nlohmann::json());  // an added token, written out
  return token.is_string() ? token.get<std::string>() : std::string();
}

/// Of a value that is the text, or a list of {"name", "template"}.
std::string template_text(const nlohmann::json& value, const char* file) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_array())
    for (const nlohmann::json& one : value)
      if (one.is_object() && one.value("name", nlohmann::json()) == "default")
        return template_text(one.value("template", nlohmann::json()), file);
  throw DataError(
      fmt::format("{}: chat_template: a text is expected, or a list with one called \"default\"", file));
}

}  // namespace

std::optional<std::int32_t> find_prefix_token(const Companions& companions) {
  const Tokenizer& tokenizer = companions.tokenizer.value();
  const nlohmann::json config = read_object(companions, kTokenizerConfig);
  for (const char* key : {"bos_token", "eos_token"})
    if (const auto id = tokenizer.token_id(named_token(config, key))) return id;
  return tokenizer.eos();
}

std::optional<ChatTemplate> find_chat_template(const Companions& companions) {
  const nlohmann::json config = read_object(companions, kTokenizerConfig);
  ChatTemplate found{{}, kChatTemplate, named_token(config, "bos_token"), named_token(config, "eos_token")};
  if (const auto file = companions.texts.find(kChatTemplate); file != companions.texts.end()) {
    found.text = file->second;
    return found;
  }
  for (const char* name : {kChatTemplateJson, kTokenizerConfig}) {
    const nlohmann::json object = read_object(companions, name);
    if (!object.contains("chat_template")) continue;
    found.text = template_text(object["chat_template"], name);
    found.where = name;
    return found;
  }
  return std::nullopt;
}

}  // namespace farskip
