// SPDX-License-Identifier: Apache-2.0
#include "run/next_batches.h"

#include "infer/evaluate.h"

namespace farskip {

double NextBatches::read(std::int64_t first) {
  clear();
  double targets = 0;
  try {
    next_.batches = samples_.read(sampler_, first);
    if (counts_)
      for (const Batch& batch : next_.batches) targets += static_cast<double>(count_targets(batch));
  } catch (...) {
    failure_ = std::current_exception();
  }
  return targets;
}

}  // namespace farskip
