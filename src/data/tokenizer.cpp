// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer.h"

#include <algorithm>

#include "base/stop_signals.h"
#include "data/tokenizer_file.h"
#include "data/unicode.h"
#include "farskip/base/error.h"

namespace farskip {
namespace {

struct TokenText {
  std::string bytes;
  bool present = false, special = false;
};

/// What the ByteLevel decoder makes of a token: its bytes, or its own text where it is not written in the
/// byte alphabet.
std::string decoded_bytes(const std::string& token) {
  std::string bytes;
  return from_byte_alphabet(token, bytes) ? bytes : token;
}

AddedTokenMatcher make_matcher(const TokenizerFile& file, bool normalized) {
  std::vector<AddedToken> tokens;
  std::vector<std::string> contents;
  for (const AddedToken& token : file.added_tokens) {
    if (token.normalized != normalized) continue;
    tokens.push_back(token);
    contents.push_back(normalized && file.normalize_nfc ? normalize_nfc(token.content) : token.content);
  }
  return AddedTokenMatcher(std::move(tokens), contents);
}

}  // namespace

struct Tokenizer::Impl {
  std::string json, where;
  TokenizerFile file;
  AddedTokenMatcher raw_tokens, normalized_tokens;
  std::vector<TokenText> texts;  // by id
  std::optional<std::int32_t> eos;

  Impl(std::string text, const std::string& place_of_file)
      : json(std::move(text)),
        where(place_of_file),
        file(parse_tokenizer_file(json, where)),
        raw_tokens(make_matcher(file, false)),
        normalized_tokens(make_matcher(file, true)) {
    const auto place = [&](std::int32_t id, const std::string& token, bool special) {
      if (static_cast<std::size_t>(id) >= texts.size()) texts.resize(static_cast<std::size_t>(id) + 1);
      texts[id] = {decoded_bytes(token), true, special};
    };
    check_ids_dense();
    for (const auto& [token, id] : file.vocabulary) place(id, token, false);
    for (const AddedToken& token : file.added_tokens) place(token.id, token.content, token.special);
    for (const char* name :
         {"<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<|eos|>", "<eos>"})
      for (const AddedToken& token : file.added_tokens)
        if (!eos && token.content == name) eos = token.id;
  }

  /// A table by id must not be larger than the file deserves.
  void check_ids_dense() const {
    std::int64_t largest = 0;
    for (const auto& [token, id] : file.vocabulary) largest = std::max<std::int64_t>(largest, id);
    for (const AddedToken& token : file.added_tokens) largest = std::max<std::int64_t>(largest, token.id);
    const auto count = static_cast<std::int64_t>(file.vocabulary.size() + file.added_tokens.size());
    if (largest > 2 * count + 100'000)
      throw DataError(fmt::format("{}: token id {} in a vocabulary of {} tokens", where, largest, count));
  }

  const TokenText& text_of(std::int32_t id) const {
    if (id < 0 || static_cast<std::size_t>(id) >= texts.size() || !texts[id].present)
      throw DataError(
          fmt::format("token id {} has no token; the tokenizer's ids are below {}", id, texts.size()));
    return texts[id];
  }
};

struct Tokenizer::Encoder::State {
  std::shared_ptr<const Impl> impl;
  PreTokenizer::Splitter splitter;
  struct Span {
    std::uint32_t begin, count;
  };
  std::unordered_map<std::string, Span, StringHash, std::equal_to<>> words;
  std::vector<std::int32_t> word_ids;  // of all remembered words

  explicit State(std::shared_ptr<const Impl> shared)
      : impl(std::move(shared)), splitter(impl->file.pre_tokenizer) {}

  void encode_word(std::string_view word, std::vector<std::int32_t>& ids) {
    constexpr std::size_t kMaxWordBytes = 64, kMaxRememberedIds = std::size_t{8} << 20;
    if (word.size() > kMaxWordBytes) return impl->file.model.encode_word(word, ids);
    if (const auto known = words.find(word); known != words.end()) {
      const auto first = word_ids.begin() + known->second.begin;
      ids.insert(ids.end(), first, first + known->second.count);
      return;
    }
    if (word_ids.size() > kMaxRememberedIds) {
      words.clear();
      word_ids.clear();
    }
    const std::size_t before = ids.size();
    impl->file.model.encode_word(word, ids);
    words.emplace(word, Span{static_cast<std::uint32_t>(word_ids.size()),
                             static_cast<std::uint32_t>(ids.size() - before)});
    word_ids.insert(word_ids.end(), ids.begin() + static_cast<std::ptrdiff_t>(before), ids.end());
  }

  void encode_plain(std::string_view text, std::vector<std::int32_t>& ids) {
    splitter.split(text, [&](std::string_view word) {
      leave_if_asked();
      encode_word(word, ids);
    });
  }
};

Tokenizer::Encoder::Encoder(const Tokenizer& tokenizer) : state_(std::make_unique<State>(tokenizer.impl_)) {}
Tokenizer::Encoder::Encoder(Encoder&&) noexcept = default;
Tokenizer::Encoder::~Encoder() = default;

void Tokenizer::Encoder::encode(std::string_view text, std::vector<std::int32_t>& ids) {
  if (const auto bad = find_invalid_utf8(text))
    throw DataError(fmt::format("text is not UTF-8: byte {:#04x} at offset {}",
                                static_cast<unsigned char>(text[*bad]), *bad));
  const Impl& impl = *state_->impl;
  for (const auto& piece : impl.raw_tokens.split(text)) {
    if (piece.id >= 0) {
      ids.push_back(piece.id);
      continue;
    }
    std::string normalized;
    std::string_view plain = piece.text;
    if (impl.file.normalize_nfc) plain = normalized = normalize_nfc(piece.text);
    for (const auto& part : impl.normalized_tokens.split(plain)) {
      if (part.id >= 0)
        ids.push_back(part.id);
      else
        state_->encode_plain(part.text, ids);
    }
  }
}

Tokenizer Tokenizer::load(const fs::path& path) {
  return from_json(read_text_file(path), path.string());
}

Tokenizer Tokenizer::from_json(std::string text, const std::string& where) {
  Tokenizer tokenizer;
  tokenizer.impl_ = std::make_shared<Impl>(std::move(text), where);
  return tokenizer;
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> ids;
  Encoder(*this).encode(text, ids);
  return ids;
}

std::vector<std::int32_t> Tokenizer::encode_prompt(std::string_view text) const {
  std::vector<std::int32_t> ids = encode(text);
  const std::vector<std::int32_t>& before = impl_->file.template_before;
  const bool begun = ids.size() >= before.size() && std::equal(before.begin(), before.end(), ids.begin());
  if (!begun) ids.insert(ids.begin(), before.begin(), before.end());
  return ids;
}

std::vector<std::int32_t> Tokenizer::encode_with_special_tokens(std::string_view text) const {
  std::vector<std::int32_t> ids = impl_->file.template_before;
  Encoder(*this).encode(text, ids);
  ids.insert(ids.end(), impl_->file.template_after.begin(), impl_->file.template_after.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special_tokens) const {
  std::string bytes;
  for (const std::int32_t id : ids) bytes += token_bytes(id, skip_special_tokens);
  return replace_invalid_utf8(bytes);
}

std::string Tokenizer::token_bytes(std::int32_t id, bool skip_special_tokens) const {
  const TokenText& text = impl_->text_of(id);
  return skip_special_tokens && text.special ? std::string() : text.bytes;
}

std::int64_t Tokenizer::vocab_size() const {
  return static_cast<std::int64_t>(impl_->texts.size());
}

std::optional<std::int32_t> Tokenizer::token_id(std::string_view token) const {
  for (const AddedToken& added : impl_->file.added_tokens)
    if (added.content == token) return added.id;
  const auto entry = impl_->file.vocabulary.find(token);
  return entry == impl_->file.vocabulary.end() ? std::nullopt : std::optional(entry->second);
}

std::optional<std::int32_t> Tokenizer::eos() const {
  return impl_->eos;
}

std::vector<std::uint8_t> Tokenizer::bytes_without_token() const {
  return impl_->file.model.bytes_without_token();
}

const std::string& Tokenizer::where() const {
  return impl_->where;
}

const std::string& Tokenizer::json() const {
  return impl_->json;
}

}  // namespace farskip
