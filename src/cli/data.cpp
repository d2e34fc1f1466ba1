// SPDX-License-Identifier: Apache-2.0
#include <list>

#include "base/folder.h"
#include "cli/record.h"
#include "data/bpe_trainer.h"
#include "data/ngram.h"
#include "data/text_source.h"

namespace farskip {
namespace {

struct Options {
  std::vector<std::string> text;
  std::string tokenizer, out, train, validation, prefix;
  std::int64_t vocab_size = 4096, holdout_every = 0;
};

std::vector<fs::path> text_files(const Options& options, const Logger& logger) {
  const std::vector<fs::path> sources(options.text.begin(), options.text.end());
  return list_text_files(sources, logger);
}

ExitCode train_tokenizer(const Options& options, const CommonOptions& common) {
  const std::vector<fs::path> files = text_files(options, common.logger());
  for (const fs::path& file : files) refuse_overwriting("--out", options.out, file);
  OutputFile out(options.out);  // now: one that cannot be written is found before the work
  const fs::path path(options.out), folder = path.parent_path();
  remove_stale_temporaries(folder.empty() ? fs::path(".") : folder,
                           [&](std::string_view name) { return name == path.filename().string(); });
  BpeTrainer trainer;
  std::uint64_t bytes = 0;
  for (const fs::path& file : files)
    for_each_document(file, [&](std::string_view text) {
      trainer.add_text(text);
      bytes += text.size();
    });
  if (bytes == 0)
    throw DataError(
        fmt::format("the sources hold no document with text to learn from: {}", name_some(files)));
  BpeTrainerOptions bpe;
  bpe.vocab_size = options.vocab_size;
  const Tokenizer tokenizer = trainer.train(bpe);
  out.write(tokenizer.json());
  out.commit();
  if (tokenizer.vocab_size() < options.vocab_size)
    common.logger().warning(
        "{}: {} tokens, fewer than the {} of --vocab-size: no other pair stands in the text twice; give more "
        "text, or make vocab_size of the model {}",
        options.out, tokenizer.vocab_size(), options.vocab_size, tokenizer.vocab_size());
  const Record result{{"out", options.out},
                      {"vocab_size", tokenizer.vocab_size()},
                      {"files", files.size()},
                      {"bytes", bytes}};
  log_result(result, "{out}: {vocab_size} tokens, from {files} files, {bytes|MB:.1f} MB", common,
             common.logger());
  return ExitCode::ok;
}

void print_tokens(const std::string& prefix, const CommonOptions& common) {
  const TokenFile file(prefix);
  print_result({{"prefix", prefix},
                {"documents", file.num_documents()},
                {"tokens", file.num_tokens()},
                {"dtype", std::string(token_type_name(file.type()))}},
               "{prefix}: {documents} documents, {tokens} tokens, {dtype}", common);
}

// Every Nth file, in sorted order, is held out: training and validation text never share a document.
ExitCode tokenize(const Options& options, const CommonOptions& common) {
  const Tokenizer tokenizer = Tokenizer::load(options.tokenizer);
  std::vector<fs::path> train, held_out;
  for (const fs::path& file : text_files(options, common.logger())) {
    const std::size_t n = train.size() + held_out.size() + 1;
    const bool hold = options.holdout_every > 0 && n % static_cast<std::size_t>(options.holdout_every) == 0;
    (hold ? held_out : train).push_back(file);
  }
  if (options.holdout_every > 0 && (held_out.empty() || train.empty()))
    throw UsageError(fmt::format("--holdout-every {}: of {} files, nothing would be {}",
                                 options.holdout_every, train.size() + held_out.size(),
                                 held_out.empty() ? "held out" : "left"));
  for (const std::string& prefix : {options.out, options.out + "-validation"})
    for (const char* suffix : {".bin", ".idx"}) {
      refuse_overwriting("--out", prefix + suffix, options.tokenizer);
      for (const std::vector<fs::path>* files : {&train, &held_out})
        for (const fs::path& file : *files) refuse_overwriting("--out", prefix + suffix, file);
    }
  std::list<TokenFileWriter> writers;  // both now: one that cannot be written is found before the work
  const TokenType type = token_type_for(tokenizer.vocab_size());
  writers.emplace_back(options.out, type);
  if (!held_out.empty()) writers.emplace_back(options.out + "-validation", type);
  add_text(train, tokenizer, writers.front(), common.logger());
  if (!held_out.empty()) add_text(held_out, tokenizer, writers.back(), common.logger());
  for (TokenFileWriter& writer : writers) {
    writer.commit();
    print_tokens(writer.prefix(), common);
  }
  return ExitCode::ok;
}

ExitCode decode(const Options& options, const CommonOptions& common) {
  const Tokenizer tokenizer = Tokenizer::load(options.tokenizer);
  const TokenFile file(options.prefix, tokenizer.vocab_size());
  for (std::uint64_t i = 0; i < file.num_documents(); ++i) {
    const std::vector<std::int32_t> ids = file.document(i);
    print_result({{"document", i}, {"ids", ids}, {"text", tokenizer.decode(ids)}}, "{text}", common);
  }
  return ExitCode::ok;
}

ExitCode baselines(const Options& options, const CommonOptions& common) {
  const TokenFile train(options.train), validation(options.validation);
  const NgramBaseline model(train, 0, train.num_tokens(), options.vocab_size);
  const NgramLoss loss = model.evaluate(validation, 0, validation.num_tokens());
  print_result(
      {{"unigram", loss.unigram}, {"bigram", loss.bigram}, {"tokens", loss.num_predicted}},
      "unigram {unigram:.4f}, bigram (interpolated Kneser-Ney) {bigram:.4f} nats/token on {tokens} tokens",
      common);
  return ExitCode::ok;
}

}  // namespace

void add_data(Subcommand& root) {
  auto o = std::make_shared<Options>();
  Subcommand data = root.add("data", "Make tokenizers and token files");

  Subcommand tokenizer = data.add("train-tokenizer", "Learn a byte-level BPE vocabulary from text");
  tokenizer.positionals("TEXT", o->text, "Files or folders of text, JSON lines or JSON, also .gz");
  tokenizer.integer("--vocab-size", o->vocab_size,
                    "Number of tokens, including the 256 bytes and <|endoftext|>", 257, 1 << 20);
  tokenizer.required_path("--out", o->out, "tokenizer.json to write");
  tokenizer.run([o](const CommonOptions& common) { return train_tokenizer(*o, common); });

  Subcommand tokens = data.add("tokenize", "Turn text into a token file (PREFIX.bin, PREFIX.idx)");
  tokens.positionals("TEXT", o->text, "Files or folders of text, JSON lines or JSON, also .gz");
  tokens.required_path("--tokenizer", o->tokenizer, "tokenizer.json");
  tokens.required_path("--out", o->out, "Prefix to write");
  tokens.integer("--holdout-every", o->holdout_every,
                 "Put every Nth file into PREFIX-validation instead (0: none)", 0);
  tokens.run([o](const CommonOptions& common) { return tokenize(*o, common); });

  Subcommand info = data.add("info", "Show what a token file holds");
  info.positional("PREFIX", o->prefix, "Token file prefix");
  info.run([o](const CommonOptions& common) {
    print_tokens(o->prefix, common);
    return ExitCode::ok;
  });

  Subcommand text = data.add("decode", "Print the text of a token file, document by document");
  text.positional("PREFIX", o->prefix, "Token file prefix");
  text.required_path("--tokenizer", o->tokenizer, "tokenizer.json");
  text.run([o](const CommonOptions& common) { return decode(*o, common); });

  Subcommand baseline = data.add("baselines", "Measure the held-out loss of unigram and bigram models");
  baseline.required_path("--train", o->train, "Token file prefix to fit on");
  baseline.required_path("--validation", o->validation, "Token file prefix to measure on");
  baseline.integer("--vocab-size", o->vocab_size, "Number of token ids", 2, 1 << 24);
  baseline.run([o](const CommonOptions& common) { return baselines(*o, common); });
}

}  // namespace farskip
