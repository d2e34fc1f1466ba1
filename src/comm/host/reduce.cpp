// SPDX-License-Identifier: Apache-2.0
#include "reduce.h"

#include <algorithm>
#include <array>
#include <type_traits>

namespace farskip {
namespace {

constexpr std::int64_t kBlock = 512;  // elements summed at a time, in cache

template <class T>
T add(T a, T b) {
  if constexpr (std::is_integral_v<T>)
    return static_cast<T>(static_cast<std::make_unsigned_t<T>>(a) + static_cast<std::make_unsigned_t<T>>(b));
  else
    return a + b;
}

/// NaN wins, so that a maximum never hides one.
template <class T>
T larger(T a, T b) {
  return (b > a || b != b) ? b : a;
}
template <class T>
T smaller(T a, T b) {
  return (b < a || b != b) ? b : a;
}

template <class T, class Combine>
void reduce(std::span<const void* const> inputs, T* out, std::int64_t count, Combine combine) {
  std::array<T, kBlock> sum;
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    const std::int64_t n = std::min(kBlock, count - begin);
    std::copy_n(static_cast<const T*>(inputs[0]) + begin, n, sum.data());
    for (const void* input : inputs.subspan(1)) {
      const T* const values = static_cast<const T*>(input) + begin;
      for (std::int64_t i = 0; i < n; ++i)
        sum[static_cast<std::size_t>(i)] = combine(sum[static_cast<std::size_t>(i)], values[i]);
    }
    std::copy_n(sum.data(), n, out + begin);
  }
}

template <class T>
void reduce(Reduction reduction, std::span<const void* const> inputs, void* out, std::int64_t count) {
  T* const target = static_cast<T*>(out);
  switch (reduction) {
    case Reduction::sum:
      return reduce(inputs, target, count, add<T>);
    case Reduction::max:
      return reduce(inputs, target, count, larger<T>);
    case Reduction::min:
      return reduce(inputs, target, count, smaller<T>);
  }
}

}  // namespace

std::int64_t element_bytes(ElementType type) {
  switch (type) {
    case ElementType::byte:
      return 1;
    case ElementType::i32:
    case ElementType::f32:
      return 4;
    case ElementType::f64:
      return 8;
  }
  return 0;
}

void reduce_in_order(ElementType type, Reduction reduction, std::span<const void* const> inputs, void* out,
                     std::int64_t count) {
  switch (type) {
    case ElementType::i32:
      return reduce<std::int32_t>(reduction, inputs, out, count);
    case ElementType::f32:
      return reduce<float>(reduction, inputs, out, count);
    case ElementType::f64:
      return reduce<double>(reduction, inputs, out, count);
    case ElementType::byte:
      throw InternalError("bytes cannot be reduced");
  }
}

}  // namespace farskip
