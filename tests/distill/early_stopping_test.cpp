// SPDX-License-Identifier: Apache-2.0
#include "distill/early_stopping.h"

#include "support/catch.h"

namespace farskip {
namespace {

TEST_CASE("early stopping counts looks without relative progress, in the metric's direction") {
  const EarlyStopping lower({.every = 1, .patience = 2, .delta = 0.1});
  RunNumbers numbers;
  CHECK(lower.observe(1, 2.0, numbers));
  CHECK_FALSE(lower.observe(2, 1.85, numbers));  // better, but not by a tenth
  CHECK_FALSE(lower.over(numbers));
  CHECK(lower.observe(3, 1.7, numbers));
  CHECK_FALSE(lower.observe(4, 1.7, numbers));
  CHECK_FALSE(lower.observe(5, 3.0, numbers));
  CHECK(lower.over(numbers));
  CHECK(numbers.at("best_step") == 3);
  const EarlyStopping higher(
      {.every = 1, .patience = 1, .delta = 0, .metric = HeldOutMetric::validation_accuracy});
  RunNumbers other;
  CHECK(higher.observe(1, 0.2, other));
  CHECK(higher.observe(2, 0.3, other));
  CHECK_FALSE(higher.observe(3, 0.3, other));
}

}  // namespace
}  // namespace farskip
