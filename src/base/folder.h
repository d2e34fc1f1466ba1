// SPDX-License-Identifier: Apache-2.0
#pragma once
// Files inside a folder of unknown origin: a model, a checkpoint, a run. The folder is what the user named,
// also through a link; what lies in it must not point out of it, so a link is refused, as is all but regular
// files.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/base/file.h"

namespace farskip {

/// Whether `folder` has an entry of this name, of whatever kind: a link that leads nowhere counts too, so
/// that its reader refuses it by name.
bool has_entry(const fs::path& folder, std::string_view name);

/// Content of a file of at most `limit` bytes in `folder`. Errors are those of read_text_file; a link is
/// IoError.
std::string read_inside(const fs::path& folder, std::string_view name, std::uint64_t limit);
/// The same, or nothing where the folder has no such entry.
std::optional<std::string> read_if_inside(const fs::path& folder, std::string_view name, std::uint64_t limit);

/// Names of all entries, sorted; IoError where they cannot be listed.
std::vector<std::string> list_entries(const fs::path& folder);

/// Throws UsageError where `out`, a file that the command line names for writing, is `input` itself or one of
/// the files in it, under whatever name (device and inode count). `option` names it: "--out".
void refuse_overwriting(std::string_view option, const fs::path& out, const fs::path& input);

}  // namespace farskip
