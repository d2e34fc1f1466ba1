// SPDX-License-Identifier: Apache-2.0
#include "config/fields.h"

namespace farskip {
namespace {

template <class T>
ConfigNode list_of(const std::vector<T>& values) {
  std::vector<ConfigNode> nodes;
  for (const T& value : values) {
    if constexpr (std::is_same_v<T, std::string>)
      nodes.push_back(make_node(std::string_view(value)));
    else
      nodes.push_back(make_node(value));
  }
  return make_list(std::move(nodes));
}

ConfigNode text_or_null(const std::string& value) {
  return value.empty() ? ConfigNode{} : make_node(std::string_view(value));
}

}  // namespace

ConfigNode make_list_of(const std::vector<std::string>& texts) {
  return list_of(texts);
}
ConfigNode make_list_of(const std::vector<std::int64_t>& numbers) {
  return list_of(numbers);
}

void Fields::integers(std::string_view key, std::vector<std::int64_t>& values, IntegerRange range) {
  if (writes()) return set(key, list_of(values));
  values = reader_->integers(key, range, {}, values);
}

void Fields::real(std::string_view key, double& value, RealRange range) {
  if (writes()) return set(key, make_node(value));
  value = reader_->real(key, range, value);
}

void Fields::reals(std::string_view key, std::vector<double>& values, RealRange range, ListSize size) {
  if (writes()) return set(key, list_of(values));
  values = reader_->reals(key, range, size, values);
}

void Fields::boolean(std::string_view key, bool& value) {
  if (writes()) return set(key, make_node(value));
  value = reader_->boolean(key, value);
}

void Fields::text(std::string_view key, std::string& value) {
  if (writes()) return set(key, text_or_null(value));
  value = reader_->optional_string(key).value_or(value);
}

void Fields::path(std::string_view key, std::string& value) {
  if (writes()) return set(key, text_or_null(value));
  value = reader_->optional_path(key).value_or(value);
}

void Fields::paths(std::string_view key, std::vector<std::string>& values) {
  if (writes()) return set(key, list_of(values));
  values = reader_->paths(key);
}

void Fields::memory(std::string_view key, std::optional<std::uint64_t>& bytes, std::string_view automatic) {
  if (!writes())
    bytes = reader_->optional_memory(key, automatic);
  else if (bytes)
    set(key, make_word(fmt::format("{}B", *bytes)));
  else
    set(key, automatic.empty() ? ConfigNode{} : make_word(automatic));
}

void Fields::section(std::string_view key, const std::function<void(Fields&)>& fields) {
  if (writes()) {
    ConfigNode map;
    Fields inner(map);
    fields(inner);
    return set(key, std::move(map));
  }
  Reader reader = reader_->section(key);
  Fields inner(reader);
  fields(inner);
  reader.finish();
}

}  // namespace farskip
