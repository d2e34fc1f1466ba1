// SPDX-License-Identifier: Apache-2.0
#include "cli/record.h"

#include <algorithm>
#include <cstdio>

namespace farskip {
namespace {

struct Unit {
  std::string_view name;
  double factor;
};
constexpr Unit kUnits[] = {{"ms", 1e3},
                           {"us", 1e6},
                           {"%", 100},
                           {"KiB", 1.0 / (1 << 10)},
                           {"MiB", 1.0 / (1 << 20)},
                           {"GiB", 1.0 / (1 << 30)},
                           {"MB", 1e-6},
                           {"GB", 1e-9},
                           {"G", 1e-9},
                           {"T", 1e-12}};

double factor_of(std::string_view unit) {
  for (const Unit& known : kUnits)
    if (known.name == unit) return known.factor;
  throw InternalError(fmt::format("{} is no unit of a record", unit));
}

const Record& find(const Record& record, std::string_view path) {
  const Record* at = &record;
  for (std::size_t begin = 0; begin <= path.size();) {
    const std::size_t end = std::min(path.find('.', begin), path.size());
    const auto it = at->find(std::string(path.substr(begin, end - begin)));
    FARSKIP_CHECK(it != at->end(), "no field {} in {}", path, json_text(record));
    at = &*it;
    begin = end + 1;
  }
  return *at;
}

template <class T>
std::string formatted(const T& value, std::string_view format) {
  return fmt::format(fmt::runtime(fmt::format("{{:{}}}", format)), value);
}

/// What stands between braces.
std::string field_text(const Record& record, std::string_view form) {
  const std::size_t colon = std::min(form.find(':'), form.size());
  const std::string_view format = form.substr(std::min(colon + 1, form.size()));
  const std::size_t bar = std::min(form.find('|'), colon);
  const std::string_view field = form.substr(0, bar);
  const std::string_view unit = bar < colon ? form.substr(bar + 1, colon - bar - 1) : std::string_view();
  if (unit == "count") return formatted(find(record, field).size(), format);
  if (!unit.empty()) return formatted(factor_of(unit) * number_of(record, field), format);
  if (field.find('/') != std::string_view::npos) return formatted(number_of(record, field), format);
  const Record& value = find(record, field);
  if (value.is_string()) return formatted(value.get_ref<const std::string&>(), format);
  if (value.is_boolean()) return formatted(value.get<bool>(), format);
  const bool wants_real = format.find_first_of("fe") != std::string_view::npos;
  if (value.is_number_float() || (value.is_number() && wants_real))
    return formatted(value.get<double>(), format);
  if (value.is_number_unsigned()) return formatted(value.get<std::uint64_t>(), format);
  FARSKIP_CHECK(value.is_number_integer(), "field {} of {} has no text", field, json_text(record));
  return formatted(value.get<std::int64_t>(), format);
}

}  // namespace

std::string json_text(const Record& record) {
  return record.dump(-1, ' ', false, Record::error_handler_t::replace);
}

void print_json(const Record& record) {
  std::printf("%s\n", json_text(record).c_str());
  std::fflush(stdout);
}

std::string text_of(const Record& record, std::string_view form) {
  std::string text;
  while (true) {
    const std::size_t begin = form.find('{');
    text += form.substr(0, begin);
    if (begin == std::string_view::npos) return text;
    const std::size_t end = form.find('}', begin);
    FARSKIP_CHECK(end != std::string_view::npos, "a brace is open in \"{}\"", form);
    text += field_text(record, form.substr(begin + 1, end - begin - 1));
    form.remove_prefix(end + 1);
  }
}

void print_line(const Record& record, std::string_view form) {
  fmt::print("{}\n", text_of(record, form));
}

void print_lines(const Record& list, std::string_view form) {
  for (const Record& record : list) print_line(record, form);
}

void print_result(const Record& record, std::string_view form, const CommonOptions& common) {
  if (common.json)
    print_json(record);
  else
    print_line(record, form);
}

void print_result(const Record& record, const std::function<void(const Record&)>& print_text,
                  const CommonOptions& common) {
  if (common.json)
    print_json(record);
  else
    print_text(record);
}

void log_result(const Record& record, std::string_view form, const CommonOptions& common,
                const Logger& logger) {
  if (common.json) print_json(record);
  logger.info("{}", text_of(record, form));
}

double number_of(const Record& record, std::string_view field) {
  const std::size_t slash = field.find('/');
  if (slash == std::string_view::npos) return find(record, field).get<double>();
  return number_of(record, field.substr(0, slash)) / number_of(record, field.substr(slash + 1));
}

}  // namespace farskip
