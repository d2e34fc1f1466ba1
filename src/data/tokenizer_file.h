// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a tokenizer.json says, as typed values.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/added_tokens.h"
#include "data/bpe.h"
#include "data/pre_tokenizer.h"

namespace farskip {

struct TokenizerFile {
  std::vector<AddedToken> added_tokens;
  bool normalize_nfc = false;
  PreTokenizer pre_tokenizer;
  StringToId vocabulary;  // tokens in the byte alphabet
  BpeModel model;
  std::vector<std::int32_t> template_before, template_after;  // what the post-processor puts around a text
};

/// Throws DataError for anything that is wrong or not supported; `where` names the file.
TokenizerFile parse_tokenizer_file(std::string_view json, const std::string& where);

/// Writes a tokenizer.json: byte-level BPE, GPT-2 pre-tokenization, no normalizer, added special tokens.
/// `tokens[i]` is the token with id i, in the byte alphabet.
std::string write_tokenizer_file(const std::vector<std::string>& special_tokens,
                                 const std::vector<std::string>& tokens,
                                 const std::vector<std::pair<std::string, std::string>>& merges);

}  // namespace farskip
