// SPDX-License-Identifier: Apache-2.0
#pragma once
// The blocks of a cache, and who has them.

#include <cstdint>
#include <numeric>
#include <vector>

namespace farskip {

class BlockPool {
 public:
  explicit BlockPool(std::int64_t num_blocks) : free_(static_cast<std::size_t>(num_blocks)) {
    std::iota(free_.rbegin(), free_.rend(), 0);
  }
  std::int64_t num_free() const { return static_cast<std::int64_t>(free_.size()); }
  /// Blocks until `owned` has `count`; false, and nothing changes, where there are not so many.
  bool grow(std::vector<std::int32_t>& owned, std::int64_t count) {
    if (count - static_cast<std::int64_t>(owned.size()) > num_free()) return false;
    while (static_cast<std::int64_t>(owned.size()) < count) {
      owned.push_back(free_.back());
      free_.pop_back();
    }
    return true;
  }
  void give_back(std::vector<std::int32_t>& owned) {
    free_.insert(free_.end(), owned.rbegin(), owned.rend());
    owned.clear();
  }

 private:
  std::vector<std::int32_t> free_;
};

}  // namespace farskip
