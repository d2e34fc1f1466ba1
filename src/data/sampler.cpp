// SPDX-License-Identifier: Apache-2.0
#include "data/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "farskip/base/error.h"
#include "farskip/base/random.h"

namespace farskip {
namespace {

/// A bijection that spreads every input bit over all output bits (the finalizer of SplitMix64).
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9U;
  x = (x ^ x >> 27) * 0x94D049BB133111EBU;
  return x ^ x >> 31;
}

/// A stream of its own for each purpose, source and epoch (or block).
std::uint64_t stream_for(std::string_view purpose, std::uint64_t a, std::uint64_t b) {
  return mix(mix(stream_id(purpose) + a) + b);
}

}  // namespace

Permutation::Permutation(std::uint64_t seed, std::uint64_t stream, std::uint64_t size) : size_(size) {
  FARSKIP_CHECK(size > 0 && size <= std::uint64_t{1} << 62, "permutation of {}", size);
  half_bits_ = std::max(1, (static_cast<int>(std::bit_width(size - 1)) + 1) / 2);
  for (int round = 0; round < kRounds; ++round)
    keys_[round] = uniform_u64(seed, stream, static_cast<std::uint64_t>(round));
}

std::uint64_t Permutation::operator()(std::uint64_t index) const {
  FARSKIP_CHECK(index < size_, "index {} of {}", index, size_);
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  do {  // the network permutes fewer than 4 * size numbers, so a few steps are enough on average
    std::uint64_t left = index >> half_bits_, right = index & mask;
    for (const std::uint64_t key : keys_) {
      const std::uint64_t next = left ^ (mix(right ^ key) & mask);
      left = right;
      right = next;
    }
    index = left << half_bits_ | right;
  } while (index >= size_);
  return index;
}

std::vector<std::uint64_t> apportion(const std::vector<double>& weights, std::uint64_t total) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<std::uint64_t> counts;
  std::vector<double> remainders;
  for (const double weight : weights) {
    const double exact = weight / sum * static_cast<double>(total);
    counts.push_back(static_cast<std::uint64_t>(exact));
    remainders.push_back(exact - std::floor(exact));
  }
  std::vector<std::size_t> order(weights.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return remainders[a] > remainders[b]; });
  const std::uint64_t given = std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
  for (std::uint64_t i = 0; i + given < total; ++i) ++counts[order[i % order.size()]];
  return counts;
}

Sampler::Sampler(std::vector<SamplerSource> sources, const SamplerOptions& options)
    : sources_(std::move(sources)), options_(options) {
  if (sources_.empty()) throw UsageError("no token source to sample from");
  if (options.sequence_length < 1 || options.sequence_length > std::int64_t{1} << 30)
    throw UsageError(fmt::format("sequence length {}: 1 to 2^30 is allowed", options.sequence_length));
  FARSKIP_CHECK(!(options.whole_stream && options.shuffle), "a shuffled stream has no last sample");
  const auto length = static_cast<std::uint64_t>(options.sequence_length);
  std::vector<double> weights;
  for (const SamplerSource& source : sources_) {
    const std::string& name = source.tokens->prefix();
    if (!std::isfinite(source.weight) || source.weight <= 0)
      throw UsageError(fmt::format("{}: mixture weight {} must be positive; leave the source out instead",
                                   name, source.weight));
    weights.push_back(source.weight);
    const std::uint64_t num_tokens = source.tokens->num_tokens(),
                        needed = options.whole_stream ? 2 : length + 1;
    if (num_tokens < needed)
      throw DataError(
          fmt::format("{}: {} tokens, but one sample of sequence length {} needs {}; shorten the sequence or "
                      "add text",
                      name, num_tokens, length, needed));
    const std::uint64_t num_targets = num_tokens - 1;
    samples_per_epoch_.push_back((num_targets + (options.whole_stream ? length - 1 : 0)) / length);
    if (options.prompt_end)
      prompt_ends_.push_back(std::make_unique<PromptEnds>(source.tokens, *options.prompt_end));
  }
  FARSKIP_CHECK(options.block_size > 0, "block size 0");
  samples_per_block_ = apportion(weights, options.block_size);
  std::uint64_t bound = 0;
  for (std::size_t s = 0; s < sources_.size(); ++s) {
    if (samples_per_block_[s] == 0)
      throw UsageError(fmt::format(
          "{}: mixture weight {} is less than one sample in {}, so the source would never be read",
          sources_[s].tokens->prefix(), weights[s], options.block_size));
    block_bounds_.push_back(bound += samples_per_block_[s]);
  }
}

std::string Sampler::contents_text() const {
  std::string text;
  for (const SamplerSource& source : sources_)
    text += fmt::format("{}{} tokens with hash {}", text.empty() ? "" : " + ", source.tokens->num_tokens(),
                        source.tokens->fingerprint());
  if (sources_.size() > 1)
    text += fmt::format(", mixed {}:{}", fmt::join(samples_per_block_, ":"), options_.block_size);
  return text;
}

SampleAddress Sampler::locate(std::uint64_t number) const {
  std::uint64_t source = 0, position = number;  // position: how many samples of that source came before
  if (sources_.size() > 1) {
    const std::uint64_t block = number / options_.block_size, place = number % options_.block_size;
    const Permutation slots(options_.seed, stream_for("mixture", 0, block), options_.block_size);
    const auto source_at = [&](std::uint64_t i) {
      return static_cast<std::uint64_t>(
          std::upper_bound(block_bounds_.begin(), block_bounds_.end(), slots(i)) - block_bounds_.begin());
    };
    source = source_at(place);
    position = block * samples_per_block_[source];
    for (std::uint64_t i = 0; i < place; ++i) position += source_at(i) == source ? 1 : 0;
  }
  const std::uint64_t per_epoch = samples_per_epoch_[source];
  SampleAddress address{source, position / per_epoch, position % per_epoch};
  if (options_.shuffle)
    address.index =
        Permutation(options_.seed, stream_for("shuffle", source, address.epoch), per_epoch)(address.index);
  return address;
}

Sample Sampler::sample(std::uint64_t number) const {
  const auto length = static_cast<std::uint64_t>(options_.sequence_length);
  Sample sample;
  sample.address = locate(number);
  const TokenFile& file = *sources_[sample.address.source].tokens;
  const std::uint64_t first = sample.address.index * length;
  const std::uint64_t count =
      std::min(length, file.num_tokens() - 1 - first);  // fewer with whole_stream alone
  sample.tokens.resize(count + 1);
  file.read(first, count + 1, sample.tokens.data());
  sample.targets.assign(sample.tokens.begin() + 1, sample.tokens.end());
  if (options_.document_mask) mark_documents(file, first, sample);
  if (options_.prompt_end) mask_prompts(first, sample);
  if (options_.padding)
    std::replace(sample.targets.begin(), sample.targets.end(), *options_.padding, kIgnoredTarget);
  sample.tokens.pop_back();
  sample.tokens.resize(length, 0);
  sample.targets.resize(length, kIgnoredTarget);
  if (options_.document_mask) sample.document_start.resize(length, static_cast<std::int32_t>(count));
  return sample;
}

std::uint64_t PromptEnds::behind_prompt(std::uint64_t document) const {
  constexpr std::uint64_t long_document = std::uint64_t{1}
                                          << 16;  // tokens; others are searched as fast as found
  const auto bounds = file_->document_offsets();
  if (bounds[document + 1] - bounds[document] < long_document) return search(document);
  const std::lock_guard lock(mutex_);
  const auto known = known_.find(document);
  return known != known_.end() ? known->second : known_.emplace(document, search(document)).first->second;
}

std::uint64_t PromptEnds::search(std::uint64_t document) const {
  constexpr std::uint64_t piece = std::uint64_t{1} << 16;
  const std::uint64_t begin = file_->document_offsets()[document],
                      end = file_->document_offsets()[document + 1];
  std::vector<std::int32_t> tokens;
  for (std::uint64_t offset = begin; offset < end; offset += tokens.size()) {
    tokens.resize(std::min(piece, end - offset));
    file_->read(offset, tokens.size(), tokens.data());
    const auto at = std::find(tokens.begin(), tokens.end(), end_token_);
    if (at != tokens.end()) return offset + static_cast<std::uint64_t>(at - tokens.begin()) + 1;
  }
  return begin;
}

// sample.tokens still holds the last target. A prompt may begin before the sequence or end after it: only
// then is more of its document needed than what was read.
void Sampler::mask_prompts(std::uint64_t first, Sample& sample) const {
  const SamplerSource& source = sources_[sample.address.source];
  const auto bounds = source.tokens->document_offsets();
  const std::uint64_t end = first + sample.tokens.size();
  const auto at = [&](std::uint64_t offset) {
    return sample.tokens.begin() + static_cast<std::ptrdiff_t>(offset - first);
  };
  for (std::uint64_t d = source.tokens->document_of(first); d + 1 < bounds.size() && bounds[d] < end; ++d) {
    const std::uint64_t seen_end = std::min(end, bounds[d + 1]);
    std::uint64_t counted_from = bounds[d];
    const auto found =
        bounds[d] < first ? at(seen_end) : std::find(at(bounds[d]), at(seen_end), *options_.prompt_end);
    if (found != at(seen_end))
      counted_from = first + static_cast<std::uint64_t>(found - sample.tokens.begin()) + 1;
    else if (bounds[d] < first || bounds[d + 1] > end)
      counted_from = prompt_ends_[sample.address.source]->behind_prompt(d);
    for (std::uint64_t i = std::max(first + 1, bounds[d]); i < std::min(end, counted_from); ++i)
      sample.targets[i - first - 1] = kIgnoredTarget;
  }
}

void Sampler::mark_documents(const TokenFile& file, std::uint64_t first, Sample& sample) const {
  const std::uint64_t length = sample.targets.size();
  const auto bounds = file.document_offsets();
  // The first bound inside the sequence; a target beyond a bound belongs to the next document.
  auto bound = std::upper_bound(bounds.begin(), bounds.end(), first);
  std::uint64_t start = 0;
  sample.document_start.resize(length);
  for (std::uint64_t t = 0; t < length; ++t) {
    while (*bound == first + t) {  // several bounds here: empty documents
      start = t;
      ++bound;
    }
    sample.document_start[t] = static_cast<std::int32_t>(start);
    if (*bound == first + t + 1) sample.targets[t] = kIgnoredTarget;
  }
}

}  // namespace farskip
