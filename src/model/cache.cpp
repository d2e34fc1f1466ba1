// SPDX-License-Identifier: Apache-2.0
#include "farskip/model/cache.h"

#include <array>

namespace farskip {

std::string cache_name(CacheKind kind, std::int32_t layer) {
  constexpr std::array<std::string_view, 3> names{"keys", "values", "latents"};
  return fmt::format("cache.{}.{}", names[static_cast<std::size_t>(kind)], layer);
}

std::vector<CacheSpec> list_caches(const ModelConfig& config) {
  std::vector<CacheSpec> specs;
  for (std::int32_t layer = 0; layer < config.num_layers; ++layer) {
    const auto add = [&](CacheKind kind, std::int64_t width) {
      specs.push_back({cache_name(kind, layer), layer, width});
    };
    if (config.mla) {
      add(CacheKind::latents, config.mla->kv_lora_rank + config.mla->rope_dim);
    } else {
      add(CacheKind::keys, config.gqa.kv_heads * config.gqa.head_dim);
      add(CacheKind::values, config.gqa.kv_heads * config.gqa.head_dim);
    }
  }
  return specs;
}

std::int64_t cache_elements(const ModelConfig& config) {
  std::int64_t sum = 0;
  for (const CacheSpec& spec : list_caches(config)) sum += spec.width;
  return sum;
}

}  // namespace farskip
