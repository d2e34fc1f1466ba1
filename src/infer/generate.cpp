// SPDX-License-Identifier: Apache-2.0
#include "farskip/infer/generate.h"

namespace farskip {

void check_token_ids(const std::vector<std::int32_t>& ids, std::int64_t vocab_size, std::string_view where) {
  for (const std::int32_t id : ids)
    if (id >= vocab_size)
      throw DataError(fmt::format("{}: token {} of the prompt is not in the model's vocabulary of {}", where,
                                  id, vocab_size));
}

}  // namespace farskip
