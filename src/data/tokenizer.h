// SPDX-License-Identifier: Apache-2.0
#pragma once
// Byte-level BPE tokenizers in the tokenizer.json format of the Hugging Face `tokenizers` library.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/base/file.h"

namespace farskip {

/// An immutable tokenizer; copies share it and any number of threads may use it.
class Tokenizer {
 public:
  /// Reads tokenizer.json. Every piece of the file is either understood or refused: DataError names the
  /// file, the key, the value and what is supported.
  static Tokenizer load(const fs::path& path);
  static Tokenizer from_json(std::string text, const std::string& where);

  /// Ids of `text`, without the tokens that the file's post-processor puts around it. Added tokens that
  /// occur in the text become their ids. Throws DataError (byte offset) if `text` is not well-formed UTF-8.
  std::vector<std::int32_t> encode(std::string_view text) const;
  /// With the tokens that the post-processor puts before a text (a begin token), which a model continues;
  /// once, if the text begins with them already.
  std::vector<std::int32_t> encode_prompt(std::string_view text) const;
  /// With the post-processor's tokens (for instance Llama 3's <|begin_of_text|>), where it has any.
  std::vector<std::int32_t> encode_with_special_tokens(std::string_view text) const;

  /// Text of `ids`; bytes that are not UTF-8 (a character cut in two) become U+FFFD. Throws DataError for
  /// an id without a token.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special_tokens = false) const;
  /// The bytes that one id stands for, as they are.
  std::string token_bytes(std::int32_t id, bool skip_special_tokens = false) const;

  /// Largest id + 1: what an embedding must have at least.
  std::int64_t vocab_size() const;
  /// Id of a token as the file spells it ("<|endoftext|>", "Ġthe").
  std::optional<std::int32_t> token_id(std::string_view token) const;
  /// The token that ends a document: the first of <|endoftext|>, <|end_of_text|>, <｜end▁of▁sentence｜>,
  /// </s>, <|eos|> and <eos> that is an added token of this file.
  std::optional<std::int32_t> eos() const;

  /// Bytes without a token of their own, ascending. They become the file's unk_token, or without one are left
  /// out, as in the library. Vocabularies that were cut to the bytes of a corpus lack control characters and
  /// the first bytes of planes that nothing is assigned in.
  std::vector<std::uint8_t> bytes_without_token() const;

  /// Errors name the tokenizer by this path, from which it was loaded.
  const std::string& where() const;
  /// The file's text: what was loaded is saved unchanged.
  const std::string& json() const;

  /// Encodes many texts on one thread, remembering words it has seen.
  class Encoder {
   public:
    explicit Encoder(const Tokenizer& tokenizer);
    Encoder(Encoder&&) noexcept;
    ~Encoder();
    /// Appends the ids of `text` to `ids`.
    void encode(std::string_view text, std::vector<std::int32_t>& ids);

   private:
    struct State;
    std::unique_ptr<State> state_;
  };

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

}  // namespace farskip
