// SPDX-License-Identifier: Apache-2.0
#include "infer/log_likelihood.h"

#include <algorithm>

#include "engine/cached_engine.h"
#include "infer/whole_sequences.h"

namespace farskip {
namespace {

constexpr std::int64_t kBlockTokens = 16;
constexpr std::int64_t kRunTokens = 1024;  // at most

/// A continuation as a model reads it.
struct Text {
  std::vector<std::int32_t> tokens, targets;  // what is read, and what follows the last of that
  /// So many tokens, whole blocks, the text before it begins with too.
  std::int64_t shared = 0;

  std::int64_t length() const { return static_cast<std::int64_t>(tokens.size()); }
  std::int64_t first_scored() const { return length() - static_cast<std::int64_t>(targets.size()); }
  std::int64_t num_blocks() const { return (length() + kBlockTokens - 1) / kBlockTokens; }
};

Text make_text(const Continuation& c, std::int64_t max_positions) {
  Text text{c.context, c.tokens};
  text.tokens.insert(text.tokens.end(), c.tokens.begin(), c.tokens.end() - 1);
  const std::int64_t surplus = std::max<std::int64_t>(text.length() - max_positions, 0);
  text.tokens.erase(text.tokens.begin(), text.tokens.begin() + surplus);
  return text;
}

/// A token that is scored is read by its own text.
std::int64_t shared_beginning(const Text& before, const Text& text) {
  const auto end = text.tokens.begin() + std::min(before.length(), text.first_scored());
  const auto differs = std::mismatch(text.tokens.begin(), end, before.tokens.begin()).first;
  return (differs - text.tokens.begin()) / kBlockTokens * kBlockTokens;
}

/// Texts that lie in the cache together: `batch` of them at most, and those that begin alike not apart unless
/// they are more. Sets what each of them shares.
std::vector<Range> cut_into_windows(std::vector<Text>& texts, std::int64_t batch) {
  std::vector<Range> windows;
  const auto size = static_cast<std::int64_t>(texts.size());
  for (std::int64_t first = 0, end = 0; first < size; first = end) {
    const auto is_alike = [&](std::int64_t i) {
      Text& text = texts[static_cast<std::size_t>(i)];
      text.shared = shared_beginning(texts[static_cast<std::size_t>(i - 1)], text);
      return text.shared > 0;
    };
    for (end = first + 1; end < size && end - first < batch && is_alike(end);) ++end;
    if (!windows.empty() && windows.back().count + end - first <= batch)
      windows.back().count += end - first;
    else
      windows.push_back({first, end - first});
    texts[static_cast<std::size_t>(first)].shared = 0;
  }
  return windows;
}

/// The next run of so many tokens that are left: a few tokens are padded, many make a run of their own.
std::int64_t next_run(std::int64_t left) {
  constexpr std::int64_t most_padding = 32;
  const std::int64_t count = std::min(left, kRunTokens);
  return round_up_tokens(count) - count < most_padding ? count : round_down_tokens(count);
}

/// The texts of a window, one after the other, in few runs. A text finds what it shares in the blocks of the
/// text before it.
class WindowReader {
 public:
  WindowReader(CachedEngine& engine, std::span<const Text> texts, std::span<double> sums)
      : engine_(engine), texts_(texts), sums_(sums) {}

  void read() {
    place_texts();
    for (std::size_t i = 0; i < texts_.size(); ++i) {
      const Text& text = texts_[i];
      for (std::int64_t p = text.shared; p < text.length(); ++p) {
        const bool is_scored = p >= text.first_scored();
        run_.add(text.tokens[static_cast<std::size_t>(p)], static_cast<std::int64_t>(i), p, is_scored);
        if (is_scored) {
          targets_.push_back(text.targets[static_cast<std::size_t>(p - text.first_scored())]);
          owners_.push_back(i);
        }
        if (run_.count() == next_run(left_)) run();
      }
    }
  }

 private:
  void place_texts() {
    std::vector<std::int32_t> blocks;
    std::int32_t next = 0;
    for (std::size_t i = 0; i < texts_.size(); ++i) {
      blocks.resize(static_cast<std::size_t>(texts_[i].shared / kBlockTokens));
      while (static_cast<std::int64_t>(blocks.size()) < texts_[i].num_blocks()) blocks.push_back(next++);
      engine_.set_blocks(static_cast<std::int64_t>(i), blocks);
      left_ += texts_[i].length() - texts_[i].shared;
    }
  }

  void run() {
    const std::span<const float> losses = engine_.token_losses(run_, targets_);
    for (std::size_t r = 0; r < owners_.size(); ++r) sums_[owners_[r]] -= static_cast<double>(losses[r]);
    left_ -= run_.count();
    run_ = {};
    targets_.clear();
    owners_.clear();
  }

  CachedEngine& engine_;
  std::span<const Text> texts_;
  std::span<double> sums_;
  std::int64_t left_ = 0;  // to be read, those of the next run among them
  CachedTokens run_;
  std::vector<std::int32_t> targets_;
  std::vector<std::size_t> owners_;
};

CacheSize size_for(std::span<const Text> texts, std::span<const Range> windows) {
  CacheSize size{.block_tokens = kBlockTokens};
  for (const Range& window : windows) {
    std::int64_t blocks = 0;
    for (const Text& text :
         texts.subspan(static_cast<std::size_t>(window.first), static_cast<std::size_t>(window.count))) {
      blocks += text.num_blocks() - text.shared / kBlockTokens;
      size.max_tokens = std::max(size.max_tokens, text.length());
    }
    size.num_blocks = std::max(size.num_blocks, blocks);
    size.max_sequences = std::max(size.max_sequences, window.count);
  }
  return size;
}

}  // namespace

std::vector<double> log_likelihoods(const Model& model, const std::shared_ptr<const States>& weights,
                                    const Context& context, std::span<const Continuation> continuations,
                                    std::int64_t batch) {
  const MeshPosition mesh = context.mesh.position();
  if (mesh.exchange_size() > 1) {
    InferenceEngine engine(model, weights, context);
    return whole_sequence_likelihoods(engine, continuations, batch);
  }
  std::vector<Text> texts;
  for (const Continuation& c : continuations) texts.push_back(make_text(c, model.config.max_positions));
  const std::vector<Range> windows = cut_into_windows(texts, batch);
  CachedEngine engine(model, weights, context, size_for(texts, windows));
  // Windows are made before they are dealt out: every number of ranks makes the same runs.
  std::vector<double> sums(texts.size());  // of this rank's; those of the others are 0
  for (auto w = static_cast<std::size_t>(mesh.rank(MeshAxis::data)); w < windows.size();
       w += static_cast<std::size_t>(mesh.size(MeshAxis::data))) {
    const auto first = static_cast<std::size_t>(windows[w].first),
               count = static_cast<std::size_t>(windows[w].count);
    WindowReader(engine, std::span(texts).subspan(first, count), std::span(sums).subspan(first, count))
        .read();
  }
  if (!mesh.counts_sequences()) std::fill(sums.begin(), sums.end(), 0.0);  // another of its group gives them
  context.mesh.world().all_reduce(std::span(sums));
  return sums;
}

}  // namespace farskip
