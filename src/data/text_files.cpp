// SPDX-License-Identifier: Apache-2.0
#include "data/text_files.h"

#include <algorithm>
#include <array>
#include <cctype>

#include "farskip/base/error.h"

namespace farskip {
namespace {

std::string lower_extension(const fs::path& path) {
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return extension;
}

std::string shown(const fs::path& path) {
  return printable(path.string(), 300);
}

struct Found {
  std::vector<fs::path> files, skipped;
};

void sort_paths(std::vector<fs::path>& paths) {
  std::sort(paths.begin(), paths.end(), [](const auto& a, const auto& b) { return a.native() < b.native(); });
}

Found search(const fs::path& folder) {
  Found found;
  try {
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      std::error_code broken_link;
      const fs::file_type type = entry.status(broken_link).type();
      if (type == fs::file_type::directory && !entry.is_symlink()) continue;
      const bool is_text = type == fs::file_type::regular && text_format(entry.path());
      (is_text ? found.files : found.skipped).push_back(entry.path());
    }
  } catch (const fs::filesystem_error& failure) {
    throw IoError(fmt::format("{}: cannot search: {}",
                              shown(failure.path1().empty() ? folder : failure.path1()),
                              failure.code().message()));
  }
  sort_paths(found.files);
  sort_paths(found.skipped);
  return found;
}

}  // namespace

std::optional<TextFormat> text_format(const fs::path& path) {
  constexpr std::array<std::pair<std::string_view, TextLayout>, 6> endings{
      {{".txt", TextLayout::plain},
       {".md", TextLayout::plain},
       {".rst", TextLayout::plain},
       {".jsonl", TextLayout::json_lines},
       {".ndjson", TextLayout::json_lines},
       {".json", TextLayout::json}}};
  const bool gzip = lower_extension(path) == ".gz";
  const std::string extension = lower_extension(gzip ? path.stem() : path);
  for (const auto& [ending, layout] : endings)
    if (extension == ending) return TextFormat{layout, gzip};
  return std::nullopt;
}

std::string name_some(std::span<const fs::path> paths) {
  constexpr std::size_t most = 3;
  std::string text;
  for (std::size_t i = 0; i < std::min(most, paths.size()); ++i)
    text += fmt::format("{}{}", i == 0 ? "" : ", ", shown(paths[i]));
  if (paths.size() > most) text += fmt::format(" and {} more", paths.size() - most);
  return text;
}

std::vector<fs::path> list_text_files(std::span<const fs::path> sources, const Logger& logger) {
  std::vector<fs::path> files;
  for (const fs::path& source : sources) {
    std::error_code error;
    const fs::file_type kind = fs::status(source, error).type();
    if (kind == fs::file_type::not_found)
      throw MissingInputError(fmt::format("{}: no such file or folder", shown(source)));
    if (kind != fs::file_type::directory) {  // what cannot be looked at is reported when it is opened
      files.push_back(source);
      continue;
    }
    const Found found = search(source);
    if (found.files.empty())
      throw MissingInputError(fmt::format("{}: holds no text{}; FarSkip reads {}", shown(source),
                                          found.skipped.empty() ? "" : ", but " + name_some(found.skipped),
                                          kTextEndings));
    if (!found.skipped.empty())
      logger.warning("{}: {} of {} files are not read: {}; FarSkip reads {}, and follows no links to folders",
                     shown(source), found.skipped.size(), found.skipped.size() + found.files.size(),
                     name_some(found.skipped), kTextEndings);
    files.insert(files.end(), found.files.begin(), found.files.end());
  }
  return files;
}

}  // namespace farskip
