// SPDX-License-Identifier: Apache-2.0
#pragma once
// The text of tokens that come one by one, up to where it is sure to stay as it is.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace farskip {

/// Two things make text wait for the next token: a character whose last bytes have not come, and what may be
/// the beginning of a stop string. Stop strings are found wherever tokens begin and end.
class GrowingText {
 public:
  /// Without a tokenizer there is no text, and each token is settled at once.
  GrowingText(std::optional<Tokenizer> tokenizer, std::vector<std::string> stop);

  /// Adds a token. True where a stop string has come: the text ends before it, and takes no more tokens.
  bool add(std::int32_t id);
  /// No token follows: what waits stays as it is.
  void finish();

  /// What has been settled since the last call: text as Tokenizer::decode gives it, without special tokens.
  std::string take_text();
  /// Tokens, of those added, that end in settled text. Those that reach into a stop string never are.
  std::int64_t num_settled() const { return num_settled_; }

 private:
  bool cut_at_stop(std::size_t searched);
  std::size_t num_sure_bytes() const;
  void settle(std::size_t bytes);

  std::optional<Tokenizer> tokenizer_;
  std::vector<std::string> stop_;
  std::size_t longest_stop_ = 0;
  std::string bytes_;                    // of all tokens, less what was taken
  std::size_t settled_ = 0, taken_ = 0;  // bytes of the whole text
  std::vector<std::size_t> ends_;        // of tokens, in the whole text
  std::int64_t num_settled_ = 0;
};

}  // namespace farskip
