// SPDX-License-Identifier: Apache-2.0
#pragma once
// Learning a byte-level BPE vocabulary from text.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace farskip {

struct BpeTrainerOptions {
  std::int64_t vocab_size = 4096;                            // with the special tokens and the 256 bytes
  std::vector<std::string> special_tokens{"<|endoftext|>"};  // ids 0, 1, …
  std::int64_t min_frequency = 2;                            // pairs seen less often are not merged
};

/// Counts words (GPT-2 pre-tokenization) and merges the most frequent pair of neighbours again and again;
/// among equally frequent pairs, that with the smaller left id, then the smaller right id. The result
/// depends on the texts only, not on their order.
class BpeTrainer {
 public:
  BpeTrainer();
  ~BpeTrainer();
  BpeTrainer(const BpeTrainer&) = delete;
  BpeTrainer& operator=(const BpeTrainer&) = delete;

  /// Throws DataError (byte offset) if `text` is not UTF-8. Special tokens in it count as plain text.
  void add_text(std::string_view text);

  /// Throws UsageError if vocab_size leaves no room for the bytes and the special tokens. The vocabulary
  /// is smaller than asked for when the text runs out of pairs.
  Tokenizer train(const BpeTrainerOptions& options) const;

 private:
  struct Words;
  std::unique_ptr<Words> words_;
};

}  // namespace farskip
