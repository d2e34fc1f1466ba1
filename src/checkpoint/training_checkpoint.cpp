// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/training_checkpoint.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <nlohmann/json.hpp>
#include <thread>

#include "comm/collective_errors.h"
#include "tensor/hash.h"
#include "tensor/safetensors_writer.h"

namespace farskip {
namespace {

using nlohmann::json;
using CheckpointTensors = std::map<std::string, CheckpointTensor>;

/// What the last update broke shows in the next loss, when a checkpoint of it may have taken the place of the
/// last whole one.
void refuse_broken(std::int64_t step, const TensorRowsMap& rows) {
  for (const auto& [name, part] : rows)
    if (!all_finite(part.view))
      throw DataError(fmt::format(
          "step {}: {} holds values that are not finite: not saved; earlier checkpoints are as they "
          "were; lower train.learning_rate.peak or look at train.optimizer",
          step, name));
}

constexpr std::string_view kWeights = "model";
constexpr std::string_view kStates = "optimizer";

/// What one rank has written, for rank 0 to put into the manifest.
struct ShardReport {
  std::vector<CheckpointFile> files;
  CheckpointTensors tensors;  // one piece each
};

std::string print_report(const ShardReport& report) {
  json files = json::array(), tensors = json::array();
  for (const CheckpointFile& file : report.files) files.push_back({file.name, file.size, file.hash});
  for (const auto& [name, tensor] : report.tensors) {
    const TensorPiece& piece = tensor.pieces.front();
    tensors.push_back({name, safetensors_dtype_name(tensor.dtype), tensor.shape.dims(), piece.file,
                       piece.first_row, piece.num_rows, piece.hash});
  }
  return json{{"files", std::move(files)}, {"tensors", std::move(tensors)}}.dump();
}

ShardReport parse_report(const std::string& text) {
  const json all = json::parse(text);
  ShardReport report;
  for (const json& file : all.at("files")) report.files.push_back({file.at(0), file.at(1), file.at(2)});
  for (const json& t : all.at("tensors"))
    report.tensors[t.at(0)] = {*parse_safetensors_dtype(t.at(1).get<std::string>()),
                               Shape(t.at(2).get<std::vector<std::int64_t>>()),
                               {{t.at(3), t.at(0), t.at(4), t.at(5), t.at(6)}}};
  return report;
}

void merge_tensors(CheckpointTensors& all, const CheckpointTensors& more) {
  for (const auto& [name, tensor] : more) {
    CheckpointTensor& merged =
        all.emplace(name, CheckpointTensor{tensor.dtype, tensor.shape, {}}).first->second;
    FARSKIP_CHECK(merged.shape == tensor.shape && merged.dtype == tensor.dtype, "{} is {} {} and {} {}", name,
                  dtype_name(merged.dtype), merged.shape.text(), dtype_name(tensor.dtype),
                  tensor.shape.text());
    merged.pieces.insert(merged.pieces.end(), tensor.pieces.begin(), tensor.pieces.end());
  }
}

/// Text of model.safetensors.index.json, by which readers of hub layout find the weights.
std::string index_text(const CheckpointTensors& weights) {
  json weight_map = json::object();
  std::int64_t bytes = 0;
  for (const auto& [name, tensor] : weights) {
    weight_map[name] = tensor.pieces.front().file;
    bytes += tensor.shape.num_elements() * static_cast<std::int64_t>(dtype_size(tensor.dtype));
  }
  return json{{"metadata", {{"total_size", bytes}}}, {"weight_map", std::move(weight_map)}}.dump(2) + "\n";
}

CheckpointFile write_text_shard(const CheckpointWriter& writer, const std::string& name,
                                const std::string& text) {
  write_text_file(writer.shard_path(name), text);
  return {name, text.size(), hash_text(text)};
}

/// A save in a thread writes a copy of it.
bool is_copied(const TensorRows& rows, const Device& device) {
  return !rows.is_constant || !device.shares_host_memory();
}

}  // namespace

struct CheckpointSaver::OpenSave {
  OpenSave(const TrainingState& s, const fs::path& folder, const std::string& run_id, int rank)
      : state(s), writer(folder, s.step, run_id, rank) {}
  OpenSave(const OpenSave&) = delete;
  OpenSave& operator=(const OpenSave&) = delete;
  ~OpenSave() { join(); }
  void join() {
    if (thread.joinable()) thread.join();
  }

  TrainingState state;
  CheckpointWriter writer;
  std::thread thread;
  std::atomic<bool> written = false;
  std::map<std::string, HostTensor> joined;  // of parts on several ranks
  // Of the thread, until it has been joined:
  std::exception_ptr failure;
  std::string report;
};

CheckpointSaver::CheckpointSaver(Options options, ModelConfig config,
                                 std::map<std::string, std::string> texts, const Context& context)
    : folder_(std::move(options.folder)),
      keep_(options.keep),
      asynchronous_(options.asynchronous),
      config_(std::move(config)),
      texts_(std::move(texts)),
      logger_(context.logger),
      groups_(context.mesh),
      mesh_(context.mesh.position()),
      world_(context.world()),
      run_id_(make_run_id()) {}

CheckpointSaver::~CheckpointSaver() {
  if (!open()) return;
  try {
    if (mesh_.world_size == 1) {
      commit();
      return;
    }
    open_->join();
    if (open_->failure) std::rethrow_exception(open_->failure);
    if (mesh_.world_rank == 0)
      logger_.warning(
          "the checkpoint of step {} is abandoned: this run ends before all ranks have written it",
          open_->state.step);
  } catch (const std::exception& e) {
    logger_.error("checkpoint was not saved: {}", e.what());
  }
}

bool CheckpointSaver::written() const {
  return !open() || open_->written.load();
}

void CheckpointSaver::wait() {
  if (open()) commit();
}

void CheckpointSaver::save(const TrainingState& state, const States& states) {
  wait();
  begin(state);
  // From here on a failure of this rank is its verdict at the commit: the others are on their way there.
  OpenSave& save = *open_;
  try {
    TensorRowsMap weights = weights_to_write(states, mesh_), optimizer = optimizer_to_write(states, mesh_);
    for (TensorRowsMap* rows : {&weights, &optimizer})
      join_parts(*rows, groups_, states.device(), save.joined);
    if (asynchronous_ || !states.device().shares_host_memory()) {
      copy_tensors(weights, states.device());
      copy_tensors(optimizer, states.device());
    }
    save.thread = std::thread([this, &save, weights = std::move(weights), optimizer = std::move(optimizer)] {
      try {
        write_own_files(save, weights, optimizer);
      } catch (...) {
        save.failure = std::current_exception();
      }
      save.written = true;
    });
  } catch (...) {
    save.failure = std::current_exception();
    save.written = true;
  }
  if (!asynchronous_) commit();
}

void CheckpointSaver::begin(const TrainingState& state) {
  const bool lead = mesh_.world_rank == 0;
  std::unique_ptr<OpenSave> save;
  run_together(world_, [&] {
    if (lead) save = std::make_unique<OpenSave>(state, folder_, run_id_, 0);
  });
  const std::string run_id = all_gather_text(world_, lead ? run_id_ : "").front();
  if (!lead) save = std::make_unique<OpenSave>(state, folder_, run_id, mesh_.world_rank);
  open_ = std::move(save);
}

void CheckpointSaver::copy_tensors(TensorRowsMap& rows, Device& device) {
  std::vector<CopyOut> parts;
  for (auto& [name, part] : rows) {
    if (open_->joined.contains(name) || !is_copied(part, device)) continue;  // the first is a copy
    HostTensor& copy = snapshot_[name];
    if (copy.shape() != part.view.shape) copy = HostTensor(part.view.dtype, part.view.shape);
    parts.push_back({copy.view().data, part.view.data, part.view.num_bytes()});
    part.view = copy.view();
  }
  device.copy_out(parts);
}

std::size_t CheckpointSaver::snapshot_bytes(const States& states) const {
  if (!asynchronous_) return 0;
  std::size_t bytes = 0;
  for (const TensorRowsMap& rows : {weights_to_write(states, mesh_), optimizer_to_write(states, mesh_)})
    for (const auto& [name, part] : rows)
      if (is_copied(part, states.device())) bytes += bytes_to_write(part, mesh_);
  return bytes;
}

void CheckpointSaver::write_own_files(OpenSave& save, const TensorRowsMap& weights,
                                      const TensorRowsMap& optimizer) const {
  refuse_broken(save.state.step, weights);
  refuse_broken(save.state.step, optimizer);
  ShardReport report;
  const auto write_shard = [&](std::string_view stem, const TensorRowsMap& rows) {
    if (rows.empty()) return;
    const std::string file_name = shard_name(stem, mesh_);
    std::map<std::string, TensorView> views;
    for (const auto& [name, part] : rows) {
      views[name] = part.view;
      report.tensors[name] = {
          part.view.dtype,
          part.full_shape,
          {{file_name, name, part.first_row, part.num_rows(), hash_bytes(part.view.bytes())}}};
    }
    const WrittenFile file = write_safetensors(save.writer.shard_path(file_name), views);
    report.files.push_back({file_name, file.size, file.hash});
  };
  write_shard(kWeights, weights);
  write_shard(kStates, optimizer);
  if (mesh_.world_rank == 0) {
    report.files.push_back(write_text_shard(save.writer, "config.json", hub_config_text(config_)));
    for (const auto& [name, text] : texts_) report.files.push_back(write_text_shard(save.writer, name, text));
  }
  save.report = print_report(report);
}

void CheckpointSaver::commit() {
  FARSKIP_CHECK(open(), "no save is under way");
  const std::unique_ptr<OpenSave> save = std::move(open_);  // over, whatever comes of it
  if (world_.size() > 1)
    wait_for_all(world_, "the files of a checkpoint", [&] { return save->written.load(); });
  save->join();
  throw_together(world_, save->failure);
  const std::vector<std::string> reports = all_gather_text(world_, save->report);
  const std::function<void()> own_part = [&] { publish(*save, reports); };
  work_together(world_, "the end of a checkpoint", mesh_.world_rank == 0 ? own_part : nullptr);
}

/// Rank 0 alone.
void CheckpointSaver::publish(OpenSave& save, const std::vector<std::string>& reports) const {
  CheckpointTensors tensors, weights;
  for (const std::string& text : reports) {
    ShardReport report = parse_report(text);
    for (CheckpointFile& file : report.files) save.writer.add_file(std::move(file));
    merge_tensors(tensors, report.tensors);
  }
  for (auto& [name, tensor] : tensors) {
    std::sort(tensor.pieces.begin(), tensor.pieces.end(),
              [](const TensorPiece& a, const TensorPiece& b) { return a.first_row < b.first_row; });
    if (tensor.pieces.front().file.starts_with(kWeights)) weights.emplace(name, tensor);
  }
  if (mesh_.world_size > 1)
    save.writer.add_file(write_text_shard(save.writer, "model.safetensors.index.json", index_text(weights)));
  const fs::path path = save.writer.commit(print_state(save.state, config_), std::move(tensors));
  logger_.info("saved {}", path.string());
  remove_old_checkpoints(folder_, keep_, run_id_, logger_);
}

}  // namespace farskip
