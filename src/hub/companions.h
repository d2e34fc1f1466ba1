// SPDX-License-Identifier: Apache-2.0
#pragma once
// The files of a model folder that travel with its weights: tokenizer, templates, settings of generation.

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "farskip/model/model_config.h"

namespace farskip {

/// They are read once: the text that was checked is the text that is written.
struct Companions {
  std::map<std::string, std::string> texts;  // by file name
  std::optional<Tokenizer> tokenizer;        // of tokenizer.json
  std::string tokenizer_fault;               // why a tokenizer.json that is there cannot be used here
  std::vector<std::string> left_behind;      // what else the folder holds; none of it travels
};

/// Reads them from a model folder or checkpoint. Links and all but regular files are refused; tokenizer.json
/// must be the file of a tokenizer, other .json files an object, the rest UTF-8 text: DataError names the
/// file.
Companions read_companions(const std::filesystem::path& folder);
/// Those of `folder` (empty: none) with another tokenizer.json. Where that differs, the files that describe
/// the folder's own do not travel.
Companions read_companions(const std::filesystem::path& folder, const Tokenizer& tokenizer);

/// Tokens that end a text: eos_token_id of config.json together with that of generation_config.json; if
/// neither says any, the tokenizer's where the model has it. DataError where the two files contradict each
/// other (each has ids that the other has not), or name a token that is not in the vocabulary.
std::vector<std::int64_t> find_end_tokens(const ModelConfig& config, const Companions& companions);

/// How a model wants a conversation written: a template (jinja/template.h), and the tokens that it
/// names.
struct ChatTemplate {
  std::string text, where;
  std::string bos_token, eos_token;  // as texts; empty without one
};
/// Of chat_template.jinja, chat_template.json, or tokenizer_config.json, where of several the one called
/// "default" is taken. DataError for one that is no text.
std::optional<ChatTemplate> find_chat_template(const Companions& companions);

/// The token that stands before a text when nothing else does: bos_token of tokenizer_config.json, else its
/// eos_token, else the tokenizer's own end of a document. Nothing where the tokenizer lacks them all.
std::optional<std::int32_t> find_prefix_token(const Companions& companions);

}  // namespace farskip
