#include <algorithm>
#include <array>

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
  options.prompt_end = config.data.prompt_end;
  options.padding = config.data.padding;
  return options;
}

std::unique_ptr<Sampler> make_sampler(const std::vector<std::string>& prefixes,
                                      const std::vector<double>& weights, std::int64_t vocab_size,
                                      const SamplerOptions& options) {
  std::vector<SamplerSource> sources;
  for (std::size_t i = 0; i < prefixes.size(); ++i) {
    const double weight = i < weights.size() ? weights[i] : 1.0;
    if (weight > 0) sources.push_back({std::make_shared<TokenFile>(prefixes[i], vocab_size), weight});
  }
  return std::make_unique<Sampler>(std::move(sources), options);
}

fs::path find_tokenizer(const RunConfig& config) {
  if (!config.data.tokenizer.empty()) return config.data.tokenizer;
  if (!config.init_from.empty() && fs::exists(fs::path(config.init_from) / "tokenizer.json"))
    return fs::path(config.init_from) / "tokenizer.json";
  if (config.init_from.empty() && config.distill &&
      fs::exists(fs::path(config.distill->teacher) / "tokenizer.json"))
    return fs::path(config.distill->teacher) / "tokenizer.json";
  return {};
}

}  // namespace

RunData open_run_data(const RunConfig& config, const ModelConfig& model, const Logger& logger) {
  for (const auto& [key, id] :
       {std::pair{"prompt_end", config.data.prompt_end}, {"padding", config.data.padding}})
    if (id && *id >= model.vocab_size)
      throw UsageError(
          fmt::format("data.{} is {}, and the model's vocabulary ends with {}; no token has that id", key,
                      *id, model.vocab_size - 1));
  RunData data;
  data.tokenizer = find_tokenizer(config);
  std::vector<std::string> sources = config.data.tokens;
  if (!config.data.text.empty() && data.tokenizer.empty())
    throw UsageError(
        "data.text needs data.tokenizer (a tokenizer.json; 'farskip data train-tokenizer' makes one)");
  std::optional<Tokenizer> named;  // looked at now: checkpoints get a copy
  if (!config.data.text.empty() || !config.data.tokenizer.empty()) {
    named = Tokenizer::load(data.tokenizer);
    if (named->vocab_size() > model.vocab_size)
      throw UsageError(
          fmt::format("data.tokenizer {} has {} tokens, model.vocab_size is {}; raise vocab_size",
                      data.tokenizer.string(), named->vocab_size(), model.vocab_size));
  }
  if (!config.data.text.empty()) {
    const Tokenizer& tokenizer = *named;
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

namespace {

/// Sequences that are not counted: a rank that has none left takes part in the others' collectives.
void pad_batch(Batch& batch, std::int64_t sequences, std::int64_t length, bool document_mask) {
  const auto size = static_cast<std::size_t>(sequences * length);
  batch.tokens.resize(size, 0);
  batch.targets.resize(size, -1);
  if (document_mask) batch.document_start.resize(size, 0);
}

}  // namespace

Evaluation evaluate(InferenceEngine& engine, const Sampler& sampler, std::int64_t batch,
                    std::int64_t max_sequences) {
  const Communicator& world = engine.mesh().world();
  auto sequences = static_cast<std::int64_t>(sampler.samples_per_epoch(0));
  if (max_sequences > 0) sequences = std::min(sequences, max_sequences);
  std::array<double, 3> sums{};  // loss, correct, counted
  std::map<std::string, double> more;
  for (std::int64_t first = 0; first < sequences; first += batch * world.size()) {
    const std::int64_t own = first + batch * world.rank();
    const std::int64_t count = std::clamp<std::int64_t>(sequences - own, 0, batch);
    Batch b = read_batch(sampler, static_cast<std::uint64_t>(own), count);
    if (world.size() > 1)
      pad_batch(b, batch, sampler.options().sequence_length, sampler.options().document_mask);
    const BatchLoss loss = engine.loss(b, sampler.options().sequence_length);
    sums[0] += loss.loss_sum;
    sums[1] += loss.num_correct;
    sums[2] += static_cast<double>(count_targets(b));
    for (const auto& [name, sum] : loss.sums) more[name] += sum;
  }
  std::vector<double> values(sums.begin(), sums.end());
  for (const auto& [name, sum] : more) values.push_back(sum);
  world.all_reduce(std::span(values));
  Evaluation e{values[0] / values[2], values[1] / values[2], static_cast<std::int64_t>(values[2])};
  std::size_t i = sums.size();
  for (const auto& [name, sum] : more) e.means[name] = values[i++] / values[2];
  if (const auto it = e.means.find("student_loss"); it != e.means.end()) e.loss = it->second;
  return e;
}

}  // namespace farskip
