// SPDX-License-Identifier: Apache-2.0
#include "base/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace farskip {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
// Below this the rounding to whole huge pages would cost more memory than the pages save time.
constexpr std::size_t kLarge = 4 * kHugePage;

}  // namespace

std::shared_ptr<std::byte[]> allocate_memory(std::size_t bytes) {
  const bool large = bytes >= kLarge;
  const std::align_val_t alignment{large ? kHugePage : 64};
  auto* memory = static_cast<std::byte*>(::operator new[](std::max<std::size_t>(bytes, 1), alignment));
  // A refusal (a kernel without huge pages) leaves ordinary pages, which work as well.
  if (large) static_cast<void>(::madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE));
  return {memory, [alignment](std::byte* p) { ::operator delete[](p, alignment); }};
}

}  // namespace farskip
