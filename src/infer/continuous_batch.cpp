// SPDX-License-Identifier: Apache-2.0
#include "farskip/infer/continuous_batch.h"

#include <algorithm>

namespace farskip {
namespace {

void mark(std::vector<std::uint32_t>& seen, std::int32_t id) {
  seen[static_cast<std::size_t>(id) / 32] |= 1U << (static_cast<unsigned>(id) % 32U);
}

}  // namespace

ContinuousBatch::ContinuousBatch(CachedEngine& engine, ContinuousBatchOptions options)
    : engine_(engine), options_(std::move(options)), pool_(engine.size().num_blocks) {
  for (std::int64_t slot = engine.size().max_sequences; slot-- > 0;) free_slots_.push_back(slot);
}

std::int64_t ContinuousBatch::num_blocks(std::int64_t tokens) const {
  return (tokens + engine_.size().block_tokens - 1) / engine_.size().block_tokens;
}

std::int64_t ContinuousBatch::submit(GenerationRequest request) {
  const auto length = static_cast<std::int64_t>(request.prompt.size());
  if (length == 0) throw UsageError("a prompt is empty; give at least one token");
  if (length >= engine_.config().max_positions)
    throw UsageError(
        fmt::format("the prompt has {} tokens and the model's max_position_embeddings is {}, so there is no "
                    "room for a new token; shorten the prompt",
                    length, engine_.config().max_positions));
  // A text alone always fits, so that the oldest one never waits for room.
  const CacheSize& size = engine_.size();
  const std::int64_t most = std::min(size.max_tokens, size.num_blocks * size.block_tokens);
  const std::int64_t whole = std::min(length + request.max_tokens, engine_.config().max_positions);
  if (whole > most)
    throw UsageError(
        fmt::format("a prompt of {} tokens and {} new ones may take {} of the cache, which holds {} of a "
                    "text; ask for fewer, or give the cache more memory",
                    length, request.max_tokens, whole, most));
  auto sequence = std::make_unique<Sequence>();
  sequence->number = num_submitted_++;
  sequence->tokens = request.prompt;
  if (request.sampling.repetition_penalty != 1.0) {
    sequence->seen.resize(static_cast<std::size_t>((engine_.config().vocab_size + 31) / 32));
    for (const std::int32_t id : request.prompt) mark(sequence->seen, id);
  }
  sequence->request = std::move(request);
  waiting_.push_back(std::move(sequence));
  return num_submitted_ - 1;
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
  return options_.fresh_runs && s.num_read == 0 && s.num_unread() <= options_.max_run_tokens;
}

std::vector<ContinuousBatch::Ended> ContinuousBatch::step() {
  admit();
  CachedTokens run;
  run.fresh =
      std::any_of(active_.begin(), active_.end(), [&](const SequencePointer& s) { return begins(*s); });
  std::vector<Draw> draws;
  std::vector<Sequence*> drawing;
  for (std::size_t i = 0; i < active_.size() && run.count() < options_.max_run_tokens; ++i) {
    Sequence& s = *active_[i];
    if (begins(s) != run.fresh) continue;
    const std::int64_t count = std::min(s.num_unread(), options_.max_run_tokens - run.count());
    if (run.fresh && count < s.num_unread()) break;
    if (!make_room(s, s.num_read + count)) break;
    for (std::int64_t k = 0; k < count; ++k, ++s.num_read)
      run.add(s.tokens[static_cast<std::size_t>(s.num_read)], s.slot, s.num_read, s.num_unread() == 1);
    if (s.num_unread() > 0) continue;
    draws.push_back({s.request.sampling, s.num_generated(), s.seen});
    drawing.push_back(&s);
  }
  if (run.count() == 0) return {};
  const std::vector<std::int32_t> ids = engine_.next(run, draws);
  std::vector<Ended> ended;
  for (std::size_t i = 0; i < drawing.size(); ++i) {
    Sequence& s = *drawing[i];
    const auto end = end_of(s, ids[i]);
    if (!end) continue;
    Generated text{{s.tokens.begin() + static_cast<std::ptrdiff_t>(s.request.prompt.size()), s.tokens.end()},
                   *end};
    if (is_end_token(ids[i])) text.end_token = ids[i];
    ended.push_back({s.number, std::move(text)});
    release(s);
    std::erase_if(active_, [&](const SequencePointer& p) { return p.get() == &s; });
  }
  return ended;
}

bool ContinuousBatch::is_end_token(std::int32_t id) const {
  return std::find(options_.end_tokens.begin(), options_.end_tokens.end(), id) != options_.end_tokens.end();
}

/// Takes the token into the text, unless it is one that ends texts.
std::optional<GenerationEnd> ContinuousBatch::end_of(Sequence& s, std::int32_t id) {
  if (id < 0)
    throw DataError(
        "a logit of the model is not a finite number; check the weights with farskip inspect --verify");
  if (is_end_token(id)) return GenerationEnd::stop;
  s.tokens.push_back(id);
  if (!s.seen.empty()) mark(s.seen, id);
  if (s.request.keep_going && !s.request.keep_going(id)) return GenerationEnd::stop;
  if (s.num_generated() >= s.request.max_tokens) return GenerationEnd::max_tokens;
  if (static_cast<std::int64_t>(s.tokens.size()) >= engine_.config().max_positions)
    return GenerationEnd::context;
  return std::nullopt;
}

}  // namespace farskip
