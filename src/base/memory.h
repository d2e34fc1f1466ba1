// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <memory>

namespace farskip {

/// Uninitialised memory, 64-byte aligned; large blocks start on a 2 MiB border and ask for huge pages, which
/// saves the address translation that matrix products and optimizer sweeps otherwise wait for.
std::shared_ptr<std::byte[]> allocate_memory(std::size_t bytes);

}  // namespace farskip
