// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/training_state.h"

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <span>

#include "farskip/base/error.h"
#include "farskip/base/file.h"

namespace farskip {
namespace {

using nlohmann::json;

/// Room for further steps: no count of a run comes near it.
constexpr std::int64_t kMostCounted = std::int64_t{1} << 60;

/// Names of numbers that mean something only together: those of early stopping, and of a distillation's
/// start.
constexpr std::string_view kLooks[] = {"best", "best_step", "looks_without"};
constexpr std::string_view kStart[] = {"teacher_loss", "untrained_loss"};

/// Reads typed fields of `state` and says which one is wrong.
struct StateReader {
  const json& state;
  std::string_view where;

  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    throw DataError(fmt::format("{}: state: {}", where, fmt::format(format, std::forward<Args>(args)...)));
  }

  /// Of an object that may be left out.
  std::map<std::string, std::string> texts(const char* key) const {
    std::map<std::string, std::string> out;
    if (!state.contains(key)) return out;
    if (!state[key].is_object()) refuse("`{}` is {}, an object is expected", key, shown(state[key]));
    for (const auto& [name, value] : state[key].items()) {
      if (!value.is_string())
        refuse("`{}.{}` is {}, a string is expected", key, printable(name), shown(value));
      out.emplace(name, value.get<std::string>());
    }
    return out;
  }

  std::int64_t count(const char* key) const {
    const json value = state.value(key, json());
    std::int64_t number = -1;
    if (!value.is_string() || !parse(value.get_ref<const std::string&>(), number) || number < 0 ||
        number > kMostCounted)
      refuse("`{}` is {}, a string of an integer from 0 to 2^60 is expected", key, shown(value));
    return number;
  }

  double real(const std::string& key, const std::string& text) const {
    double number = 0;
    if (!parse(text, number) || !std::isfinite(number))
      refuse("`{}` is \"{}\", a finite number is expected", printable(key), printable(text));
    return number;
  }

  static std::string shown(const json& value) {
    return printable(value.dump(-1, ' ', false, json::error_handler_t::replace));
  }

  template <class T>
  static bool parse(std::string_view text, T& number) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    return error == std::errc{} && end == text.data() + text.size();
  }
};

void check_names(const StateReader& reader, std::map<std::string, double> numbers) {
  for (const auto& group :
       {std::span<const std::string_view>(kLooks), std::span<const std::string_view>(kStart)}) {
    std::size_t here = 0;
    for (const std::string_view name : group) here += numbers.erase(std::string(name));
    if (here != 0 && here != group.size())
      reader.refuse("`numbers` holds {} of `{}`, which belong together", here, fmt::join(group, "`, `"));
  }
  if (!numbers.empty())
    reader.refuse("`numbers` holds `{}`, which this program does not know",
                  printable(numbers.begin()->first));
}

}  // namespace

// 64-bit integers as decimal strings: JSON numbers lose bits in many readers.
json print_state(const TrainingState& state, const ModelConfig& model) {
  json numbers = json::object();
  for (const auto& [name, value] : state.numbers) numbers[name] = fmt::format("{}", value);
  json out{{"step", fmt::format("{}", state.step)},        {"samples", fmt::format("{}", state.samples)},
           {"tokens", fmt::format("{}", state.tokens)},    {"settings", state.settings},
           {"model", json::parse(hub_config_text(model))}, {"numbers", std::move(numbers)}};
  if (state.learning_rate) out["learning_rate"] = fmt::format("{}", *state.learning_rate);
  return out;
}

TrainingState parse_state(const json& saved, std::int64_t step, std::string_view where) {
  const StateReader reader{saved, where};
  TrainingState state;
  state.step = reader.count("step");
  if (state.step != step) reader.refuse("`step` is {}, the checkpoint is of step {}", state.step, step);
  state.samples = reader.count("samples");
  state.tokens = reader.count("tokens");
  state.settings = reader.texts("settings");
  if (saved.contains("learning_rate")) {
    const json& rate = saved["learning_rate"];
    if (!rate.is_string())
      reader.refuse("`learning_rate` is {}, a string is expected", StateReader::shown(rate));
    state.learning_rate = reader.real("learning_rate", rate.get<std::string>());
  }
  for (const auto& [name, text] : reader.texts("numbers"))
    state.numbers[name] = reader.real("numbers." + name, text);
  check_names(reader, state.numbers);
  if (!saved.contains("model") || !saved["model"].is_object()) reader.refuse("`model` is not an object");
  return state;
}

}  // namespace farskip
