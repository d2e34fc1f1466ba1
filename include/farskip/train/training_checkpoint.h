#pragma once
// What a training checkpoint holds: hub-layout weights (so that a checkpoint is also a model folder), the
// moments under the same names, and the state in integers.

#include <optional>
#include <string>
#include <thread>

#include "farskip/train/checkpoint_files.h"
#include "farskip/train/weights.h"

namespace farskip {

struct TrainingState {
  std::int64_t step = 0;     // steps done
  std::int64_t samples = 0;  // sequences consumed over all ranks
  std::int64_t tokens = 0;
  std::uint64_t seed = 0;
  friend bool operator==(const TrainingState&, const TrainingState&) = default;
};

/// What is saved, by reference: must stay unchanged until the save has its snapshot.
struct TrainingTensors {
  const std::vector<ParameterSpec>& specs;
  TensorMap &weights, &first_moments, &second_moments;
};

/// Saves in the folder of checkpoints: step-N/{model,optimizer}.safetensors, config.json, tokenizer.json,
/// manifest.json. Asynchronous: the tensors are copied, then written by a thread while training goes on;
/// the next save, wait() or the destructor waits for it. An error of that thread is thrown by the next
/// save() or wait().
class CheckpointSaver {
 public:
  CheckpointSaver(fs::path folder, std::int64_t keep, bool asynchronous, ModelConfig config,
                  fs::path tokenizer, Logger logger);
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;
  ~CheckpointSaver();

  void save(const TrainingState& state, const TrainingTensors& tensors);
  void wait();

 private:
  void write(const TrainingState& state, const ViewMap& weights, const ViewMap& moments) const;

  fs::path folder_;
  std::int64_t keep_;
  bool asynchronous_;
  ModelConfig config_;
  fs::path tokenizer_;
  Logger logger_;
  std::string run_id_;
  std::thread thread_;
  std::exception_ptr failure_;
  TensorMap snapshot_[3];  // weights and the two moments
};

/// Newest valid checkpoint of the folder, if any, loaded into `tensors`. UsageError listing each field of
/// the model that differs from `config` with both values, or when the seed differs (the order of samples
/// would change).
std::optional<TrainingState> resume_training(const fs::path& folder, const ModelConfig& config,
                                             std::uint64_t seed, const TrainingTensors& tensors,
                                             const Logger& logger);

}  // namespace farskip
