// SPDX-License-Identifier: Apache-2.0
#include "farskip/infer/sampling.h"

#include <algorithm>
#include <limits>

namespace farskip {

SamplingRow sampling_row(const SamplingOptions& options, std::int64_t counter) {
  const auto seed = static_cast<std::uint64_t>(options.seed);
  const std::int64_t most = std::numeric_limits<std::int32_t>::max();
  return {{static_cast<float>(options.temperature), static_cast<float>(options.top_p),
           static_cast<float>(options.min_p), static_cast<float>(options.repetition_penalty)},
          {static_cast<std::int32_t>(std::min(options.top_k, most)), static_cast<std::int32_t>(seed),
           static_cast<std::int32_t>(seed >> 32), static_cast<std::int32_t>(counter)}};
}

void mark_seen(std::span<std::int32_t> seen, std::span<const std::int32_t> ids) {
  for (const std::int32_t id : ids) {
    std::int32_t& word = seen[static_cast<std::size_t>(id / 32)];
    word = static_cast<std::int32_t>(static_cast<std::uint32_t>(word) | 1U << (id % 32));
  }
}

}  // namespace farskip
