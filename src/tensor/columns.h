// SPDX-License-Identifier: Apache-2.0
#pragma once
// Columns of matrices in host memory.

#include <algorithm>
#include <cstdint>

namespace farskip {

/// A range says where columns begin in the first row of a matrix, and how wide that is.
template <class T>
struct Columns {
  T* first = nullptr;
  std::int64_t width = 0;
};

/// `count` columns of so many rows.
template <class T>
void copy_columns(const Columns<const T>& from, const Columns<T>& to, std::int64_t rows, std::int64_t count) {
  for (std::int64_t r = 0; r < rows; ++r)
    std::copy_n(from.first + r * from.width, count, to.first + r * to.width);
}

}  // namespace farskip
