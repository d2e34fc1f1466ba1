// SPDX-License-Identifier: Apache-2.0
#pragma once
// Multiple-choice tasks: one JSON object a line, {"context": text, "choices": [text, …], "gold": index}.

#include <cstdint>
#include <string>
#include <vector>

#include "farskip/base/file.h"

namespace farskip {

/// Which of the choices follows the context?
struct TaskItem {
  std::string context;               // may be empty
  std::vector<std::string> choices;  // at least one, none is empty
  std::int64_t gold = 0;             // index of the right choice
  std::string place;                 // FILE:LINE
};
struct Task {
  std::string name;             // that of the file, without .jsonl and .gz
  std::vector<TaskItem> items;  // at least one
};

/// Reads a task from JSONL (.gz too). Other keys are passed over, as are blank lines. Throws
/// MissingInputError, or DataError naming file, line and key: text that is not UTF-8, broken JSON, a key that
/// is missing or of the wrong type, no choices, an empty one, gold out of range, a file without items.
Task read_task(const fs::path& path);

}  // namespace farskip
