// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <limits>
#include <map>

#include "base/folder.h"
#include "cli/generator.h"
#include "cli/record.h"
#include "infer/prompt_file.h"
#include "infer/request_fields.h"
#include "infer/text_journal.h"
#include "tensor/hash.h"

namespace farskip {
namespace {

struct Options {
  std::string prompt, prompts, out_tokens;
  GenerationRequest request;
  GeneratorOptions generator;
};

/// What ranks of a job must be asked alike.
JobRequest request_of(const Options& o) {
  const SamplingOptions& s = o.request.sampling;
  JobRequest request = request_job(
      "generate", {{"--prompt", make_node(o.prompt)},
                   {"--prompts", make_node(o.prompts)},
                   {"--max-tokens", make_node(o.request.max_tokens)},
                   {"sampling", make_node(fmt::format("{} {} {} {} {} {}", s.temperature, s.top_k, s.top_p,
                                                      s.min_p, s.repetition_penalty, s.seed))}});
  set_alike(request.alike, o.generator);
  return request;
}

ExitCode continue_one(const Options& options, const CommonOptions& common, Job& job) {
  const Logger& logger = job.logger;
  const Generator g = open_generator(options.generator, true, job);
  GenerationRequest request = options.request;
  request.prompt = g.tokenizer()->encode_prompt(options.prompt);
  if (request.prompt.empty()) throw UsageError("--prompt is empty; give at least one character");
  check_token_ids(request.prompt, g.model.config.vocab_size, g.tokenizer()->where());
  const auto prompt_tokens = static_cast<std::int64_t>(request.prompt.size());
  CachedEngine engine = make_cached_engine(options.generator, g, 1, prompt_tokens + request.max_tokens);
  if (!leads(engine, job)) return ExitCode::ok;
  ContinuousBatch batch(engine, batch_options(g, 1));
  batch.submit(std::move(request));
  std::vector<ContinuousBatch::Ended> ended;
  while (ended.empty()) ended = batch.step();
  const Generated& made = ended[0].text;
  check_finite(made);
  if (made.end == GenerationEnd::context)
    logger.warning("the text ends after {} of {} tokens: the model's max_position_embeddings is {}",
                   made.ids.size(), options.request.max_tokens, g.model.config.max_positions);
  print_result({{"prompt", options.prompt},
                {"text", made.text},
                {"ids", made.ids},
                {"prompt_tokens", prompt_tokens},
                {"finish", name_of(generation_end_names, made.end)}},
               "{prompt}{text}", common);
  return ExitCode::ok;
}

/// What is done with texts, in the order of the prompts.
class TextSink {
 public:
  TextSink(const Options& options, const Generator& generator) : generator_(generator) {
    if (options.out_tokens.empty()) return;
    for (const char* suffix : {".bin", ".idx", ".partial.jsonl"})
      refuse_overwriting("--out-tokens", options.out_tokens + suffix, options.prompts);
    journal_.emplace(options.out_tokens, asked(options));
  }
  /// Requests of this start whose texts have been written.
  std::int64_t num_written() const { return next_; }
  /// Texts that an earlier start has made.
  std::int64_t num_done() const { return journal_ ? journal_->num_texts() : 0; }

  /// Each as soon as all before it have come. `request`: the number among those of this start.
  void add(std::int64_t request, std::vector<std::int32_t> prompt, Generated made) {
    done_.emplace(request, std::pair(std::move(prompt), std::move(made)));
    for (auto it = done_.find(next_); it != done_.end(); it = done_.find(++next_)) {
      write(it->second.first, it->second.second);
      done_.erase(it);
    }
  }
  void finish(const CommonOptions& common, const std::string& prefix) {
    if (!journal_) return;
    const std::int64_t texts = journal_->num_texts();
    print_result({{"prefix", prefix},
                  {"documents", texts},
                  {"tokens", journal_->finish(generator_.model.config.vocab_size)}},
                 "{prefix}: {documents} documents, {tokens} tokens", common);
  }

 private:
  /// Everything that texts depend on; of large weights a part.
  std::string asked(const Options& o) const {
    const SamplingOptions& s = o.request.sampling;
    std::string text = fmt::format("{} {} {} {} {} {} {} {} {} {} {}", hash_file(fs::path(o.prompts)),
                                   o.request.max_tokens, s.temperature, s.top_k, s.top_p, s.min_p,
                                   s.repetition_penalty, s.seed, nlohmann::json(o.request.stop).dump(),
                                   o.generator.device.precision, hub_config_text(generator_.model.config));
    for (const std::string& name : list_entries(generator_.model.folder))
      if (name.ends_with(".safetensors")) text += fingerprint_file(InputFile(generator_.model.folder / name));
    if (generator_.tokenizer()) text += generator_.tokenizer()->json();
    return hash_text(text);
  }
  void write(std::vector<std::int32_t>& tokens, const Generated& made) {
    if (!journal_)
      return print_json(
          {{"text", made.text}, {"ids", made.ids}, {"finish", name_of(generation_end_names, made.end)}});
    tokens.insert(tokens.end(), made.ids.begin(), made.ids.end());
    if (made.end_token) tokens.push_back(*made.end_token);
    journal_->add(tokens);
  }

  const Generator& generator_;
  std::optional<TextJournal> journal_;
  std::map<std::int64_t, std::pair<std::vector<std::int32_t>, Generated>> done_;
  std::int64_t next_ = 0;
};

ExitCode continue_file(const Options& options, const CommonOptions& common, Job& job) {
  const Logger& logger = job.logger;
  const Generator g = open_generator(options.generator, !options.request.stop.empty(), job);
  const std::int64_t at_once = options.generator.batch;
  CachedEngine engine = make_cached_engine(options.generator, g, at_once, g.model.config.max_positions);
  if (!leads(engine, job)) return ExitCode::ok;
  TextSink sink(options, g);
  PromptFile prompts(options.prompts, g.tokenizer(), g.model.config.vocab_size, options.request);
  for (std::int64_t i = 0; i < sink.num_done(); ++i)
    if (!prompts.next()) break;
  if (sink.num_done() > 0) logger.info("goes on after {} texts", sink.num_done());
  ContinuousBatch batch(engine, batch_options(g, at_once));
  std::map<std::int64_t, std::vector<std::int32_t>> open;  // prompts of texts that have not ended
  const auto start = std::chrono::steady_clock::now();
  std::size_t num_read = 0, num_made = 0;
  std::int64_t num_requests = 0;
  for (bool more = true; more || batch.num_open() > 0;) {
    // Prompts are read as they are needed: a file may hold millions.
    const std::int64_t most_ahead = 64 * at_once;  // of the oldest text that is still continued
    while (more && batch.num_open() < 2 * at_once && num_requests - sink.num_written() < most_ahead) {
      std::optional<GenerationRequest> request = prompts.next();
      more = request.has_value();
      if (!more) break;
      ++num_requests;
      std::vector<std::int32_t> prompt = request->prompt;
      num_read += prompt.size();
      try {
        open[batch.submit(std::move(*request))] = std::move(prompt);
      } catch (const UsageError& error) {
        throw DataError(fmt::format("{}: {}", prompts.place(), error.what()));
      }
    }
    for (ContinuousBatch::Ended& ended : batch.step()) {
      check_finite(ended.text);
      num_made += ended.text.ids.size();
      sink.add(ended.request, std::move(open.extract(ended.request).mapped()), std::move(ended.text));
    }
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  logger.info("read {} tokens and made {} in {:.2f} s, {:.0f} tokens/s", num_read, num_made, seconds,
              static_cast<double>(num_made) / seconds);
  sink.finish(common, options.out_tokens);
  return ExitCode::ok;
}

ExitCode run(const Options& options, const CommonOptions& common) {
  if (options.prompt.empty() == options.prompts.empty())
    throw UsageError("give either --prompt TEXT or --prompts FILE");
  try {
    check_stops(options.request.stop, "--stop");
  } catch (const DataError& error) {
    throw UsageError(error.what());
  }
  return run_job(common, request_of(options), [&](Job& job) {
    return options.prompts.empty() ? continue_one(options, common, job) : continue_file(options, common, job);
  });
}

}  // namespace

void add_generate(Subcommand& root) {
  auto o = std::make_shared<Options>();
  Subcommand sub = root.add("generate", "Continue texts, greedily or by sampling");
  add_generator_options(sub, o->generator);
  sub.text("--prompt", o->prompt, "Text to continue");
  sub.path("--prompts", o->prompts,
           "JSONL of {\"prompt\": text or [ids]} with settings of their own; gives JSONL, in order");
  sub.path("--out-tokens", o->out_tokens,
           "Instead: a token file PREFIX.bin, PREFIX.idx with prompts and texts; goes on where it was ended");
  sub.needs("--out-tokens", "--prompts");
  GenerationRequest& r = o->request;
  sub.integer("--max-tokens", r.max_tokens, "Largest number of new tokens", 1, kMostNewTokens);
  sub.real("--temperature", r.sampling.temperature,
           "Sampling temperature; 0 always takes the most likely token", 0.0, kMostTemperature);
  sub.integer("--top-k", r.sampling.top_k, "Sample among the k most likely tokens (0: all)", 0,
              std::numeric_limits<std::int32_t>::max());
  sub.real("--top-p", r.sampling.top_p, "Sample among the most likely tokens that sum to this probability",
           0.0, 1.0);
  sub.real("--min-p", r.sampling.min_p,
           "Sample among tokens at least so likely, relative to the most likely one", 0.0, 1.0);
  sub.real("--repetition-penalty", r.sampling.repetition_penalty,
           "Divides the logits of tokens that stand in the text (1: no penalty)", kLeastPenalty,
           kMostPenalty);
  sub.texts("--stop", r.stop, "Texts before which a text ends");
  sub.integer("--seed", r.sampling.seed, "Seed for sampling", 0, kMostSeed);
  sub.run_on_ranks([o](const CommonOptions& common) { return run(*o, common); });
}

}  // namespace farskip
