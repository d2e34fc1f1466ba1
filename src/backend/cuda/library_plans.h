// SPDX-License-Identifier: Apache-2.0
#pragma once
// What cuBLASLt and cuDNN chose for a problem, kept so that a plan is searched for once. Of one device, used
// by one thread at a time.

#include <map>
#include <memory>
#include <string>

namespace farskip::cuda {

class LibraryPlans {
 public:
  /// The plan of `problem` (a text that names op, types, sizes and layout); made by make() → shared_ptr<Plan>
  /// where there is none. One text stands for one type of plan.
  template <class Plan, class Make>
  Plan& get(const std::string& problem, const Make& make) {
    auto it = plans_.find(problem);
    if (it == plans_.end()) it = plans_.emplace(problem, std::shared_ptr<Plan>(make())).first;
    return *static_cast<Plan*>(it->second.get());
  }

 private:
  std::map<std::string, std::shared_ptr<void>, std::less<>> plans_;
};

}  // namespace farskip::cuda
