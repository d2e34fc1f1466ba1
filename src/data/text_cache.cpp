// SPDX-License-Identifier: Apache-2.0
// Tokens of raw text, kept by a hash of what they depend on.
#include "data/text_source.h"
#include "farskip/base/error.h"
#include "tensor/hash.h"

namespace farskip {
std::string text_cache_key(std::span<const fs::path> files, const Tokenizer& tokenizer) {
  Hasher hasher;
  hasher.update(fmt::format("farskip tokens 2\n{}\n", hash_text(tokenizer.json())));
  for (const fs::path& path : files) {
    const InputFile file(path);
    hasher.update(
        fmt::format("{}:{} {} {}\n", path.native().size(), path.native(), file.size(), hash_file(file)));
  }
  return hasher.hex();
}

std::string tokenize_cached(std::span<const fs::path> files, const Tokenizer& tokenizer,
                            const fs::path& cache_dir, const Logger& logger) {
  const std::string key = text_cache_key(files, tokenizer);
  const fs::path folder = cache_dir / key;
  const std::string prefix = (folder / "tokens").string();
  remove_stale_temporaries(cache_dir, [&](std::string_view name) {
    return name.size() == key.size() && name.find_first_not_of("0123456789abcdef") == std::string_view::npos;
  });
  if (fs::exists(prefix + ".idx")) return prefix;
  std::error_code error;
  fs::create_directories(cache_dir, error);
  if (error)
    throw IoError(fmt::format("{}: cannot create the token cache: {}", cache_dir.string(), error.message()));
  OutputFolder output(folder);
  TokenFileWriter writer((output.temporary() / "tokens").string(), token_type_for(tokenizer.vocab_size()));
  add_text(files, tokenizer, writer, logger);
  writer.commit();
  if (output.commit())
    sync_directory(cache_dir);
  else if (!fs::exists(prefix + ".idx"))  // another process was first, and its folder holds the same tokens
    throw IoError(fmt::format("{}: is there and holds no tokens; remove it", folder.string()));
  return prefix;
}

}  // namespace farskip
