// SPDX-License-Identifier: Apache-2.0
#include "infer/request_fields.h"

#include <algorithm>
#include <limits>

#include "farskip/base/file.h"

namespace farskip {
namespace {

std::vector<std::string> read_stops(const nlohmann::json& given, const std::string& place) {
  std::vector<std::string> stops;
  for (const nlohmann::json& stop : given.is_array() ? given : nlohmann::json::array({given})) {
    if (!stop.is_string())
      throw DataError(
          fmt::format("{} is {}; allowed: a text, or a list of texts", place, printable(given.dump())));
    stops.push_back(stop.get<std::string>());
  }
  check_stops(stops, place);
  return stops;
}

}  // namespace

void check_stops(const std::vector<std::string>& stops, const std::string& place) {
  if (stops.size() > kMostStops)
    throw DataError(fmt::format("{} has {} texts; allowed: at most {}", place, stops.size(), kMostStops));
  for (const std::string& stop : stops)
    if (stop.empty() || stop.size() > kMostStopBytes)
      throw DataError(
          fmt::format("{} has a text of {} bytes; allowed: 1 to {}", place, stop.size(), kMostStopBytes));
}

void read_generation(JsonFields& fields, std::int64_t least_tokens, bool has_tokenizer,
                     GenerationRequest& request) {
  SamplingOptions& s = request.sampling;
  read_number<std::int64_t>(fields, "max_tokens", least_tokens, kMostNewTokens, request.max_tokens);
  read_number(fields, "temperature", 0.0, kMostTemperature, s.temperature);
  read_number<std::int64_t>(fields, "top_k", 0, std::numeric_limits<std::int32_t>::max(), s.top_k);
  read_number(fields, "top_p", 0.0, 1.0, s.top_p);
  read_number(fields, "min_p", 0.0, 1.0, s.min_p);
  read_number(fields, "repetition_penalty", kLeastPenalty, kMostPenalty, s.repetition_penalty);
  read_number<std::int64_t>(fields, "seed", 0, kMostSeed, s.seed);
  if (const nlohmann::json& stop = fields.get("stop"); !stop.is_null())
    request.stop = read_stops(stop, fields.at("stop"));
  if (!request.stop.empty() && !has_tokenizer)
    throw DataError(fmt::format(
        "{}: the model has no tokenizer, so its texts cannot be searched; leave it out", fields.at("stop")));
}

std::vector<std::int32_t> read_prompt(const nlohmann::json& prompt, const std::string& place,
                                      const std::optional<Tokenizer>& tokenizer, std::int64_t vocab_size) {
  if (prompt.is_string()) {
    if (!tokenizer)
      throw DataError(
          fmt::format("{} is a text, and the model folder holds no tokenizer.json; give token "
                      "ids, or name a tokenizer with --tokenizer",
                      place));
    std::vector<std::int32_t> ids = tokenizer->encode_prompt(prompt.get_ref<const std::string&>());
    if (ids.empty()) throw DataError(fmt::format("{} is empty; give at least one character", place));
    check_token_ids(ids, vocab_size, place);
    return ids;
  }
  if (!prompt.is_array() || prompt.empty())
    throw DataError(
        fmt::format("{} is {}; allowed: a text, or a list of token ids", place, printable(prompt.dump())));
  std::vector<std::int32_t> ids;
  for (const nlohmann::json& id : prompt) {
    if (!id.is_number_integer() || id.get<double>() < 0 ||
        id.get<double>() >= static_cast<double>(vocab_size))
      throw DataError(fmt::format("{}: {} is no token id; allowed: integers from 0 to {}", place,
                                  printable(id.dump()), vocab_size - 1));
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

}  // namespace farskip
