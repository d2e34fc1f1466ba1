// SPDX-License-Identifier: Apache-2.0
#include "fold_start.h"

#include <algorithm>

#include "farskip/state/weights.h"
#include "fold/fold.h"
#include "hub/companions.h"

namespace farskip {
namespace {

FoldTextOptions text_options(const FoldConfig& fold, std::int64_t sequence_length, const ModelConfig& model,
                             const Communicator& world) {
  const bool is_text = fold.tokens.empty();
  return {.source = is_text ? fold.text : fold.tokens,
          .sequences = fold.sequences,
          .sequence_length = std::min(sequence_length, model.max_positions),
          .option = is_text ? "distill.fold.text" : "distill.fold.tokens",
          .rank = world.rank(),
          .ranks = world.size()};
}

/// The fold's plans are of one rank. With several, their memory is not that which peers have open.
Context context_of_one(const Context& context) {
  if (context.world().size() == 1) return context;
  return {make_self_mesh(), std::make_shared<Arena>(context.device()), context.heartbeat, context.logger};
}

}  // namespace

void fold_start(const RunConfig& config, const ModelConfig& student, const std::set<std::string>& frozen,
                const Context& context, States& states) {
  const fs::path folder = config.distill->teacher;
  if (config.model.kind != ConfigNode::Kind::null ||
      (!config.init_from.empty() && config.init_from != folder))
    throw UsageError(
        "distill.fold: the student does not start from the teacher; leave out init.from and model");
  const SafetensorsFolder files(folder);
  const Model teacher = wire_model(read_hub_config(folder));
  const LayerGraph wiring = wire_model(student).layers;
  for (const std::string& name : folded_parameters(teacher, wiring))
    if (frozen.contains(name))
      throw UsageError(
          fmt::format("distill.fold changes {}, which distill.freeze keeps; leave out one of them", name));
  const ModelFolder weights(files, list_parameters(teacher.config));
  const Communicator& world = context.world();
  const FoldText text = read_fold_text(
      text_options(*config.distill->fold, config.train.sequence_length, student, world), student,
      read_companions(folder).tokenizer, world.rank() == 0 ? context.logger : Logger(LogLevel::off));
  const Folded folded = fold_model(teacher, wiring, rows_of(weights), text, world, context_of_one(context),
                                   [&](const std::string& name, const HostTensor& folded_weights) {
                                     write_whole(states, name, folded_weights.view());
                                   });
  make_compute_copies(states);
  context.logger.info("distill.fold: loss {:.4f} nats rewired, {:.4f} folded, {:.4f} of the teacher",
                      folded.loss_before, folded.loss_after, folded.teacher_loss);
}

}  // namespace farskip
