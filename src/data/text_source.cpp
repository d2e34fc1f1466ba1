#include "farskip/data/text_source.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "farskip/base/error.h"
#include "farskip/data/token_file.h"
#include "farskip/data/unicode.h"
#include "farskip/tensor/hash.h"
#include "farskip/tensor/strict_json.h"

namespace farskip {
namespace {

constexpr std::uint64_t kMaxDocumentBytes = std::uint64_t{1} << 30;

bool is_jsonl(const fs::path& path) {
  return path.extension() == ".jsonl";
}

bool is_text_file(const fs::path& path) {
  const fs::path extension = path.extension();
  return extension == ".txt" || extension == ".md" || extension == ".rst" || is_jsonl(path);
}

/// Reads a file line by line through a buffer.
class LineReader {
 public:
  explicit LineReader(const fs::path& path) : file_(path) {}

  /// The next line without its '\n'; false at the end.
  bool next(std::string_view& line) {
    line_start_ += line_length_;
    begin_ += line_length_;
    std::size_t end = buffer_.find('\n', begin_);
    while (end == std::string::npos && read_ < file_.size()) {
      const std::size_t searched = buffer_.size() - begin_;
      refill();
      end = buffer_.find('\n', begin_ + searched);
    }
    const bool last = end == std::string::npos;
    if (last && begin_ == buffer_.size()) return false;
    line_length_ = (last ? buffer_.size() : end + 1) - begin_;
    line = std::string_view(buffer_).substr(begin_, line_length_ - (last ? 0 : 1));
    return true;
  }
  std::uint64_t line_start() const { return line_start_; }  // byte offset in the file

 private:
  void refill() {
    constexpr std::uint64_t kPiece = std::uint64_t{1} << 20;
    buffer_.erase(0, begin_);
    begin_ = 0;
    if (buffer_.size() > kMaxDocumentBytes)
      throw DataError(fmt::format("{}: the line at byte {} is longer than {} bytes", file_.path().string(),
                                  line_start_, kMaxDocumentBytes));
    const std::size_t old_size = buffer_.size();
    const std::uint64_t count = std::min(std::max<std::uint64_t>(kPiece, old_size), file_.size() - read_);
    buffer_.resize(old_size + count);
    file_.read_at(read_, std::as_writable_bytes(std::span(buffer_).subspan(old_size)));
    read_ += count;
  }

  InputFile file_;
  std::string buffer_;
  std::size_t begin_ = 0, line_length_ = 0;
  std::uint64_t read_ = 0, line_start_ = 0;
};

[[noreturn]] void refuse_utf8(const std::string& place, std::string_view text, std::size_t at,
                              std::uint64_t offset) {
  throw DataError(fmt::format("{}: byte {:#04x} at offset {} is not UTF-8; convert the file (iconv -t UTF-8)",
                              place, static_cast<unsigned char>(text[at]), offset));
}

void for_each_json_line(const fs::path& path, const std::function<void(std::string_view)>& use) {
  LineReader lines(path);
  std::string_view line;
  for (std::uint64_t number = 1; lines.next(line); ++number) {
    const std::string place = fmt::format("{}:{}", path.string(), number);
    if (const auto bad = find_invalid_utf8(line)) refuse_utf8(place, line, *bad, lines.line_start() + *bad);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const nlohmann::json object = parse_strict_json(line, place);
    const auto text = object.is_object() ? object.find("text") : object.end();
    if (!object.is_object() || text == object.end() || !text->is_string())
      throw DataError(fmt::format("{}: the line at byte {} must be an object with a string \"text\"", place,
                                  lines.line_start()));
    use(text->get_ref<const std::string&>());
  }
}

}  // namespace

std::vector<fs::path> list_text_files(std::span<const fs::path> sources) {
  std::vector<fs::path> files;
  for (const fs::path& source : sources) {
    std::error_code error;
    const fs::file_type kind = fs::status(source, error).type();
    if (kind == fs::file_type::not_found)
      throw MissingInputError(fmt::format("{}: no such file or folder", source.string()));
    if (kind != fs::file_type::directory) {  // what cannot be looked at is reported when it is opened
      files.push_back(source);
      continue;
    }
    std::vector<fs::path> found;
    try {
      for (const auto& entry : fs::recursive_directory_iterator(source))
        if (entry.is_regular_file() && is_text_file(entry.path())) found.push_back(entry.path());
    } catch (const fs::filesystem_error& failure) {
      throw IoError(fmt::format("{}: cannot search: {}", source.string(), failure.code().message()));
    }
    if (found.empty())
      throw MissingInputError(fmt::format("{}: holds no .txt, .md, .rst or .jsonl file", source.string()));
    std::sort(found.begin(), found.end(),
              [](const auto& a, const auto& b) { return a.native() < b.native(); });
    files.insert(files.end(), found.begin(), found.end());
  }
  return files;
}

void for_each_document(const fs::path& file, const std::function<void(std::string_view text)>& use) {
  if (is_jsonl(file)) return for_each_json_line(file, use);
  const std::string text = read_text_file(file, kMaxDocumentBytes);
  if (const auto bad = find_invalid_utf8(text)) refuse_utf8(file.string(), text, *bad, *bad);
  use(text);
}

void tokenize_text(std::span<const fs::path> sources, const Tokenizer& tokenizer, const std::string& prefix) {
  const auto eos = tokenizer.eos();
  if (!eos)
    throw DataError("the tokenizer has no end-of-document token; add <|endoftext|> to its added_tokens");
  TokenFileWriter writer(prefix, token_type_for(tokenizer.vocab_size()));
  Tokenizer::Encoder encoder(tokenizer);
  std::vector<std::int32_t> ids;
  for (const fs::path& file : list_text_files(sources))
    for_each_document(file, [&](std::string_view text) {
      ids.clear();
      encoder.encode(text, ids);
      ids.push_back(*eos);
      writer.add_document(ids);
    });
  if (writer.num_documents() == 0) throw DataError(fmt::format("{}: the sources hold no document", prefix));
  writer.commit();
}

std::string text_cache_key(std::span<const fs::path> sources, const Tokenizer& tokenizer) {
  Hasher hasher;
  hasher.update(fmt::format("farskip tokens 1\n{}\n", hash_text(tokenizer.json())));
  for (const fs::path& path : list_text_files(sources)) {
    const InputFile file(path);
    hasher.update(
        fmt::format("{}:{} {} {}\n", path.native().size(), path.native(), file.size(), hash_file(file)));
  }
  return hasher.hex();
}

std::string tokenize_cached(std::span<const fs::path> sources, const Tokenizer& tokenizer,
                            const fs::path& cache_dir) {
  const std::string key = text_cache_key(sources, tokenizer);
  const fs::path folder = cache_dir / key;
  const std::string prefix = (folder / "tokens").string();
  if (fs::exists(prefix + ".idx")) return prefix;
  std::error_code error;
  fs::create_directories(cache_dir, error);
  if (error)
    throw IoError(fmt::format("{}: cannot create the token cache: {}", cache_dir.string(), error.message()));
  remove_stale_temporaries(cache_dir, [&](std::string_view name) {
    return name.size() == key.size() && name.find_first_not_of("0123456789abcdef") == std::string_view::npos;
  });
  OutputFolder output(folder);
  tokenize_text(sources, tokenizer, (output.temporary() / "tokens").string());
  if (output.commit())
    sync_directory(cache_dir);
  else if (!fs::exists(prefix + ".idx"))  // another process was first, and its folder holds the same tokens
    throw IoError(fmt::format("{}: is there and holds no tokens; remove it", folder.string()));
  return prefix;
}

}  // namespace farskip
