// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a training checkpoint holds: hub-layout weights (so that a checkpoint is also a model folder), the
// moments under the same names, and the state in integers. Written by all ranks, readable on any mesh.

#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>

#include "checkpoint/checkpoint_files.h"
#include "checkpoint/checkpoint_shards.h"
#include "checkpoint/training_state.h"
#include "farskip/runtime/context.h"

namespace farskip {

/// Saves in a folder of checkpoints that all ranks see. Each rank writes the shards that fall to it, rank 0
/// also the other files; a checkpoint is there from its commit on, whole or not at all.
///
/// Collective calls, by the rank's own thread: save, commit, wait. If one rank fails, in any of them or in
/// its thread, the next such call throws the same error on every rank, and earlier checkpoints are as they
/// were.
class CheckpointSaver {
 public:
  struct Options {
    fs::path folder;
    std::int64_t keep = 1;
    bool asynchronous = false;
  };
  /// `texts`: more files that each checkpoint gets, by name. Not collective.
  CheckpointSaver(Options options, ModelConfig config, std::map<std::string, std::string> texts,
                  const Context& context);
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;
  /// Not collective: joins the thread, logs a failure that nobody was told of, and gives up a save that is
  /// not committed. A rank that is alone needs no one's word and commits it.
  ~CheckpointSaver();

  /// Begins with wait(). Asynchronous: copies what this rank writes, and writes it in a thread while training
  /// goes on, until commit() or wait(). Otherwise writes and commits.
  void save(const TrainingState& state, const States& states);
  /// A save is under way: begun by all ranks and not yet committed.
  bool open() const { return open_ != nullptr; }
  /// From now on no older checkpoint is removed: the state that is saved next may be worth less than they
  /// are.
  void keep_all() { keep_ = std::numeric_limits<std::int64_t>::max(); }
  /// This rank has nothing left to write. Not collective, does not wait; once it is so on every rank,
  /// commit() does not wait either.
  bool written() const;
  /// Ends the save under way: waits for the threads and makes it a checkpoint.
  void commit();
  /// The same, if there is one.
  void wait();

  /// Memory for the copies of an asynchronous save, kept between saves; zero if saves are not.
  std::size_t snapshot_bytes(const States& states) const;

 private:
  struct OpenSave;
  void begin(const TrainingState& state);
  void copy_tensors(TensorRowsMap& rows, Device& device);
  void write_own_files(OpenSave& save, const TensorRowsMap& weights, const TensorRowsMap& optimizer) const;
  void publish(OpenSave& save, const std::vector<std::string>& reports) const;

  fs::path folder_;
  std::int64_t keep_;
  bool asynchronous_;
  ModelConfig config_;
  std::map<std::string, std::string> texts_;
  Logger logger_;
  Mesh groups_;
  MeshPosition mesh_;
  Communicator world_;
  std::string run_id_;
  std::map<std::string, HostTensor> snapshot_;
  std::unique_ptr<OpenSave> open_;  // last: its thread uses the others
};

/// The settings that rank 0 makes, on every rank. Collective; an error is the same on every rank.
RunSettings share_settings(const Communicator& world, const std::function<RunSettings()>& make);

/// Newest valid checkpoint of the folder, if any, loaded into `states`, whatever mesh wrote it. Each rank
/// reads the rows that it holds, and compares the hashes of the pieces that they lie in on the way.
/// Collective; errors are the same on every rank: UsageError listing each field of the model, and each
/// setting whose rule is AtResume::refused, that differs from `config` and `settings` (rank 0's count), with
/// both values. Those that are warned of go to the log.
std::optional<TrainingState> resume_training(const fs::path& folder, const ModelConfig& config,
                                             const RunSettings& settings, States& states,
                                             const Communicator& world, const Logger& logger);

/// Before weights are read from `folder`: where it is a checkpoint, or a model that we exported, rank 0
/// checks the hashes of all its files. Collective; an error is the same on every rank.
void verify_model_folder(const fs::path& folder, const Communicator& world);

/// For a run that begins anew in a folder with checkpoints of an earlier one: they are renamed to
/// step-M.replaced-*. Collective.
void set_aside_all_checkpoints(const fs::path& folder, const Communicator& world, const Logger& logger);

}  // namespace farskip
