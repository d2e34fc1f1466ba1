// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "checkpoint/training_checkpoint.h"
#include "comm/collective_errors.h"
#include "hub/hub_folder.h"
#include "tensor/columns.h"

namespace farskip {
namespace {

void refuse_other_model(nlohmann::json saved, const ModelConfig& config, const fs::path& path,
                        const Logger& logger) {
  nlohmann::json wanted = nlohmann::json::parse(hub_config_text(config));
  // Which tokens begin and end a text is no part of what is trained: it may be mended on the way.
  for (const char* key : {"bos_token_id", "eos_token_id"}) {
    const nlohmann::json before = saved.value(key, nlohmann::json()),
                         now = wanted.value(key, nlohmann::json());
    if (before != now)
      logger.info("{}: {} in the checkpoint, {} from now on", key, before.dump(), now.dump());
    for (nlohmann::json* model : {&saved, &wanted}) model->erase(key);
  }
  if (saved == wanted) return;
  std::string text =
      fmt::format("{}: the checkpoint is of another model than the configuration:", path.string());
  for (const auto& item : wanted.items()) {
    const nlohmann::json other = saved.value(item.key(), nlohmann::json());
    if (other != item.value())
      text += fmt::format("\n  {}: checkpoint {}, configuration {}", item.key(), other.dump(),
                          item.value().dump());
  }
  for (const auto& item : saved.items())
    if (!wanted.contains(item.key()))
      text += fmt::format("\n  {}: checkpoint {}, configuration none", item.key(), item.value().dump());
  throw UsageError(text +
                   "\nuse the configuration that made it, another run_dir, or checkpoint.resume: never");
}

/// UsageError for what would make it another run. Returns what is only to be said.
std::vector<std::string> refuse_other_settings(const RunSettings& saved, const RunSettings& now,
                                               const fs::path& path) {
  ChangedSettings changed = compare_settings(saved, now);
  if (changed.refused.empty()) return std::move(changed.warned);
  throw UsageError(fmt::format(
      "{}: the run cannot go on with this configuration:\n  {}\nuse the configuration that made it, another "
      "run_dir (init.from: {} begins with its weights), or checkpoint.resume: never",
      path.string(), fmt::join(changed.refused, "\n  "), path.string()));
}

/// In f32.
HostTensor columns_of(const HostTensor& matrix, const Range& columns) {
  const HostTensor exact = convert_dtype(matrix, DType::f32);
  HostTensor out(DType::f32, Shape{matrix.shape()[0], columns.count});
  copy_columns<float>({exact.values<float>().data() + columns.first, matrix.shape()[1]},
                      {out.values<float>().data(), columns.count}, matrix.shape()[0], columns.count);
  return out;
}

void read_rows(const Checkpoint& checkpoint, const TensorRowsMap& wanted, Device& device) {
  for (const auto& [name, rows] : wanted) {
    if (!checkpoint.contains(name))
      throw UsageError(
          fmt::format("{} has no tensor \"{}\": it was made with more frozen parameters (distill.freeze); "
                      "use the list it "
                      "was made with, another run_dir, or checkpoint.resume: never",
                      checkpoint.path().string(), name));
    const HostTensor read = checkpoint.read_rows(name, rows.first_row, rows.num_rows());
    const CheckpointTensor& saved = checkpoint.manifest().tensors.at(name);
    if (saved.shape != rows.full_shape || (saved.dtype != DType::f32 && saved.dtype != DType::bf16))
      throw DataError(fmt::format("{}: tensor \"{}\" is {} {}, the model has {} {}",
                                  checkpoint.path().string(), name, dtype_name(saved.dtype),
                                  saved.shape.text(), dtype_name(rows.view.dtype), rows.full_shape.text()));
    const HostTensor own =
        convert_dtype(rows.has_whole_rows() ? read : columns_of(read, rows.columns), rows.view.dtype);
    device.copy_in(rows.view.data, own.view().data, rows.view.num_bytes());
    if (!all_finite(own.view()))
      throw DataError(fmt::format("{}: tensor \"{}\" holds values that are not finite",
                                  checkpoint.path().string(), name));
  }
}

/// The search for the checkpoint to resume from, of all ranks together: rank 0 proposes one after the other,
/// newest first, until every rank could read its part of one.
class ResumeSearch {
 public:
  ResumeSearch(const fs::path& folder, const Communicator& world, const Logger& logger)
      : folder_(folder), world_(world), logger_(logger) {
    run_together(world_, [&] {
      if (!lead()) return;
      steps_ = list_checkpoints(folder_, logger_);
      count_ = steps_.size();
    });
  }

  std::optional<TrainingState> run(const ModelConfig& config, const RunSettings& settings, States& states) {
    while (const std::optional<Checkpoint> checkpoint = propose()) {
      TrainingState state;
      std::vector<std::string> changed;
      const bool is_whole =
          attempt([&] {
            state = parse_state(checkpoint->state(), checkpoint->step(),
                                (checkpoint->path() / "manifest.json").string());
            if (!lead()) return;
            refuse_other_model(checkpoint->state().at("model"), config, checkpoint->path(), logger_);
            changed = refuse_other_settings(state.settings, settings, checkpoint->path());
          }) &&
          attempt([&] {
            for (const Role role : {Role::weight, Role::compute_copy, Role::constant, Role::optimizer})
              read_rows(*checkpoint, held_rows(states, role), states.device());
          });
      if (!is_whole) continue;
      make_compute_copies(states);
      clear_way(state.step);
      say(state, changed);
      return state;
    }
    clear_way(-1);
    return std::nullopt;
  }

 private:
  bool lead() const { return world_.rank() == 0; }

  /// The next one that rank 0 can open, on every rank. DataError where all that were there are damaged.
  std::optional<Checkpoint> propose() {
    std::optional<Checkpoint> checkpoint;
    run_together(world_, [&] {
      if (!lead()) return;
      checkpoint = open_newest(folder_, steps_, logger_, Verify::used);
      if (!checkpoint && count_ > 0) refuse_damaged(folder_, count_);
    });
    const std::string name =
        all_gather_text(world_, checkpoint ? checkpoint->path().filename().string() : "").front();
    if (name.empty()) return std::nullopt;
    run_together(world_, [&] {
      if (!lead()) checkpoint = open_checkpoint(folder_ / name, Verify::layout);
    });
    return checkpoint;
  }

  /// False, and said, if the checkpoint is damaged for any rank; other errors are thrown.
  template <class Body>
  bool attempt(const Body& body) const {
    try {
      run_together(world_, body);
      return true;
    } catch (const Error& error) {
      if (error.code() != ExitCode::bad_data) throw;
      if (lead()) logger_.warning("this checkpoint cannot be used: {}", error.what());
      return false;
    }
  }

  /// For the checkpoints that this run will save after `step`.
  void clear_way(std::int64_t step) const {
    run_together(world_, [&] {
      if (lead()) set_aside_newer_checkpoints(folder_, step, logger_);
    });
  }

  void say(const TrainingState& state, const std::vector<std::string>& changed) const {
    if (!lead()) return;
    if (state.settings.empty())
      logger_.warning(
          "the checkpoint does not say with which configuration it was trained (an earlier version of "
          "FarSkip "
          "wrote it): whether that has changed is not known");
    if (!changed.empty())
      logger_.warning("the configuration has changed since step {}:\n  {}", state.step,
                      fmt::join(changed, "\n  "));
  }

  const fs::path& folder_;
  const Communicator& world_;
  const Logger& logger_;
  std::vector<std::int64_t> steps_;  // of rank 0: those that were not proposed yet
  std::size_t count_ = 0;
};

}  // namespace

RunSettings share_settings(const Communicator& world, const std::function<RunSettings()>& make) {
  std::string text;
  run_together(world, [&] {
    if (world.rank() == 0) text = nlohmann::json(make()).dump(-1, ' ', true);
  });
  return nlohmann::json::parse(all_gather_text(world, text)[0]).get<RunSettings>();
}

std::optional<TrainingState> resume_training(const fs::path& folder, const ModelConfig& config,
                                             const RunSettings& settings, States& states,
                                             const Communicator& world, const Logger& logger) {
  return ResumeSearch(folder, world, logger).run(config, settings, states);
}

void verify_model_folder(const fs::path& folder, const Communicator& world) {
  run_together(world, [&] {
    if (world.rank() != 0) return;
    refuse_bare_checkpoint(folder);
    if (!is_checkpoint(folder)) return verify_hub_folder(folder);
    const Checkpoint checkpoint = open_checkpoint(folder, Verify::hashes);
    // Readers of model folders would take these for its weights.
    for (const std::string& stray : checkpoint.strays())
      if (stray == "model.safetensors" || stray == "model.safetensors.index.json")
        throw DataError(
            fmt::format("{}: is no part of this checkpoint; move it away", (folder / stray).string()));
  });
}

void set_aside_all_checkpoints(const fs::path& folder, const Communicator& world, const Logger& logger) {
  constexpr std::int64_t before_all = -1;
  run_together(world, [&] {
    if (world.rank() == 0) set_aside_newer_checkpoints(folder, before_all, logger, "replaced");
  });
}

}  // namespace farskip
