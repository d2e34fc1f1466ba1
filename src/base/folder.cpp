// SPDX-License-Identifier: Apache-2.0
#include "base/folder.h"

#include <algorithm>

#include "farskip/base/error.h"

namespace farskip {

bool has_entry(const fs::path& folder, std::string_view name) {
  std::error_code ignored;  // what cannot be looked at is left to its reader
  return fs::symlink_status(folder / name, ignored).type() != fs::file_type::not_found;
}

std::string read_inside(const fs::path& folder, std::string_view name, std::uint64_t limit) {
  check_file_name(name, folder.string());
  return read_text_file(folder / name, limit, Links::refuse);
}

std::optional<std::string> read_if_inside(const fs::path& folder, std::string_view name,
                                          std::uint64_t limit) {
  if (!has_entry(folder, name)) return std::nullopt;
  return read_inside(folder, name, limit);
}

std::vector<std::string> list_entries(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    names.push_back(it->path().filename().string());
  if (error) throw IoError(fmt::format("{}: cannot list: {}", folder.string(), error.message()));
  std::sort(names.begin(), names.end());
  return names;
}

void refuse_overwriting(std::string_view option, const fs::path& out, const fs::path& input) {
  std::error_code ignored;
  const auto refuse_same = [&](const fs::path& file) {
    if (fs::equivalent(out, file, ignored))
      throw UsageError(fmt::format("{} {} would overwrite {}, which is read here; name another file", option,
                                   out.string(), file.string()));
  };
  if (!fs::exists(out, ignored)) return;
  if (!fs::is_directory(input, ignored)) return refuse_same(input);
  for (const std::string& name : list_entries(input)) refuse_same(input / name);
}

}  // namespace farskip
