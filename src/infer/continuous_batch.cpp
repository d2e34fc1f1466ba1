// SPDX-License-Identifier: Apache-2.0
#include "infer/continuous_batch.h"

#include <algorithm>
#include <cmath>

#include "infer/growing_text.h"
#include "infer/token_scores.h"

namespace farskip {
namespace {

constexpr std::int64_t kMostScoredLogits = 1 << 25;  // 128 MiB

void mark(std::vector<std::uint32_t>& seen, std::int32_t id) {
  seen[static_cast<std::size_t>(id) / 32] |= 1U << (static_cast<unsigned>(id) % 32U);
}

}  // namespace

void check_request(const GenerationRequest& request, const ModelConfig& model, const CacheSize& size) {
  const auto length = static_cast<std::int64_t>(request.prompt.size());
  if (length == 0) throw UsageError("a prompt is empty; give at least one token");
  const std::int64_t positions = model.max_positions;
  if (length + std::min<std::int64_t>(request.max_tokens, 1) > positions)
    throw UsageError(
        fmt::format("the prompt has {} tokens and the model's max_position_embeddings is {}, so there is no "
                    "room for {}; shorten the prompt",
                    length, positions, request.max_tokens > 0 ? "a new token" : "all of it"));
  // A text alone always fits, so that the oldest one never waits for room.
  const std::int64_t most = std::min(size.max_tokens, size.num_blocks * size.block_tokens);
  const std::int64_t whole = std::min(length + request.max_tokens, positions);
  if (whole > most)
    throw UsageError(
        fmt::format("a prompt of {} tokens and {} new ones may take {} of the cache, which holds {} of a "
                    "text; ask for fewer, or give the cache more memory",
                    length, request.max_tokens, whole, most));
}

/// A text that is continued, or waits to be.
struct ContinuousBatch::Sequence {
  Sequence(std::int64_t its_number, GenerationRequest asked, const std::optional<Tokenizer>& tokenizer,
           std::int64_t vocab_size)
      : number(its_number), request(std::move(asked)), tokens(request.prompt), text(tokenizer, request.stop) {
    if (request.sampling.repetition_penalty == 1.0) return;
    seen.resize(static_cast<std::size_t>((vocab_size + 31) / 32));
    for (const std::int32_t id : tokens) mark(seen, id);
  }

  std::int64_t number;
  GenerationRequest request;
  std::vector<std::int32_t> tokens;  // prompt, then what was generated
  std::int64_t num_read = 0;         // of them, in the cache
  std::int64_t slot = -1;
  std::vector<std::int32_t> blocks{};
  std::vector<std::uint32_t> seen{};  // bits of ids in the text, where a penalty asks for them
  GrowingText text;
  std::vector<TokenScore> scores{};    // of what was generated
  std::int64_t num_prompt_scores = 0;  // that have been computed
  bool is_finite = true;               // all logits that were looked at are
  GeneratedPart next{};                // which nobody has been told of
  Generated made{};                    // everything else

  std::int64_t num_generated() const {
    return static_cast<std::int64_t>(tokens.size() - request.prompt.size());
  }
  std::int64_t num_unread() const { return static_cast<std::int64_t>(tokens.size()) - num_read; }
  /// Whether the logits after the token at this position score the next one of the prompt.
  bool is_scored(std::int64_t position) const {
    return request.score_prompt && position >= num_prompt_scores &&
           position + 1 < static_cast<std::int64_t>(request.prompt.size());
  }
  bool has_unscored() const { return is_scored(static_cast<std::int64_t>(request.prompt.size()) - 2); }

  /// Gives what is settled to whoever listens.
  void pass_on() {
    const auto first = static_cast<std::ptrdiff_t>(made.ids.size()), end = std::ptrdiff_t{text.num_settled()};
    next.text = text.take_text();
    const auto begin = tokens.begin() + static_cast<std::ptrdiff_t>(request.prompt.size());
    next.ids.assign(begin + first, begin + end);
    if (request.num_likely) next.scores.assign(scores.begin() + first, scores.begin() + end);
    if (next.empty()) return;
    if (request.on_part) request.on_part(next);
    made += next;
    next = {};
  }
};

/// What is read at once.
struct ContinuousBatch::Run {
  CachedTokens tokens{};
  // Of each output row: what is drawn, which sequence it belongs to, and whether it is there to score the
  // prompt, not to continue it.
  std::vector<Draw> draws{};
  std::vector<Sequence*> owners{};
  std::vector<bool> scores_prompt{};
  std::int64_t num_scored = 0;

  void score(CachedEngine& engine, const std::vector<std::int32_t>& drawn);
};

ContinuousBatch::ContinuousBatch(CachedEngine& engine, ContinuousBatchOptions options)
    : engine_(engine),
      options_(std::move(options)),
      max_scored_rows_(std::max<std::int64_t>(1, kMostScoredLogits / engine.config().vocab_size)),
      pool_(engine.size().num_blocks) {
  for (std::int64_t slot = engine.size().max_sequences; slot-- > 0;) free_slots_.push_back(slot);
}

ContinuousBatch::~ContinuousBatch() = default;

std::int64_t ContinuousBatch::num_blocks(std::int64_t tokens) const {
  return (tokens + engine_.size().block_tokens - 1) / engine_.size().block_tokens;
}

std::int64_t ContinuousBatch::submit(GenerationRequest request) {
  check_request(request, engine_.config(), engine_.size());
  waiting_.push_back(std::make_unique<Sequence>(num_submitted_, std::move(request), options_.tokenizer,
                                                engine_.config().vocab_size));
  return num_submitted_++;
}

void ContinuousBatch::cancel(std::int64_t request) {
  const auto is_it = [&](const SequencePointer& s) { return s->number == request; };
  std::erase_if(waiting_, is_it);
  const auto it = std::find_if(active_.begin(), active_.end(), is_it);
  if (it == active_.end()) return;
  release(**it);
  active_.erase(it);
}

// Only while there is room for a whole prompt: a text that has to give back its blocks soon was read for
// nothing.
void ContinuousBatch::admit() {
  // Blocks that nobody has and nobody needs for what it has still to read.
  std::int64_t free = pool_.num_free();
  const auto missing = [&](const Sequence& s) {
    return num_blocks(static_cast<std::int64_t>(s.tokens.size())) -
           static_cast<std::int64_t>(s.blocks.size());
  };
  for (const SequencePointer& s : active_) free -= missing(*s);
  while (!waiting_.empty() && !free_slots_.empty()) {
    Sequence& next = *waiting_.front();
    if (!active_.empty() && missing(next) > free) return;
    free -= missing(next);
    next.slot = free_slots_.back();
    free_slots_.pop_back();
    active_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

void ContinuousBatch::release(Sequence& sequence) {
  pool_.give_back(sequence.blocks);
  free_slots_.push_back(sequence.slot);
  sequence.slot = -1;
  sequence.num_read = 0;
}

/// Blocks for so many tokens of a sequence, if need be those of the sequences after it. False where it is
/// itself the last one, and has given back its own.
bool ContinuousBatch::make_room(Sequence& sequence, std::int64_t tokens) {
  if (num_blocks(tokens) <= static_cast<std::int64_t>(sequence.blocks.size())) return true;
  while (!pool_.grow(sequence.blocks, num_blocks(tokens))) {
    SequencePointer last = std::move(active_.back());
    active_.pop_back();
    const bool is_last = last.get() == &sequence;
    release(*last);
    waiting_.push_front(std::move(last));
    if (is_last) return false;
  }
  engine_.set_blocks(sequence.slot, sequence.blocks);
  return true;
}

/// Whether a sequence's tokens are read in a run of those that begin.
bool ContinuousBatch::begins(const Sequence& s) const {
  const std::int64_t most =
      s.has_unscored() ? std::min(options_.max_run_tokens, max_scored_rows_) : options_.max_run_tokens;
  return options_.fresh_runs && s.num_read == 0 && s.num_unread() <= most;
}

/// As many of its tokens as there is room for in the run and in the cache. False where no more are to be
/// read.
bool ContinuousBatch::add_tokens(Sequence& s, Run& run) {
  std::int64_t count = std::min(s.num_unread(), options_.max_run_tokens - run.tokens.count());
  if (s.has_unscored()) count = std::min(count, max_scored_rows_ - run.num_scored);
  if (count <= 0) return true;  // others may ask for no scores
  if (run.tokens.fresh && count < s.num_unread()) return false;
  if (!make_room(s, s.num_read + count)) return false;
  for (std::int64_t k = 0; k < count; ++k, ++s.num_read) {
    const bool is_scored = s.is_scored(s.num_read), is_last = s.num_unread() == 1;
    run.tokens.add(s.tokens[static_cast<std::size_t>(s.num_read)], s.slot, s.num_read, is_scored || is_last);
    if (!is_scored && !is_last) continue;
    run.draws.push_back(is_last ? Draw{s.request.sampling, s.num_generated(), s.seen} : Draw{});
    run.owners.push_back(&s);
    run.scores_prompt.push_back(is_scored);
    if (is_scored) ++run.num_scored;
  }
  return true;
}

std::vector<ContinuousBatch::Ended> ContinuousBatch::step() {
  admit();
  Run run;
  run.tokens.fresh =
      std::any_of(active_.begin(), active_.end(), [&](const SequencePointer& s) { return begins(*s); });
  for (std::size_t i = 0; i < active_.size() && run.tokens.count() < options_.max_run_tokens; ++i)
    if (begins(*active_[i]) == run.tokens.fresh && !add_tokens(*active_[i], run)) break;
  if (run.tokens.count() == 0) return {};
  const std::vector<std::int32_t> ids = engine_.next(run.tokens, run.draws);
  run.score(engine_, ids);
  std::vector<Ended> ended;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    Sequence& s = *run.owners[i];
    if (ids[i] < 0) s.is_finite = false;
    if (run.scores_prompt[i]) continue;
    std::optional<Ended> end = take(s, ids[i]);
    if (!end) continue;
    ended.push_back(std::move(*end));
    release(s);
    std::erase_if(active_, [&](const SequencePointer& p) { return p.get() == &s; });
  }
  return ended;
}

/// Gives the sequences that ask for it the scores of their tokens.
void ContinuousBatch::Run::score(CachedEngine& engine, const std::vector<std::int32_t>& drawn) {
  std::vector<ScoredRow> rows;
  for (std::size_t i = 0; i < drawn.size(); ++i) {
    const Sequence& s = *owners[i];
    if (!s.request.num_likely || drawn[i] < 0) continue;
    const auto position =
        static_cast<std::size_t>(tokens.positions[static_cast<std::size_t>(tokens.output_rows[i])]);
    rows.push_back({static_cast<std::int64_t>(i), scores_prompt[i] ? s.tokens[position + 1] : drawn[i],
                    *s.request.num_likely});
  }
  if (rows.empty()) return;
  std::vector<TokenScore> scores = score_rows(engine.logits(), rows);
  for (std::size_t k = 0; k < rows.size(); ++k) {
    const auto i = static_cast<std::size_t>(rows[k].row);
    Sequence& s = *owners[i];
    if (scores_prompt[i]) ++s.num_prompt_scores;
    (scores_prompt[i] ? s.next.prompt_scores : s.scores).push_back(std::move(scores[k]));
  }
}

/// Takes the token into the text. What has ended with it is still among the active ones.
std::optional<ContinuousBatch::Ended> ContinuousBatch::take(Sequence& s, std::int32_t id) {
  const auto end = end_of(s, id);
  if (end) s.text.finish();
  s.pass_on();
  if (!end) return std::nullopt;
  s.made.end = *end;
  if (*end == GenerationEnd::stop && is_end_token(id)) {
    s.made.end_token = id;
    if (s.request.num_likely) s.made.end_score = std::move(s.scores.back());
  }
  return Ended{s.number, std::move(s.made)};
}

bool ContinuousBatch::is_end_token(std::int32_t id) const {
  return std::find(options_.end_tokens.begin(), options_.end_tokens.end(), id) != options_.end_tokens.end();
}

/// Takes the token into the text, unless it is one that ends texts.
std::optional<GenerationEnd> ContinuousBatch::end_of(Sequence& s, std::int32_t id) {
  if (!s.is_finite) return GenerationEnd::not_finite;
  if (s.request.max_tokens == 0) return GenerationEnd::max_tokens;
  if (is_end_token(id)) return GenerationEnd::stop;
  s.tokens.push_back(id);
  if (!s.seen.empty()) mark(s.seen, id);
  if (s.text.add(id)) return GenerationEnd::stop;
  if (s.num_generated() >= s.request.max_tokens) return GenerationEnd::max_tokens;
  if (static_cast<std::int64_t>(s.tokens.size()) >= engine_.config().max_positions)
    return GenerationEnd::context;
  return std::nullopt;
}

}  // namespace farskip
