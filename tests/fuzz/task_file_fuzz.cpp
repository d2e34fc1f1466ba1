// SPDX-License-Identifier: Apache-2.0
// A multiple-choice task in JSONL.
#include "data/task_file.h"
#include "fuzz.h"

using namespace farskip;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  static const fuzz::Folder folder;
  folder.write("task.jsonl", fuzz::as_text(bytes, size));
  fuzz::read_or_refuse([&] {
    const Task task = read_task(folder.path() / "task.jsonl");
    fuzz::require(!task.items.empty());
    for (const TaskItem& item : task.items)
      fuzz::require(item.gold >= 0 && item.gold < static_cast<std::int64_t>(item.choices.size()));
  });
  return 0;
}
