#pragma once
// Raw text: plain files (one document each) and JSONL (one document a line, key "text").

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/base/file.h"
#include "farskip/data/tokenizer.h"

namespace farskip {

/// The files of `sources` in the order given; a folder stands for its .txt, .md, .rst and .jsonl files,
/// searched recursively and sorted by path. Any file may be named explicitly. Throws MissingInputError for
/// a path that does not exist and a folder without such files.
std::vector<fs::path> list_text_files(std::span<const fs::path> sources);

/// Calls `use` with each document of one file. A .jsonl file has one JSON object a line, of which "text"
/// is used; blank lines are passed over. Throws DataError naming file, byte offset and, in JSONL, line, for
/// text that is not UTF-8, broken JSON and a missing "text".
void for_each_document(const fs::path& file, const std::function<void(std::string_view text)>& use);

/// Writes every document and an end-of-document token after each to PREFIX.bin/.idx (u16 where the ids
/// fit, otherwise i32). Throws DataError if the tokenizer has no eos() or there is no document.
void tokenize_text(std::span<const fs::path> sources, const Tokenizer& tokenizer, const std::string& prefix);

/// What the cached tokens depend on: XXH3-128 of the tokenizer and of every file's path, size and content.
std::string text_cache_key(std::span<const fs::path> sources, const Tokenizer& tokenizer);

/// tokenize_text() into `cache_dir`, unless that has been done; returns the prefix. The finished folder
/// appears in one rename, so several processes may do this at once.
std::string tokenize_cached(std::span<const fs::path> sources, const Tokenizer& tokenizer,
                            const fs::path& cache_dir);

}  // namespace farskip
