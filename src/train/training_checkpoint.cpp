#include "farskip/train/training_checkpoint.h"

#include <cstring>
#include <nlohmann/json.hpp>

#include "farskip/train/step_graphs.h"

namespace farskip {
namespace {

// 64-bit integers as decimal strings: JSON numbers lose bits in many readers.
nlohmann::json state_json(const TrainingState& state, const ModelConfig& config) {
  return {{"step", fmt::format("{}", state.step)},
          {"samples", fmt::format("{}", state.samples)},
          {"tokens", fmt::format("{}", state.tokens)},
          {"seed", fmt::format("{}", state.seed)},
          {"model", nlohmann::json::parse(hub_config_text(config))}};
}

std::int64_t read_integer(const nlohmann::json& state, const char* key) {
  std::int64_t value = 0;
  detail::parse_field(state.at(key).get<std::string>(), value);
  return value;
}

void refuse_other_model(const nlohmann::json& saved, const ModelConfig& config, const fs::path& path) {
  const nlohmann::json wanted = nlohmann::json::parse(hub_config_text(config));
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

void read_tensors(const Checkpoint& checkpoint, const ViewMap& destination) {
  for (const auto& [name, view] : destination) {
    const HostTensor tensor = checkpoint.read(name);
    FARSKIP_CHECK(tensor.shape() == view.shape && tensor.dtype() == view.dtype, "checkpoint tensor {}", name);
    std::memcpy(view.data, tensor.bytes().data(), view.num_bytes());
  }
}

ViewMap moment_views(const TensorMap& first, const TensorMap& second,
                     const std::vector<ParameterSpec>& specs) {
  ViewMap views = hub_views(first, specs, first_moment_name(""));
  views.merge(hub_views(second, specs, second_moment_name("")));
  return views;
}

void add_tensors(std::map<std::string, CheckpointTensor>& map, const ViewMap& views,
                 const std::string& file) {
  for (const auto& [name, view] : views)
    map[name] = {view.dtype, view.shape, {{file, name, 0, view.shape.rank() == 0 ? 1 : view.shape[0]}}};
}

void copy_tensors(const TensorMap& from, TensorMap& to, const std::vector<ParameterSpec>& specs) {
  if (to.empty()) to = make_parameter_tensors(specs);
  for (const auto& [name, tensor] : from)
    std::memcpy(to.at(name).view().data, tensor.view().data, tensor.view().num_bytes());
}

}  // namespace

CheckpointSaver::CheckpointSaver(fs::path folder, std::int64_t keep, bool asynchronous, ModelConfig config,
                                 fs::path tokenizer, Logger logger)
    : folder_(std::move(folder)),
      keep_(keep),
      asynchronous_(asynchronous),
      config_(std::move(config)),
      tokenizer_(std::move(tokenizer)),
      logger_(std::move(logger)),
      run_id_(make_run_id()) {}

CheckpointSaver::~CheckpointSaver() {
  if (thread_.joinable()) thread_.join();
  // A failure that nobody waited for must not vanish.
  if (failure_) try {
      std::rethrow_exception(failure_);
    } catch (const std::exception& e) {
      logger_.error("checkpoint was not saved: {}", e.what());
    }
}

void CheckpointSaver::wait() {
  if (thread_.joinable()) thread_.join();
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void CheckpointSaver::save(const TrainingState& state, const TrainingTensors& tensors) {
  wait();
  if (!asynchronous_) {
    write(state, hub_views(tensors.weights, tensors.specs),
          moment_views(tensors.first_moments, tensors.second_moments, tensors.specs));
    return;
  }
  copy_tensors(tensors.weights, snapshot_[0], tensors.specs);
  copy_tensors(tensors.first_moments, snapshot_[1], tensors.specs);
  copy_tensors(tensors.second_moments, snapshot_[2], tensors.specs);
  const auto& specs = tensors.specs;
  thread_ = std::thread([this, state, weights = hub_views(snapshot_[0], specs),
                         moments = moment_views(snapshot_[1], snapshot_[2], specs)] {
    try {
      write(state, weights, moments);
    } catch (...) {
      failure_ = std::current_exception();
    }
  });
}

void CheckpointSaver::write(const TrainingState& state, const ViewMap& weights,
                            const ViewMap& moments) const {
  CheckpointWriter writer(folder_, state.step, run_id_);
  std::map<std::string, CheckpointTensor> tensors;
  const auto add = [&](const std::string& name, const ViewMap& views) {
    const WrittenFile file = write_tensors(writer.shard_path(name), views, DType::f32);
    writer.add_file({name, file.size, file.hash});
    add_tensors(tensors, views, name);
  };
  const auto add_text = [&](const std::string& name, const std::string& text) {
    write_text_file(writer.shard_path(name), text);
    writer.add_file({name, text.size(), hash_text(text)});
  };
  add("model.safetensors", weights);
  add("optimizer.safetensors", moments);
  add_text("config.json", hub_config_text(config_));
  if (!tokenizer_.empty()) add_text("tokenizer.json", read_text_file(tokenizer_));
  const fs::path path = writer.commit(state_json(state, config_), std::move(tensors));
  logger_.info("saved {}", path.string());
  remove_old_checkpoints(folder_, static_cast<int>(keep_), run_id_, logger_);
}

std::optional<TrainingState> resume_training(const fs::path& folder, const ModelConfig& config,
                                             std::uint64_t seed, const TrainingTensors& tensors,
                                             const Logger& logger) {
  const auto checkpoint = find_newest_valid_checkpoint(folder, logger);
  if (!checkpoint) return std::nullopt;
  const nlohmann::json& saved = checkpoint->state();
  refuse_other_model(saved.at("model"), config, checkpoint->path());
  TrainingState state;
  state.step = read_integer(saved, "step");
  state.samples = read_integer(saved, "samples");
  state.tokens = read_integer(saved, "tokens");
  state.seed = static_cast<std::uint64_t>(read_integer(saved, "seed"));
  if (state.seed != seed)
    throw UsageError(
        fmt::format("{} was made with seed {}, the configuration has {}; the order of samples would change",
                    checkpoint->path().string(), state.seed, seed));
  read_tensors(*checkpoint, hub_views(tensors.weights, tensors.specs));
  read_tensors(*checkpoint, moment_views(tensors.first_moments, tensors.second_moments, tensors.specs));
  set_aside_newer_checkpoints(folder, state.step, logger);
  return state;
}

}  // namespace farskip
