// SPDX-License-Identifier: Apache-2.0
#include "fold/fold_text.h"

#include <algorithm>

#include "data/text_source.h"
#include "data/token_file.h"

namespace farskip {
namespace {

constexpr std::int64_t kHeldOutOf = 16;       // one sequence of so many
constexpr std::int64_t kTokensAtOnce = 8192;  // at most

std::int64_t choose_length(const FoldTextOptions& options, const ModelConfig& model) {
  if (options.sequence_length == 0) return std::min(kFoldLength, model.max_positions);
  if (options.sequence_length > model.max_positions)
    throw UsageError(
        fmt::format("--sequence-length {}: the model's max_position_embeddings is {}; give at most that",
                    options.sequence_length, model.max_positions));
  return options.sequence_length;
}

/// Text becomes token files in `folder`.
TokenFile open_source(const FoldTextOptions& options, const fs::path& folder, const ModelConfig& model,
                      const std::optional<Tokenizer>& tokenizer, const Logger& logger) {
  const std::string& source = options.source;
  if (fs::exists(source + ".idx")) return TokenFile(source, model.vocab_size);
  const std::vector<fs::path> sources{source};
  const std::vector<fs::path> files = list_text_files(sources, logger);
  if (!tokenizer)
    throw UsageError(
        fmt::format("{} {}: text needs a tokenizer, and the model's folder has none that can be used; "
                    "give token files (PREFIX.bin, PREFIX.idx)",
                    options.option, source));
  TokenFileWriter writer((folder / "tokens").string(), token_type_for(tokenizer->vocab_size()));
  add_text(files, *tokenizer, writer, logger);
  writer.commit();
  return TokenFile(writer.prefix(), model.vocab_size);
}

bool is_held_out(std::int64_t sequence, std::int64_t of, std::int64_t ranks) {
  const std::int64_t apart = std::min(of / ranks, kHeldOutOf);
  return apart > 1 && sequence % apart == apart - 1;
}

std::int64_t choose_at_once(std::int64_t sequence_length, std::int64_t most) {
  return std::clamp<std::int64_t>(kTokensAtOnce / sequence_length, 1, most);
}

/// Sequence number `n` of the source goes behind the others.
void append_sequence(const TokenFile& source, std::int64_t n, FoldText& text) {
  const std::int64_t length = text.sequence_length;
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(length + 1));
  source.read(static_cast<std::uint64_t>(n * length), tokens.size(), tokens.data());
  text.tokens.insert(text.tokens.end(), tokens.begin(), tokens.end() - 1);
  text.targets.insert(text.targets.end(), tokens.begin() + 1, tokens.end());
}

/// A rank's share of these sequences. Returns its number: a multiple of those that are computed together.
std::int64_t append_share(const TokenFile& source, const std::vector<std::int64_t>& numbers,
                          const FoldTextOptions& options, FoldText& text) {
  const std::int64_t all = static_cast<std::int64_t>(numbers.size()) / options.ranks;
  const std::int64_t count = all / text.at_once * text.at_once;
  for (std::int64_t i = 0; i < count; ++i)
    append_sequence(source, numbers[static_cast<std::size_t>(options.rank * count + i)], text);
  return count;
}

fs::path folder_for_temporaries() {
  std::error_code failure;
  fs::path folder = fs::temp_directory_path(failure);
  if (failure)
    throw IoError(fmt::format(
        "the folder for temporary files cannot be used: {}; set TMPDIR to a folder that can be written",
        failure.message()));
  return folder;
}

}  // namespace

FoldText read_fold_text(const FoldTextOptions& options, const ModelConfig& model,
                        const std::optional<Tokenizer>& tokenizer, const Logger& logger) {
  FoldText text;
  text.sequence_length = choose_length(options, model);
  const OutputFolder folder(folder_for_temporaries() / "farskip-fold");  // never committed
  const TokenFile source = open_source(options, folder.temporary(), model, tokenizer, logger);
  const auto tokens = static_cast<std::int64_t>(source.num_tokens());
  const std::int64_t there = std::max<std::int64_t>(tokens - 1, 0) / text.sequence_length;
  if (there == 0)
    throw DataError(fmt::format(
        "{} {}: {} tokens, and one sequence takes {}; give more text, or a smaller sequence length",
        options.option, options.source, tokens, text.sequence_length + 1));
  const std::int64_t taken = std::min(there, options.sequences);
  if (taken < options.ranks)
    throw DataError(fmt::format(
        "{} {}: {} sequences of {} tokens for {} ranks, each of which takes one at least; give {}, "
        "or fewer ranks",
        options.option, options.source, taken, text.sequence_length, options.ranks,
        there < options.ranks ? "more text, a smaller sequence length" : "more sequences"));
  if (taken < options.sequences)
    logger.warning("{} {}: {} of {} sequences, since the text has {} tokens; more text folds better",
                   options.option, options.source, taken, options.sequences, tokens);
  if (taken < 2 * options.ranks)
    logger.warning(
        "{} {}: a sequence of each rank is fitted, and none held out: losses are those of the fitted",
        options.option, options.source);
  std::vector<std::int64_t> fitted, held_out;
  for (std::int64_t i = 0; i < taken; ++i)
    (is_held_out(i, taken, options.ranks) ? held_out : fitted).push_back(i * there / taken);
  const std::size_t fewest = held_out.empty() ? fitted.size() : held_out.size();
  text.at_once = choose_at_once(text.sequence_length, static_cast<std::int64_t>(fewest) / options.ranks);
  text.fitted = append_share(source, fitted, options, text);
  text.held_out = append_share(source, held_out, options, text);
  return text;
}

}  // namespace farskip
