// SPDX-License-Identifier: Apache-2.0
#pragma once
// What all kinds of attention end in.

#include <optional>

#include "model/lowering.h"
#include "model/parameter_list.h"

namespace farskip {

/// From the heads back to the stream, behind a gate where the model has one.
class AttentionOutput {
 public:
  /// `inputs`: of all heads together.
  AttentionOutput(const ModelConfig& config, std::int64_t inputs);
  void list(ParameterList& list) const;
  /// `h` as Block::lower() reads it; `heads` [B*S, inputs of the rank's heads].
  ValueId lower(Lowering& to, ValueId h, ValueId heads) const;
  void add_readers(std::vector<std::string>& readers) const {
    if (gate_) readers.push_back(gate_->weight());
  }
  std::string writer() const { return out_.weight(); }

 private:
  LinearModule out_;
  std::optional<LinearModule> gate_;
};

}  // namespace farskip
