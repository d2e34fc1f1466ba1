#include <cstring>
#include <nlohmann/json.hpp>

#include "farskip/comm/agreement.h"
#include "farskip/train/hub_folder.h"
#include "farskip/train/training_checkpoint.h"

namespace farskip {
namespace {

std::int64_t read_integer(const nlohmann::json& state, const char* key) {
  std::int64_t value = 0;
  detail::parse_field(state.at(key).get<std::string>(), value);
  return value;
}

TrainingState read_state(const nlohmann::json& saved) {
  TrainingState state;
  state.step = read_integer(saved, "step");
  state.samples = read_integer(saved, "samples");
  state.tokens = read_integer(saved, "tokens");
  state.seed = static_cast<std::uint64_t>(read_integer(saved, "seed"));
  state.order = saved.value("order", "");
  if (saved.contains("numbers"))  // checkpoints before there were any have none
    for (const auto& item : saved.at("numbers").items())
      detail::parse_field(item.value().get<std::string>(), state.numbers[item.key()]);
  return state;
}

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

void refuse_other_seed(std::uint64_t saved, std::uint64_t seed, const fs::path& path) {
  if (saved != seed)
    throw UsageError(
        fmt::format("{} was made with seed {}, the configuration has {}; the order of samples would change",
                    path.string(), saved, seed));
}

void read_rows(const Checkpoint& checkpoint, const TensorRowsMap& wanted) {
  for (const auto& [name, rows] : wanted) {
    if (!checkpoint.contains(name))
      throw UsageError(
          fmt::format("{} has no tensor \"{}\": it was made with more frozen parameters (distill.freeze); "
                      "use the list it "
                      "was made with, another run_dir, or checkpoint.resume: never",
                      checkpoint.path().string(), name));
    const HostTensor read = checkpoint.read_rows(name, rows.first_row, rows.num_rows());
    const CheckpointTensor& saved = checkpoint.manifest().tensors.at(name);
    if (saved.shape != rows.full_shape || saved.dtype != rows.view.dtype)
      throw DataError(fmt::format("{}: tensor \"{}\" is {} {}, the model has {} {}",
                                  checkpoint.path().string(), name, dtype_name(saved.dtype),
                                  saved.shape.text(), dtype_name(rows.view.dtype), rows.full_shape.text()));
    std::memcpy(rows.view.data, read.bytes().data(), rows.view.num_bytes());
  }
}

/// Runs a part of collective work; an error on any rank is the same error on all of them.
template <class Body>
void run_together(const Communicator& world, const Body& body) {
  std::exception_ptr failure;
  try {
    body();
  } catch (...) {
    failure = std::current_exception();
  }
  throw_together(world, failure);
}

}  // namespace

std::optional<TrainingState> resume_training(const fs::path& folder, const ModelConfig& config,
                                             std::uint64_t seed, const TrainingTensors& tensors,
                                             const Communicator& world, const Logger& logger) {
  const bool lead = world.rank() == 0;
  std::optional<Checkpoint> checkpoint;
  run_together(world, [&] {
    if (!lead) return;
    checkpoint = find_newest_valid_checkpoint(folder, logger);
    if (!checkpoint) return;
    refuse_other_model(checkpoint->state().at("model"), config, checkpoint->path(), logger);
    refuse_other_seed(read_state(checkpoint->state()).seed, seed, checkpoint->path());
  });
  const std::string name =
      all_gather_text(world, checkpoint ? checkpoint->path().filename().string() : "").front();
  if (name.empty()) return std::nullopt;
  run_together(world, [&] {
    if (!lead) checkpoint = open_checkpoint(folder / name, Verify::layout);  // rank 0 has read every byte
    read_rows(*checkpoint, held_weights(tensors));
    read_rows(*checkpoint, held_moments(tensors));
  });
  const TrainingState state = read_state(checkpoint->state());
  run_together(world, [&] {
    if (lead) set_aside_newer_checkpoints(folder, state.step, logger);
  });
  return state;
}

void verify_model_folder(const fs::path& folder, const Communicator& world) {
  run_together(world, [&] {
    if (world.rank() != 0) return;
    refuse_bare_checkpoint(folder);
    if (is_checkpoint(folder))
      open_checkpoint(folder, Verify::hashes);
    else
      verify_hub_folder(folder);
  });
}

void set_aside_all_checkpoints(const fs::path& folder, const Communicator& world, const Logger& logger) {
  constexpr std::int64_t before_all = -1;
  run_together(world, [&] {
    if (world.rank() == 0) set_aside_newer_checkpoints(folder, before_all, logger, "replaced");
  });
}

}  // namespace farskip
