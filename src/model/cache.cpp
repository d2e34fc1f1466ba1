// SPDX-License-Identifier: Apache-2.0
#include "farskip/model/cache.h"

#include <algorithm>
#include <array>

namespace farskip {

std::string cache_name(CacheKind kind, std::int32_t layer) {
  constexpr std::array<std::string_view, 3> names{"keys", "values", "latents"};
  return fmt::format("cache.{}.{}", names[static_cast<std::size_t>(kind)], layer);
}

std::int64_t own_kv_heads(const ModelConfig& config, int tensor_size) {
  return std::max<std::int64_t>(config.gqa.kv_heads / tensor_size, 1);
}

std::vector<CacheSpec> list_caches(const ModelConfig& config, int tensor_size) {
  std::vector<CacheSpec> specs;
  for (std::int32_t layer = 0; layer < config.num_layers; ++layer) {
    const auto add = [&](CacheKind kind, std::int64_t width) {
      specs.push_back({cache_name(kind, layer), layer, width});
    };
    if (config.mla) {
      add(CacheKind::latents, config.mla->kv_lora_rank + config.mla->rope_dim);
    } else {
      const std::int64_t width = own_kv_heads(config, tensor_size) * config.gqa.head_dim;
      add(CacheKind::keys, width);
      add(CacheKind::values, width);
    }
  }
  return specs;
}

std::int64_t cache_elements(const ModelConfig& config, int tensor_size) {
  std::int64_t sum = 0;
  for (const CacheSpec& spec : list_caches(config, tensor_size)) sum += spec.width;
  return sum;
}

}  // namespace farskip
