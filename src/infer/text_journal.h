// SPDX-License-Identifier: Apache-2.0
#pragma once
// Generated texts on their way into a token file: a job that was ended goes on where it was.

#include <memory>
#include <span>
#include <string>

#include "data/token_file.h"

namespace farskip {

/// PREFIX.partial.jsonl: a line that says what was asked for, then one of each text, in order. finish() makes
/// PREFIX.bin and PREFIX.idx of it.
class TextJournal {
 public:
  /// `asked`: of everything that the texts depend on. DataError where the file is there and was begun for
  /// something else, or is no journal; UsageError where there is a token file and no journal; IoError where
  /// another process writes it. A last line without an end is left out.
  TextJournal(const std::string& prefix, const std::string& asked);

  /// Texts that are there: of the first requests.
  std::int64_t num_texts() const { return num_texts_; }
  void add(std::span<const std::int32_t> tokens);
  /// Writes the token file and removes the journal. Returns the number of tokens.
  std::uint64_t finish(std::int64_t vocab_size);

 private:
  std::string prefix_;
  fs::path path_;
  std::int64_t num_texts_ = 0;
  std::unique_ptr<AppendFile> file_;
};

}  // namespace farskip
