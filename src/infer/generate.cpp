// SPDX-License-Identifier: Apache-2.0
#include "infer/generate.h"

namespace farskip {

GeneratedPart& GeneratedPart::operator+=(const GeneratedPart& next) {
  text += next.text;
  ids.insert(ids.end(), next.ids.begin(), next.ids.end());
  scores.insert(scores.end(), next.scores.begin(), next.scores.end());
  prompt_scores.insert(prompt_scores.end(), next.prompt_scores.begin(), next.prompt_scores.end());
  return *this;
}

void check_finite(const Generated& text) {
  if (text.end == GenerationEnd::not_finite)
    throw DataError(
        "a logit of the model is not a finite number; check the weights with farskip inspect --verify");
}

void check_token_ids(const std::vector<std::int32_t>& ids, std::int64_t vocab_size, std::string_view where) {
  for (const std::int32_t id : ids)
    if (id >= vocab_size)
      throw DataError(fmt::format("{}: token {} of the prompt is not in the model's vocabulary of {}", where,
                                  id, vocab_size));
}

}  // namespace farskip
