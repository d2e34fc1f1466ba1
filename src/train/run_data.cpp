#include <algorithm>

#include "farskip/base/environment.h"
#include "farskip/data/text_source.h"
#include "farskip/train/trainer.h"

namespace farskip {
namespace {

// Sequences of a validation source are read in order, so the numbers of two runs compare.
SamplerOptions sampler_options(const RunConfig& config, bool training) {
  SamplerOptions options;
  options.seed = static_cast<std::uint64_t>(config.seed);
  options.sequence_length = config.train.sequence_length;
  options.shuffle = training && config.data.shuffle;
  options.document_mask = config.data.document_mask;
  return options;
}

std::unique_ptr<Sampler> make_sampler(const std::vector<std::string>& prefixes,
                                      const std::vector<double>& weights, std::int64_t vocab_size,
                                      const SamplerOptions& options) {
  std::vector<SamplerSource> sources;
  for (std::size_t i = 0; i < prefixes.size(); ++i)
    sources.push_back(
        {std::make_shared<TokenFile>(prefixes[i], vocab_size), i < weights.size() ? weights[i] : 1.0});
  return std::make_unique<Sampler>(std::move(sources), options);
}

fs::path find_tokenizer(const RunConfig& config) {
  if (!config.data.tokenizer.empty()) return config.data.tokenizer;
  if (!config.init_from.empty() && fs::exists(fs::path(config.init_from) / "tokenizer.json"))
    return fs::path(config.init_from) / "tokenizer.json";
  return {};
}

}  // namespace

RunData open_run_data(const RunConfig& config, const ModelConfig& model, const Logger& logger) {
  RunData data;
  data.tokenizer = find_tokenizer(config);
  std::vector<std::string> sources = config.data.tokens;
  if (!config.data.text.empty()) {
    if (data.tokenizer.empty())
      throw UsageError(
          "data.text needs data.tokenizer (a tokenizer.json; 'farskip data train-tokenizer' makes one)");
    const Tokenizer tokenizer = Tokenizer::load(data.tokenizer);
    if (tokenizer.vocab_size() > model.vocab_size)
      throw UsageError(
          fmt::format("data.tokenizer {} has {} tokens, model.vocab_size is {}; raise vocab_size",
                      data.tokenizer.string(), tokenizer.vocab_size(), model.vocab_size));
    const fs::path cache = fs::path(config.run_dir).parent_path() / "cache";
    for (const std::string& text : config.data.text) {
      const std::vector<fs::path> one{text};
      sources.push_back(tokenize_cached(one, tokenizer, cache));
      logger.info("{}: tokens in {}", text, sources.back());
    }
  }
  data.train = make_sampler(sources, config.data.weights, model.vocab_size, sampler_options(config, true));
  for (const std::string& prefix : config.data.validation)
    data.validation.push_back(make_sampler({prefix}, {}, model.vocab_size, sampler_options(config, false)));
  return data;
}

Batch read_batch(const Sampler& sampler, std::uint64_t first, std::int64_t count) {
  Batch batch;
  for (std::int64_t i = 0; i < count; ++i) {
    const Sample sample = sampler.sample(first + static_cast<std::uint64_t>(i));
    batch.tokens.insert(batch.tokens.end(), sample.tokens.begin(), sample.tokens.end());
    batch.targets.insert(batch.targets.end(), sample.targets.begin(), sample.targets.end());
    batch.document_start.insert(batch.document_start.end(), sample.document_start.begin(),
                                sample.document_start.end());
  }
  return batch;
}

std::int64_t count_targets(const Batch& batch) {
  return std::count_if(batch.targets.begin(), batch.targets.end(), [](std::int32_t t) { return t >= 0; });
}

Evaluation evaluate(InferenceEngine& engine, const Sampler& sampler, std::int64_t batch,
                    std::int64_t max_sequences) {
  auto sequences = static_cast<std::int64_t>(sampler.samples_per_epoch(0));
  if (max_sequences > 0) sequences = std::min(sequences, max_sequences);
  Evaluation result;
  double loss_sum = 0;
  std::int64_t correct = 0;
  for (std::int64_t first = 0; first < sequences; first += batch) {
    const Batch b =
        read_batch(sampler, static_cast<std::uint64_t>(first), std::min(batch, sequences - first));
    const BatchLoss loss = engine.loss(b, sampler.options().sequence_length);
    loss_sum += loss.loss_sum;
    correct += loss.num_correct;
    result.tokens += count_targets(b);
  }
  result.loss = loss_sum / static_cast<double>(result.tokens);
  result.accuracy = static_cast<double>(correct) / static_cast<double>(result.tokens);
  return result;
}

}  // namespace farskip
