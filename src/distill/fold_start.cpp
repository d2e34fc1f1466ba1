// SPDX-License-Identifier: Apache-2.0
#include "fold_start.h"

#include <algorithm>

#include "fold/fold.h"
#include "hub/companions.h"

namespace farskip {
namespace {

FoldTextOptions text_options(const FoldConfig& fold, std::int64_t sequence_length, const ModelConfig& model) {
  const bool is_text = fold.tokens.empty();
  return {.source = is_text ? fold.text : fold.tokens,
          .sequences = fold.sequences,
          .sequence_length = std::min(sequence_length, model.max_positions),
          .option = is_text ? "distill.fold.text" : "distill.fold.tokens"};
}

}  // namespace

void fold_start(const RunConfig& config, const ModelConfig& student, const std::set<std::string>& frozen,
                const Context& context, States& states) {
  const fs::path folder = config.distill->teacher;
  if (context.world().size() > 1)
    throw UsageError(
        "distill.fold: one rank folds, and this job has several; fold with farskip convert --fold, and start "
        "from the "
        "result with init.from");
  if (config.model.kind != ConfigNode::Kind::null ||
      (!config.init_from.empty() && config.init_from != folder))
    throw UsageError(
        "distill.fold: the student does not start from the teacher; leave out init.from and model");
  const SafetensorsFolder files(folder);
  const Model teacher = wire_model(read_hub_config(folder));
  const ModelFolder weights(files, list_parameters(teacher.config));
  const FoldText text =
      read_fold_text(text_options(*config.distill->fold, config.train.sequence_length, student), student,
                     read_companions(folder).tokenizer, context.logger);
  const Folded folded = fold_model(teacher, wire_model(student).layers, rows_of(weights), text, context);
  for (const auto& [name, tensor] : folded.weights)
    if (frozen.contains(name))
      throw UsageError(
          fmt::format("distill.fold changes {}, which distill.freeze keeps; leave out one of them", name));
  write_states(states, folded.weights, Role::weight);
  context.logger.info("distill.fold: loss {:.4f} nats rewired, {:.4f} folded, {:.4f} of the teacher",
                      folded.loss_before, folded.loss_after, folded.teacher_loss);
}

}  // namespace farskip
