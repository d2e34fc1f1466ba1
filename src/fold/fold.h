// SPDX-License-Identifier: Apache-2.0
#pragma once
// The closed-form fold: weights of a rewired model that make up for the rewiring, by least squares, without a
// gradient step (docs/distillation.md, docs/decisions/010-fold.md).

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "farskip/comm/communicator.h"
#include "farskip/program/model.h"
#include "farskip/runtime/context.h"
#include "fold/fold_text.h"
#include "state/hub_sources.h"

namespace farskip {

enum class FoldSide : std::uint8_t { input, output };
inline constexpr const char* fold_side_name(FoldSide side) {
  return side == FoldSide::input ? "input" : "output";
}

/// One fit. Errors are squares over the fitted tokens: of an input what separates the student's normed stream
/// from the teacher's, as a share of the teacher's; of an output what separates the streams behind the block,
/// both divided by the root mean square of the teacher's in each token.
struct FoldEdge {
  int layer = 0;
  SubBlock block = SubBlock::none;
  FoldSide side = FoldSide::input;
  double error_before = 0, error_after = 0;
  double ridge = 0;  // times the mean diagonal of the Gram matrix; with experts, for the mean number of rows
};

struct Folded {
  std::vector<FoldEdge> edges;
  /// Cross-entropy in nats a token over the held-out sequences, over all of them where there are none: of the
  /// model in its own wiring, and of the rewired one with the same and with the folded weights.
  double teacher_loss = 0, loss_before = 0, loss_after = 0;
  double seconds = 0;
};

/// Takes the weights of a parameter that the fold has changed, whole and in f32: each once, by layers.
using TakeFolded = std::function<void(const std::string& parameter, const HostTensor& weights)>;

/// Folds a model, whose weights `rows` gives, onto another wiring of its layers. Without edges, changed
/// weights and losses where that is its own. Collective: each rank of `world` has other sequences, `text`;
/// what they say is added up, and all ranks take the same weights.
///
/// Block by block, the teacher being the model in its own wiring and the student the folded one, on the
/// device of `context`, which is of this rank alone, in f32. Memory of the device, or of the host where it
/// has too little: of three models the streams of this rank's tokens, 4 T H bytes for each of some 10
/// tensors. Of the device: the weights of one layer twice and the Gram matrices of one block. Of the host:
/// these Gram matrices in double, and one parameter at a time of the changed weights.
Folded fold_model(const Model& teacher, const LayerGraph& wiring, const RowReader& rows, const FoldText& text,
                  const Communicator& world, const Context& context, const TakeFolded& take);

/// Names of the parameters that this changes.
std::set<std::string> folded_parameters(const Model& teacher, const LayerGraph& wiring);

}  // namespace farskip
