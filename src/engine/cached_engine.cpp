// SPDX-License-Identifier: Apache-2.0
#include "engine/cached_engine.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <exception>
#include <numeric>
#include <thread>

#include "passes/join_micro_batches.h"

namespace farskip {

// 1, 2, 3, 4, 6, 8, 12, …: few plans, and at most a third of a run is padding.
std::int64_t round_up_tokens(std::int64_t count) {
  const auto power = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(count)));
  return power >= 4 && count <= power / 4 * 3 ? power / 4 * 3 : power;
}
std::int64_t round_down_tokens(std::int64_t count) {
  const auto power = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(count)));
  return power >= 2 && count >= power / 2 * 3 ? power / 2 * 3 : power;
}

namespace {

TensorView integers(const std::vector<std::int32_t>& values) {
  return {const_cast<std::int32_t*>(values.data()), DType::i32,
          Shape{static_cast<std::int64_t>(values.size())}};
}

/// How texts that all begin in a run lie in it.
struct FreshTexts {
  std::int64_t length = 0;                     // of each, if they are equally long, else that of the run
  std::vector<std::int32_t> document_start{};  // of each token, where texts are not equally long
};

/// `count`: of tokens, padding included.
FreshTexts find_fresh_texts(const CachedTokens& given, std::int64_t count) {
  FreshTexts texts{count};
  std::int32_t start = 0, num_texts = 0, longest = 0;
  for (std::size_t t = 0; t < given.tokens.size(); ++t) {
    if (given.positions[t] == 0) {
      start = static_cast<std::int32_t>(t);
      ++num_texts;
    }
    FARSKIP_CHECK(given.positions[t] == static_cast<std::int32_t>(t) - start,
                  "a text that does not begin in its run");
    longest = std::max(longest, given.positions[t] + 1);
    texts.document_start.push_back(start);
  }
  if (num_texts == 1) return {count};  // nothing before the padding sees it
  if (given.count() == count && std::int64_t{longest} * num_texts == count) return {longest};
  for (std::int64_t t = given.count(); t < count; ++t)
    texts.document_start.push_back(static_cast<std::int32_t>(t));
  return texts;
}

bool has_penalty(const Draw& draw) {
  return draw.options.repetition_penalty != 1.0;
}

/// `rows`: draws, padded. `vocab_size`: 0 where none has a penalty.
void set_draws(Stage& stage, int part, std::span<const Draw> draws, std::int64_t rows,
               std::int64_t vocab_size) {
  const HostTensor real(DType::f32, Shape{rows, 4}), whole(DType::i32, Shape{rows, 4});
  const HostTensor seen(DType::i32, Shape{rows, (vocab_size + 31) / 32});
  for (const HostTensor* tensor : {&real, &whole, &seen})
    std::fill_n(tensor->view().as<std::byte>(), tensor->view().num_bytes(), std::byte{0});
  for (std::size_t i = 0; i < draws.size(); ++i) {
    const SamplingOptions& o = draws[i].options;
    float* r = real.view().as<float>() + 4 * i;
    r[0] = static_cast<float>(o.temperature);
    r[1] = static_cast<float>(o.top_p);
    r[2] = static_cast<float>(o.min_p);
    r[3] = static_cast<float>(o.repetition_penalty);
    const auto seed = static_cast<std::uint64_t>(o.seed);
    std::int32_t* w = whole.view().as<std::int32_t>() + 4 * i;
    w[0] = static_cast<std::int32_t>(o.top_k);
    w[1] = static_cast<std::int32_t>(static_cast<std::uint32_t>(seed));
    w[2] = static_cast<std::int32_t>(static_cast<std::uint32_t>(seed >> 32U));
    w[3] = static_cast<std::int32_t>(draws[i].counter);
    if (vocab_size > 0 && has_penalty(draws[i]))
      std::copy(draws[i].seen.begin(), draws[i].seen.end(),
                seen.view().as<std::uint32_t>() + seen.shape()[1] * static_cast<std::int64_t>(i));
  }
  stage.set(micro_batch_name(kDrawReal, part), real.view());
  stage.set(micro_batch_name(kDrawWhole, part), whole.view());
  stage.set(micro_batch_name(kDrawSeen, part), seen.view());
}

}  // namespace

void CachedTokens::add(std::int32_t token, std::int64_t sequence, std::int64_t position, bool output) {
  if (output) output_rows.push_back(static_cast<std::int32_t>(tokens.size()));
  tokens.push_back(token);
  sequences.push_back(static_cast<std::int32_t>(sequence));
  positions.push_back(static_cast<std::int32_t>(position));
}

std::vector<CachedTokens> divide_texts(const CachedTokens& tokens, int count) {
  if (count == 1) return {tokens};
  const auto part = [&](std::int64_t first, std::int64_t end) {
    const auto cut = [&](const std::vector<std::int32_t>& of) {
      return std::vector(of.begin() + first, of.begin() + end);
    };
    CachedTokens own{cut(tokens.tokens), cut(tokens.sequences), cut(tokens.positions)};
    own.fresh = tokens.fresh;
    for (const std::int32_t row : tokens.output_rows)
      if (row >= first && row < end) own.output_rows.push_back(row - static_cast<std::int32_t>(first));
    return own;
  };
  std::vector<CachedTokens> parts;
  std::int64_t first = 0;
  for (std::int64_t t = 1; t < tokens.count(); ++t) {
    const auto at = static_cast<std::size_t>(t);
    const auto made = static_cast<std::int64_t>(parts.size()) + 1;
    if (tokens.sequences[at] == tokens.sequences[at - 1] || t * count < tokens.count() * made) continue;
    parts.push_back(part(first, t));
    first = t;
  }
  parts.push_back(part(first, tokens.count()));
  return parts;
}

CachedEngine::CachedEngine(Model model, std::shared_ptr<const States> weights, const Context& context,
                           const CacheSize& size, std::int64_t num_ids, const PlanOptions& plan, bool align)
    : model_(std::move(model)),
      compute_(weights->compute()),
      size_(size),
      cache_(std::make_shared<const States>(
          weights->shared_device(), cache_states(model_.config, size.num_blocks * size.block_tokens, compute_,
                                                 context.mesh.position().tensor_size))),
      table_(static_cast<std::size_t>(size.max_sequences * size.max_blocks()), -1),
      table_on_device_(allocate_on(*context.device(), table_.size() * sizeof(std::int32_t))),
      end_changed_(size.max_sequences),
      num_ids_(num_ids),
      plan_(plan),
      runner_(context, {std::move(weights), cache_}, {.align = align}) {
  runner_.share(kBlockTable,
                {table_on_device_.memory.get(), DType::i32, Shape{size.max_sequences, size.max_blocks()}});
}

void CachedEngine::set_blocks(std::int64_t sequence, std::span<const std::int32_t> blocks) {
  FARSKIP_CHECK(
      sequence < size_.max_sequences && static_cast<std::int64_t>(blocks.size()) <= size_.max_blocks(),
      "{} blocks of sequence {}", blocks.size(), sequence);
  std::copy(blocks.begin(), blocks.end(), table_.begin() + sequence * size_.max_blocks());
  first_changed_ = std::min(first_changed_, sequence);
  end_changed_ = std::max(end_changed_, sequence + 1);
}

void CachedEngine::copy_changed_blocks() {
  if (first_changed_ >= end_changed_) return;
  const std::int64_t first = first_changed_ * size_.max_blocks(), end = end_changed_ * size_.max_blocks();
  context().device()->copy_in(table_on_device_.memory.get() + first * sizeof(std::int32_t),
                              table_.data() + first,
                              static_cast<std::size_t>(end - first) * sizeof(std::int32_t));
  first_changed_ = size_.max_sequences;
  end_changed_ = 0;
}

std::int32_t CachedEngine::cache_row(std::int32_t sequence, std::int32_t position) const {
  FARSKIP_CHECK(
      sequence >= 0 && sequence < size_.max_sequences && position >= 0 && position < size_.max_tokens,
      "position {} of sequence {}", position, sequence);
  const auto at = static_cast<std::size_t>(sequence * size_.max_blocks() + position / size_.block_tokens);
  FARSKIP_CHECK(table_[at] >= 0, "position {} of sequence {} has no block", position, sequence);
  return static_cast<std::int32_t>(table_[at] * size_.block_tokens + position % size_.block_tokens);
}

/// The tokens of a run as the graph of its shape reads them.
struct CachedEngine::PaddedTokens {
  CachedRunShape shape;
  CachedTokens tokens;
  std::vector<std::int32_t> rows, document_start;
};

CachedEngine::PaddedTokens CachedEngine::pad(const CachedTokens& given, CachedRunShape asked) const {
  FARSKIP_CHECK(given.count() > 0, "a run without tokens");
  CachedTokens padded = given;
  const auto count = static_cast<std::size_t>(round_up_tokens(given.count()));
  const auto outputs = static_cast<std::int64_t>(std::max<std::size_t>(given.output_rows.size(), 1));
  padded.tokens.resize(count, 0);
  padded.sequences.resize(count, 0);
  padded.positions.resize(count, -1);
  // In decoding as many as tokens; else few sizes, so that few plans are made.
  padded.output_rows.resize(
      given.count() == outputs ? count : std::bit_ceil(static_cast<std::size_t>(outputs)), 0);
  std::vector<std::int32_t> rows(count, -1);
  for (std::size_t t = 0; t < given.tokens.size(); ++t)
    rows[t] = cache_row(given.sequences[t], given.positions[t]);
  // Chunks of attention are counted from the beginning of a text.
  FreshTexts fresh;
  if (given.fresh) fresh = find_fresh_texts(given, static_cast<std::int64_t>(count));
  if (config().long_text.chunk > 0 && !fresh.document_start.empty()) fresh = {};
  asked.cache = {.tokens = static_cast<std::int64_t>(count),
                 .outputs = static_cast<std::int64_t>(padded.output_rows.size()),
                 .sequences = size_.max_sequences,
                 .max_blocks = size_.max_blocks(),
                 .num_blocks = size_.num_blocks,
                 .block_tokens = size_.block_tokens,
                 .fresh_length = fresh.length,
                 .documents = !fresh.document_start.empty()};
  return {asked, std::move(padded), std::move(rows), std::move(fresh.document_start)};
}

Stage& CachedEngine::prepare(const std::vector<CachedTokens>& parts, const CachedRunShape& asked) {
  std::vector<PaddedTokens> padded;
  std::vector<CachedRunShape> shapes;
  for (const CachedTokens& part : parts) {
    padded.push_back(pad(part, asked));
    shapes.push_back(padded.back().shape);
  }
  Stage& stage = runner_.stage(
      shapes, [&] { return cached_pipeline(model_, shapes, compute_, context().mesh.position()); }, plan_);
  for (std::size_t i = 0; i < padded.size(); ++i) {
    const auto set = [&](std::string_view name, const std::vector<std::int32_t>& values) {
      stage.set(micro_batch_name(name, static_cast<int>(i)), integers(values));
    };
    set("tokens", padded[i].tokens.tokens);
    set(kSequences, padded[i].tokens.sequences);
    set(kPositions, padded[i].tokens.positions);
    set(kCacheRows, padded[i].rows);
    set(kOutputRows, padded[i].tokens.output_rows);
    set("document_start", padded[i].document_start);
  }
  copy_changed_blocks();
  return stage;
}

std::vector<std::int32_t> CachedEngine::next(const CachedTokens& tokens, std::span<const Draw> draws) {
  FARSKIP_CHECK(draws.size() == tokens.output_rows.size(), "{} draws", draws.size());
  last_ = nullptr;
  const bool penalised = std::any_of(draws.begin(), draws.end(), has_penalty);
  if (leads_) tell_followers(tokens, penalised);
  const std::vector<CachedTokens> parts = divide_texts(tokens, plan_.in_flight);
  Stage& stage = prepare(parts, {.cache = {}, .penalised = penalised, .num_ids = num_ids_});
  last_rows_.clear();
  for (const CachedTokens& part : parts) {
    const auto number = static_cast<int>(last_rows_.size());
    const TensorType& ids = stage.graph().type(*stage.graph().find_output(micro_batch_name("next", number)));
    const auto count = static_cast<std::int64_t>(part.output_rows.size());
    set_draws(stage, number, draws.subspan(0, static_cast<std::size_t>(count)), ids.shape[0],
              penalised ? config().vocab_size : 0);
    draws = draws.subspan(static_cast<std::size_t>(count));
    last_rows_.push_back(count);
  }
  runner_.run(stage);
  last_ = &stage;
  std::vector<std::int32_t> all;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const HostTensor next = stage.read(micro_batch_name("next", static_cast<int>(i)));
    const auto values = next.values<std::int32_t>();
    all.insert(all.end(), values.begin(), values.begin() + last_rows_[i]);
  }
  return all;
}

std::span<const float> CachedEngine::token_losses(const CachedTokens& tokens,
                                                  std::span<const std::int32_t> targets) {
  FARSKIP_CHECK(targets.size() == tokens.output_rows.size() && !leads_, "{} targets", targets.size());
  last_ = nullptr;
  Stage& stage = prepare({tokens}, {.cache = {}, .scores = true});
  std::vector<std::int32_t> padded(targets.begin(), targets.end());
  const ValueId losses = *stage.graph().find_output("token_losses");
  padded.resize(static_cast<std::size_t>(stage.graph().type(losses).shape[0]), -1);
  stage.set("targets", integers(padded));
  runner_.run(stage);
  return {runner_.read(stage, "token_losses").as<float>(), targets.size()};
}

TensorView CachedEngine::logits() {
  FARSKIP_CHECK(last_ != nullptr, "nothing was read");
  if (last_rows_.size() == 1) return rows_view(runner_.read(*last_, "logits"), 0, last_rows_[0]);
  const std::int64_t rows = std::accumulate(last_rows_.begin(), last_rows_.end(), std::int64_t{0});
  logits_ = HostTensor(DType::f32, Shape{rows, config().vocab_size});
  auto* to = logits_.view().as<std::byte>();
  for (std::size_t i = 0; i < last_rows_.size(); ++i) {
    const TensorView part =
        rows_view(runner_.read(*last_, micro_batch_name("logits", static_cast<int>(i))), 0, last_rows_[i]);
    to = std::copy_n(part.as<std::byte>(), part.num_bytes(), to);
  }
  return logits_.view();
}

namespace {

/// They stand in place of a number of tokens: the leader has none yet, or will have none any more.
constexpr std::int64_t kMeeting = -1, kEnd = 0;

/// A run as followers hear of it: this, then its tokens, sequences, positions and output rows, and the rows
/// of the table of blocks that have changed.
struct RunHeader {
  std::int64_t tokens = 0, outputs = 0, fresh = 0, penalised = 0, first_changed = 0, end_changed = 0;

  std::span<std::int64_t> numbers() { return {&tokens, sizeof(RunHeader) / sizeof(tokens)}; }
};

}  // namespace

void CachedEngine::lead() {
  leads_ = followers().size() > 1;
}

CachedEngine::~CachedEngine() {
  if (!leads_ || std::uncaught_exceptions() > 0) return;
  try {
    followers().broadcast(RunHeader{.tokens = kEnd}.numbers(), 0);
  } catch (const std::exception& error) {
    context().logger.error("ranks that follow were not let go: {}", error.what());
  }
}

void CachedEngine::meet_followers() {
  if (!leads_) return;
  followers().broadcast(RunHeader{.tokens = kMeeting}.numbers(), 0);
  followers().barrier();
}

void CachedEngine::tell_followers(const CachedTokens& given, bool penalised) {
  RunHeader header{given.count(),       static_cast<std::int64_t>(given.output_rows.size()),
                   given.fresh ? 1 : 0, penalised ? 1 : 0,
                   first_changed_,      std::max(end_changed_, first_changed_)};
  std::vector<std::int32_t> numbers;
  for (const auto* list : {&given.tokens, &given.sequences, &given.positions, &given.output_rows})
    numbers.insert(numbers.end(), list->begin(), list->end());
  numbers.insert(numbers.end(), table_.begin() + header.first_changed * size_.max_blocks(),
                 table_.begin() + header.end_changed * size_.max_blocks());
  followers().broadcast(header.numbers(), 0);
  followers().broadcast(std::span(numbers), 0);
}

/// The leader may have nothing to read for hours: the longer the wait, the longer the sleep between two
/// looks, so that an idle rank takes next to nothing of its core and a busy one answers at once.
void CachedEngine::hear_of_run(std::span<std::int64_t> header) {
  using namespace std::chrono_literals;
  using Clock = std::chrono::steady_clock;
  const HeartbeatWait wait(context().heartbeat, "the next run of the rank that leads");
  Pending pending = followers().start_broadcast(header, 0);
  for (const auto start = Clock::now(); !pending.test();)
    std::this_thread::sleep_for(std::min<Clock::duration>((Clock::now() - start) / 16, 5ms));
}

void CachedEngine::follow() {
  for (RunHeader header;;) {
    hear_of_run(header.numbers());
    if (header.tokens == kEnd) return;
    if (header.tokens == kMeeting) {
      followers().barrier();
      continue;
    }
    const std::int64_t changed = header.end_changed - header.first_changed;
    std::vector<std::int32_t> numbers(
        static_cast<std::size_t>(3 * header.tokens + header.outputs + changed * size_.max_blocks()));
    followers().broadcast(std::span(numbers), 0);
    CachedTokens run;
    run.fresh = header.fresh != 0;
    auto at = numbers.cbegin();
    const auto take = [&](std::int64_t count) {
      const auto first = at;
      at += count;
      return std::vector(first, at);
    };
    run.tokens = take(header.tokens);
    run.sequences = take(header.tokens);
    run.positions = take(header.tokens);
    run.output_rows = take(header.outputs);
    std::copy(at, numbers.cend(), table_.begin() + header.first_changed * size_.max_blocks());
    if (changed > 0) {
      first_changed_ = std::min(first_changed_, header.first_changed);
      end_changed_ = std::max(end_changed_, header.end_changed);
    }
    // What is chosen is the leader's business; a penalty makes another graph.
    std::vector<Draw> draws(run.output_rows.size());
    if (header.penalised != 0) draws.front().options.repetition_penalty = 2.0;
    next(run, draws);
  }
}

}  // namespace farskip
