// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a teacher said, from a folder; and the teacher itself for what is not there yet.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "distill/teacher.h"
#include "distill/teacher_cache.h"
#include "farskip/engine/engine.h"

namespace farskip {

class KeptTeacher {
 public:
  /// Collective. `vocab_size`: of the student. A teacher runs in memory of its own. UsageError where the
  /// folder is of another teacher or shape.
  KeptTeacher(const RunConfig& config, std::int64_t vocab_size, const Context& context);
  KeptTeacher(const KeptTeacher&) = delete;
  KeptTeacher& operator=(const KeptTeacher&) = delete;
  ~KeptTeacher();

  /// Gives each micro-batch of a step what the teacher says of it (the inputs of CachedDistillObjective),
  /// from the folder or from the teacher, in the same rounding. Collective.
  void complete(std::vector<Batch>& batches);
  /// The teacher by itself, for its held-out loss. It may go with the next complete(). Collective.
  InferenceEngine& engine();
  /// Whether the teacher is in memory.
  bool holds_teacher() const { return alone_ != nullptr; }

 private:
  class StandaloneTeacher;
  /// What is known of the sequences of a micro-batch.
  struct Known {
    std::vector<std::string> keys;
    std::vector<std::optional<TeacherRecord>> records;
  };
  std::vector<std::string> keys_of(const Batch& batch) const;
  /// Looks for those that are not there yet. Whether all are.
  bool find_records(Known& known) const;
  /// Fills in what is missing from the teacher, and keeps it. Collective.
  void ask(const Batch& batch, Known& known);
  StandaloneTeacher& alone();
  /// Lets the teacher go when it was of no use for a while.
  void note_use(bool used);

  DistillConfig config_;
  std::int64_t micro_batch_, sequence_length_;
  bool document_mask_;
  DType compute_;
  int zero_;  // Teacher::zero
  Context context_;
  std::unique_ptr<TeacherCache> cache_;
  std::unique_ptr<StandaloneTeacher> alone_;  // while it is needed
  int steps_without_use_ = 0;
};

}  // namespace farskip
