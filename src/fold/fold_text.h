// SPDX-License-Identifier: Apache-2.0
#pragma once
// The sequences that a fold looks at.

#include <optional>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "farskip/base/log.h"
#include "farskip/model/model_config.h"

namespace farskip {

struct FoldTextOptions {
  std::string source;                // prefix of token files, or a text file, or a folder of them
  std::int64_t sequences = 512;      // at most
  std::int64_t sequence_length = 0;  // 0: kFoldLength, or the model's context where that is shorter
  std::string option = "--fold";     // that names the source, for messages
  int rank = 0, ranks = 1;           // over which the sequences are dealt out
};
inline constexpr std::int64_t kFoldLength = 1024;

/// Sequences of S tokens of one rank: those that weights are fitted to, then those held out, by which losses
/// are measured. Each rank has as many.
struct FoldText {
  std::vector<std::int32_t> tokens, targets;  // [(fitted + held_out) * S], targets the next tokens
  std::int64_t sequence_length = 0;
  std::int64_t fitted = 0, held_out = 0;
  std::int64_t at_once = 1;  // sequences that are computed together; divides both numbers

  std::int64_t sequences() const { return fitted + held_out; }
};

/// Sequences spread evenly over the source, the n-th of those the S tokens from n S on, with the token behind
/// them. One of 16 is held out, of fewer than 16 a rank one for each rank; with a single sequence a rank
/// losses are measured on it, which a warning says, and so does a source with fewer sequences than are asked
/// for. Some are left out where at_once would not divide their number. `tokenizer`: of text.
///
/// UsageError for a length beyond the model's context, and for text without a tokenizer; MissingInputError
/// where there is no source; DataError for a source without a sequence for each rank, and for a token that
/// the model does not have.
FoldText read_fold_text(const FoldTextOptions& options, const ModelConfig& model,
                        const std::optional<Tokenizer>& tokenizer, const Logger& logger);

}  // namespace farskip
