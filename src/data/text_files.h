// SPDX-License-Identifier: Apache-2.0
#pragma once
// Which files hold text, and of which format it is.

#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "farskip/base/file.h"
#include "farskip/base/log.h"

namespace farskip {

enum class TextLayout {
  plain,       // the file is one document
  json_lines,  // one object a line, whose string "text" is a document
  json         // an array of such objects, one object, or one a line after all
};
struct TextFormat {
  TextLayout layout = TextLayout::plain;
  bool gzip = false;
};

inline constexpr std::string_view kTextEndings =
    ".txt, .md, .rst, .jsonl, .ndjson and .json, each also compressed (.gz)";

/// By the name's ending, in upper or lower case; nothing if it is not one of kTextEndings.
std::optional<TextFormat> text_format(const fs::path& path);

/// The files of `sources` in the order given; a folder stands for its files of a known format, searched
/// recursively and sorted by path. Links to folders are not followed. What is left out of a folder is named
/// in a warning. Any file may be named explicitly. Throws MissingInputError for a path that does not exist
/// and a folder without such files.
std::vector<fs::path> list_text_files(std::span<const fs::path> sources, const Logger& logger);

/// The first few paths, as messages show them, and how many more there are.
std::string name_some(std::span<const fs::path> paths);

}  // namespace farskip
