// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a text to be continued may be asked for with, as JSON: in a file of prompts, or over a network.

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string>
#include <type_traits>
#include <vector>

#include "data/json_fields.h"
#include "data/tokenizer.h"
#include "infer/generate.h"

namespace farskip {

inline constexpr std::int64_t kMostTexts = 1 << 20;  // of one prompt

/// An optional number within a range, both ends included; null is as if it were not there. DataError
/// otherwise.
template <class T>
void read_number(JsonFields& fields, const std::string& key, T low, T high, T& value) {
  const nlohmann::json& given = fields.get(key);
  if (given.is_null()) return;
  bool is_right = std::is_integral_v<T> ? given.is_number_integer() : given.is_number();
  if (is_right && given.is_number_unsigned())
    is_right = given.get<std::uint64_t>() <= static_cast<std::uint64_t>(high);
  if (!is_right || given.get<T>() < low || given.get<T>() > high)
    throw DataError(fmt::format("{} is {}; allowed: {} from {} to {}", fields.at(key),
                                printable(given.dump()), std::is_integral_v<T> ? "an integer" : "a number",
                                low, high));
  value = given.get<T>();
}

/// Keys max_tokens (from `least_tokens` on), temperature, top_k, top_p, min_p, repetition_penalty, seed, and
/// stop: a text, or a list of texts. What is not there stays as it is. DataError for a value out of range,
/// and for stop without a tokenizer.
void read_generation(JsonFields& fields, std::int64_t least_tokens, bool has_tokenizer,
                     GenerationRequest& request);

/// The tokens of a prompt: of a text, with what the tokenizer puts before one, or ids. DataError naming
/// `place` for an empty one, a text without a tokenizer, and ids that are not in the vocabulary.
std::vector<std::int32_t> read_prompt(const nlohmann::json& prompt, const std::string& place,
                                      const std::optional<Tokenizer>& tokenizer, std::int64_t vocab_size);

/// DataError where there are too many of them, one is empty, or too long.
void check_stops(const std::vector<std::string>& stops, const std::string& place);

}  // namespace farskip
