// SPDX-License-Identifier: Apache-2.0
#include "run/run_data.h"

#include <functional>
#include <optional>

#include "base/environment.h"
#include "comm/collective_errors.h"
#include "data/text_source.h"
#include "distill/teacher.h"
#include "infer/evaluate.h"
#include "tensor/hash.h"

namespace farskip {
namespace {

/// What `read` gives; its errors begin with the key of the configuration that names the file.
template <class F>
auto under_key(std::string_view key, const F& read) {
  const auto message = [key](const Error& error) { return fmt::format("{}: {}", key, error.what()); };
  try {
    return read();
  } catch (const MissingInputError& error) {
    throw MissingInputError(message(error));
  } catch (const DataError& error) {
    throw DataError(message(error));
  } catch (const IoError& error) {
    throw IoError(message(error));
  }
}

/// The usual mistake is to give the text itself.
std::shared_ptr<TokenFile> open_tokens(const std::string& prefix, std::int64_t vocab_size) {
  try {
    return std::make_shared<TokenFile>(prefix, vocab_size);
  } catch (const MissingInputError& error) {
    throw MissingInputError(fmt::format(
        "{}{}; the key takes the PREFIX of token files, which 'farskip data tokenize TEXT --tokenizer "
        "tokenizer.json --out PREFIX' makes from text",
        error.what(), fs::exists(prefix) ? fmt::format(", and {} is no token file", prefix) : ""));
  }
}

// Validation sources are read in order and to the end, so the numbers of two runs compare.
SamplerOptions sampler_options(const RunConfig& config, bool training) {
  SamplerOptions options;
  options.seed = static_cast<std::uint64_t>(config.seed);
  options.sequence_length = config.train.sequence_length;
  options.shuffle = training && config.data.shuffle;
  options.whole_stream = !training;
  options.document_mask = config.data.document_mask;
  options.prompt_end = config.data.prompt_end;
  options.padding = config.data.padding;
  return options;
}

std::unique_ptr<Sampler> make_sampler(std::string_view key, const std::vector<std::string>& prefixes,
                                      const std::vector<double>& weights, std::int64_t vocab_size,
                                      const SamplerOptions& options) {
  std::vector<SamplerSource> sources;
  for (std::size_t i = 0; i < prefixes.size(); ++i) {
    const double weight = i < weights.size() ? weights[i] : 1.0;
    if (weight > 0)
      sources.push_back({under_key(key, [&] { return open_tokens(prefixes[i], vocab_size); }), weight});
  }
  return std::make_unique<Sampler>(std::move(sources), options);
}

/// Whether any target of a source counts; looks no further than the first that does.
bool has_targets(const Sampler& source) {
  const SamplerOptions& o = source.options();
  if (!o.document_mask && !o.prompt_end && !o.padding) return true;
  for (std::uint64_t number = 0; number < source.samples_per_epoch(0); ++number)
    if (count_targets(read_batch(source, number, 1)) > 0) return true;
  return false;
}

// A source without targets has no mean. If all are so, they stay, and there is no validation loss.
std::vector<std::unique_ptr<Sampler>> open_validation(const RunConfig& config, std::int64_t vocab_size,
                                                      const Logger& logger) {
  std::vector<std::unique_ptr<Sampler>> sources, without;
  std::vector<std::string> names;
  for (const std::string& prefix : config.data.validation) {
    auto source = make_sampler("data.validation", {prefix}, {}, vocab_size, sampler_options(config, false));
    const bool counts = has_targets(*source);
    if (!counts) names.push_back(prefix);
    (counts ? sources : without).push_back(std::move(source));
  }
  if (names.empty()) return sources;
  const std::string problem = fmt::format("data.validation: {}: {}", fmt::join(names, ", "), kNoTargets);
  if (!sources.empty()) {
    logger.warning("{}; left out of the validation loss", problem);
    return sources;
  }
  if (config.distill && config.distill->early_stopping)
    throw DataError(fmt::format("{}, and distill.early_stopping has no metric to look at", problem));
  logger.warning("{}; validation_loss is null", problem);
  return without;
}

}  // namespace

Companions read_run_companions(const RunConfig& config) {
  const std::string& source =
      config.init_from.empty() && config.distill ? config.distill->teacher : config.init_from;
  if (!config.data.tokenizer.empty())
    return read_companions(
        source, under_key("data.tokenizer", [&] { return Tokenizer::load(config.data.tokenizer); }));
  return source.empty() ? Companions{} : read_companions(source);
}

namespace {

RunData open_sources(const RunConfig& config, const ModelConfig& model, const Logger& logger) {
  for (const auto& [key, id] :
       {std::pair{"prompt_end", config.data.prompt_end}, {"padding", config.data.padding}})
    if (id && *id >= model.vocab_size)
      throw UsageError(
          fmt::format("data.{} is {}, and the model's vocabulary ends with {}; no token has that id", key,
                      *id, model.vocab_size - 1));
  RunData data;
  data.companions = read_run_companions(config);
  const std::optional<Tokenizer>& named = data.companions.tokenizer;
  std::vector<std::string> sources = config.data.tokens;
  if (!config.data.text.empty() && !named) {
    const std::string& fault = data.companions.tokenizer_fault;
    if (!fault.empty()) throw DataError(fault);
    throw UsageError(
        "data.text needs data.tokenizer (a tokenizer.json; 'farskip data train-tokenizer' makes one)");
  }
  if (!config.data.text.empty() || !config.data.tokenizer.empty())
    if (named->vocab_size() > model.vocab_size)
      throw UsageError(
          fmt::format("data.tokenizer {} has {} tokens, model.vocab_size is {}; raise vocab_size",
                      config.data.tokenizer, named->vocab_size(), model.vocab_size));
  if (!config.data.text.empty()) {
    const Tokenizer& tokenizer = *named;
    const fs::path cache = fs::path(config.run_dir).parent_path() / "cache";
    for (const std::string& text : config.data.text) {
      const std::vector<fs::path> one{text};
      const auto files = under_key("data.text", [&] { return list_text_files(one, logger); });
      sources.push_back(tokenize_cached(files, tokenizer, cache, logger));
      logger.info("{}: tokens in {}", text, sources.back());
    }
  }
  data.train = make_sampler(config.data.text.empty() ? "data.tokens" : "data.text", sources,
                            config.data.weights, model.vocab_size, sampler_options(config, true));
  data.validation = open_validation(config, model.vocab_size, logger);
  return data;
}

}  // namespace

RunData open_run_data(const RunConfig& config, const ModelConfig& model, const Communicator& world,
                      const Logger& logger) {
  std::optional<RunData> data;  // of rank 0; the others are not there yet
  const std::function<void()> open = [&] { data.emplace(open_sources(config, model, logger)); };
  work_together(world, "files that rank 0 prepares", world.rank() == 0 ? open : nullptr);
  if (!data) open();
  return std::move(*data);
}

RunSettings describe_contents(const RunConfig& config, const RunData& data) {
  std::vector<std::string> validation;
  for (const auto& source : data.validation) validation.push_back(source->contents_text());
  RunSettings contents{{kDataContents, data.train->contents_text()}};
  if (!validation.empty()) contents[kValidationContents] = fmt::format("{}", fmt::join(validation, " + "));
  if (const auto it = data.companions.texts.find("tokenizer.json"); it != data.companions.texts.end())
    contents[kTokenizerContents] = "hash " + hash_text(it->second);
  if (config.distill) contents[kTeacherContents] = "hash " + fingerprint_model(config.distill->teacher);
  return contents;
}

std::vector<Batch> StepSamples::read(const Sampler& sampler, std::int64_t step_first) const {
  std::vector<Batch> batches;
  for (std::int64_t part = 0; part < micro_batches; ++part)
    batches.push_back(read_batch(sampler, static_cast<std::uint64_t>(first(step_first, part)), micro_batch));
  return batches;
}

std::string StepSamples::text(std::int64_t step_first) const {
  std::vector<std::string> parts;
  for (std::int64_t part = 0; part < micro_batches; ++part) {
    const std::int64_t begin = first(step_first, part);
    parts.push_back(fmt::format("{} to {}", begin, begin + micro_batch - 1));
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

}  // namespace farskip
