// SPDX-License-Identifier: Apache-2.0
#pragma once
// Multiple choice by likelihood, defined as in lm-evaluation-harness 0.4.13 (docs/evaluation.md).

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "data/task_file.h"
#include "data/tokenizer.h"
#include "infer/log_likelihood.h"

namespace farskip {

/// The choices of an item as token ids: the spaces that end the context are moved to the choices, context and
/// choice are encoded together, and what comes after the tokens of the context alone is the choice's.
/// `prefix` stands for an empty context. DataError naming the item: a choice that adds no token, or more than
/// the model has positions for; an id outside its vocabulary; an empty context without a prefix.
std::vector<Continuation> encode_choices(const TaskItem& item, const Tokenizer& tokenizer,
                                         std::optional<std::int32_t> prefix, const ModelConfig& model);

/// Mean of what is 0 or 1 for each item, and its standard error sqrt(Σ (x - mean)² / (n - 1)) / sqrt(n),
/// which one item has none of.
struct Share {
  double mean = 0;
  std::optional<double> standard_error;
};
Share share_of(const std::vector<bool>& hits);

struct TaskScore {
  Share accuracy;             // the right choice has the largest log-likelihood
  Share accuracy_normalized;  // the largest log-likelihood for each character of the choice
};
/// `log_likelihoods`: of all choices of all items, in order. Of equal choices the first one counts.
TaskScore score_task(const Task& task, std::span<const double> log_likelihoods);

}  // namespace farskip
