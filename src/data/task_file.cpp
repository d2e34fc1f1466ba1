// SPDX-License-Identifier: Apache-2.0
#include "data/task_file.h"

#include <nlohmann/json.hpp>

#include "data/json_fields.h"
#include "data/text_source.h"
#include "farskip/base/error.h"

namespace farskip {
namespace {

std::vector<std::string> read_choices(JsonFields& fields) {
  const nlohmann::json& list = fields.require("choices");
  if (!list.is_array() || list.empty())
    throw DataError(fmt::format("{}: {}; allowed: a list of one text or more", fields.at("choices"),
                                list.is_array() ? "an empty list" : list.type_name()));
  std::vector<std::string> choices;
  for (const nlohmann::json& choice : list) {
    if (!choice.is_string() || choice.get_ref<const std::string&>().empty())
      throw DataError(fmt::format("{}[{}]: {}; allowed: a text that is not empty", fields.at("choices"),
                                  choices.size(), printable(choice.dump())));
    choices.push_back(choice.get<std::string>());
  }
  return choices;
}

std::int64_t read_gold(JsonFields& fields, std::size_t num_choices) {
  const nlohmann::json& gold = fields.require("gold");
  if (!gold.is_number_unsigned() || gold.get<std::uint64_t>() >= num_choices)
    throw DataError(fmt::format("{}: {}; allowed: the index of the right choice, an integer from 0 to {}",
                                fields.at("gold"), printable(gold.dump()), num_choices - 1));
  return gold.get<std::int64_t>();
}

TaskItem read_item(const nlohmann::json& line, const std::string& place) {
  JsonFields fields(line, place);
  TaskItem item{fields.require_string("context"), read_choices(fields), 0, place};
  item.gold = read_gold(fields, item.choices.size());
  return item;
}

}  // namespace

Task read_task(const fs::path& path) {
  Task task{(path.extension() == ".gz" ? path.stem() : path).stem().string(), {}};
  for_each_json_line(path, [&](const nlohmann::json& line, const std::string& place, std::uint64_t) {
    task.items.push_back(read_item(line, place));
  });
  if (task.items.empty())
    throw DataError(
        fmt::format("{}: holds no item; a task has one object {{\"context\", \"choices\", \"gold\"}} a line",
                    printable(path.string(), 1000)));
  return task;
}

}  // namespace farskip
