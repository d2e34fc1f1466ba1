// SPDX-License-Identifier: Apache-2.0
#pragma once
// A model that is computed one sub-block at a time, for all tokens of a fold.

#include <functional>
#include <memory>

#include "farskip/state/weights.h"
#include "fold/fold_text.h"
#include "fold/graph_runner.h"
#include "fold/residual_stream.h"
#include "state/hub_sources.h"

namespace farskip {

/// Some consecutive sequences, and how many of them a graph computes at a time, which divides their number.
struct SequenceRange {
  std::int64_t first = 0, count = 0, at_once = 1;
};

/// The weights of a layer, or of embedding and head (-1), in f32.
std::shared_ptr<States> load_layer(const ModelConfig& config, const RowReader& rows, int layer,
                                   const std::shared_ptr<Device>& device);

std::shared_ptr<States> copy_layer(const States& layer);

class WalkingModel {
 public:
  /// Over the sequences of `range`. `config` and `text` must outlive it. `memory`: where its streams lie.
  WalkingModel(const ModelConfig& config, const LayerGraph& wiring, const FoldText& text,
               const SequenceRange& range, Context context, const Context& memory);

  /// load_layer() of the next block; another model may use it too.
  void use_weights(std::shared_ptr<const States> weights) { weights_ = std::move(weights); }
  /// Computes the next block, `block`, and adds it to the stream.
  void compute(int block);
  /// Cross-entropy of the head, a mean over the tokens of `range`, a part of the sequences, in nats.
  double loss(const SequenceRange& range);

  ResidualStream& stream() { return stream_; }
  const States& weights() const { return *weights_; }
  /// The row of the stream at which a sequence begins.
  std::int64_t first_row(std::int64_t sequence) const {
    return (sequence - range_.first) * text_.sequence_length;
  }

 private:
  /// Calls `use` after each run, with the first sequence of it.
  void run_all(int block, const SequenceRange& range,
               const std::function<void(GraphRunner&, std::int64_t sequence)>& use);
  void set_inputs(GraphRunner& runner, int block, std::int64_t sequence);

  const ModelConfig& config_;
  LayerGraph wiring_;
  const FoldText& text_;
  SequenceRange range_;
  Context context_;
  ResidualStream stream_;
  std::shared_ptr<const States> weights_;
};

}  // namespace farskip
