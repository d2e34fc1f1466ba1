// SPDX-License-Identifier: Apache-2.0
#pragma once
// Things of the CUDA libraries that are given back when they go.

#include <utility>

namespace farskip::cuda {

template <class T, auto destroy>
class Handle {
 public:
  Handle() = default;
  ~Handle() {
    if (value_ != nullptr) destroy(value_);
  }
  Handle(Handle&& other) noexcept : value_(std::exchange(other.value_, nullptr)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  T get() const { return value_; }
  /// For the function that makes it.
  T* address() { return &value_; }

 private:
  T value_ = nullptr;
};

}  // namespace farskip::cuda
