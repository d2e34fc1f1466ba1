// SPDX-License-Identifier: Apache-2.0
#include "base/folder.h"
#include "cli/command_inputs.h"
#include "cli/job.h"
#include "cli/record.h"
#include "engine/devices.h"
#include "farskip/engine/engine.h"
#include "state/gather_states.h"
#include "tensor/safetensors_writer.h"

namespace farskip {
namespace {

struct Options {
  std::string model, tokens, out, farskip, layers;
  DeviceOptions device{.device = "cpu"};
  LayoutOptions layout;
  bool grads = false;
};

JobRequest request_of(const Options& o) {
  JobRequest request = request_job("forward", {{"--model", make_node(o.model)},
                                               {"--tokens", make_node(o.tokens)},
                                               {"--out", make_node(o.out)},
                                               {"--farskip", make_node(o.farskip)},
                                               {"--layers", make_node(o.layers)},
                                               {"--grads", make_node(o.grads)}});
  set_alike(request.alike, o.layout, o.device);
  return request;
}

/// Sequences `own` of a file. Targets are the next tokens; the last of a sequence has none.
Batch next_token_batch(const TokenMatrix& matrix, const Range& own) {
  const std::int64_t length = matrix.sequence_length;
  Batch batch{{matrix.ids.begin() + own.first * length, matrix.ids.begin() + own.end() * length}, {}, {}};
  for (std::size_t i = 0; i < batch.tokens.size(); ++i) {
    const bool last = static_cast<std::int64_t>(i + 1) % length == 0;
    batch.targets.push_back(last ? -1 : batch.tokens[i + 1]);
  }
  return batch;
}

TokenMatrix read_tokens(const Options& options, std::int64_t vocab_size) {
  TokenMatrix matrix = read_token_matrix(options.tokens, vocab_size);
  if (matrix.batch == 0 || matrix.sequence_length < 2)
    throw DataError(fmt::format("{}: tokens is [{}, {}]; at least one sequence of two tokens is needed",
                                options.tokens, matrix.batch, matrix.sequence_length));
  return matrix;
}

/// Ranks that read other sequences have equally many: they meet in collectives.
Range own_sequences(const TokenMatrix& matrix, const Communicator& readers, const Options& options) {
  if (matrix.batch % readers.size() != 0)
    throw UsageError(
        fmt::format("{}: {} sequences, which {} groups of ranks cannot share evenly; use a divisor of {}, or "
                    "--tensor with as many ranks",
                    options.tokens, matrix.batch, readers.size(), matrix.batch));
  return part_of(matrix.batch, readers.size(), readers.rank());
}

std::map<std::string, HostTensor> compute_gradients(const LoadedModel& model, const Model& wired,
                                                    const Batch& batch, const TokenMatrix& matrix,
                                                    DType compute, const Context& context) {
  TrainEngineOptions train;
  train.micro_batch = static_cast<std::int64_t>(batch.tokens.size()) / matrix.sequence_length;
  train.sequence_length = matrix.sequence_length;
  train.compute = compute;
  TrainEngine engine(wired, model.states, train, context);
  engine.compute_gradients(
      std::span(&batch, 1),
      static_cast<float>(1.0 / static_cast<double>(matrix.batch * (matrix.sequence_length - 1))), 0.0F);
  std::map<std::string, HostTensor> gradients;
  const auto whole =
      gather_states(*model.states, Role::gradient, list_parameters(model.config), context.mesh);
  for (const HubSource& gradient : hub_sources(*whole, Role::gradient))
    gradients.emplace("grad." + gradient.name, read_source(gradient));
  return gradients;
}

/// Those of all readers, in order.
HostTensor gather_logits(const TensorView& own, const TokenMatrix& matrix, const Communicator& readers) {
  const std::int64_t vocabulary = row_size(own.shape);
  HostTensor all(DType::f32, Shape{matrix.batch, matrix.sequence_length, vocabulary});
  std::vector<std::int64_t> offsets;
  for (int r = 0; r <= readers.size(); ++r) offsets.push_back(r * own.num_elements());
  readers
      .start_all_gather(std::span<const float>(own.as<float>(), static_cast<std::size_t>(own.num_elements())),
                        offsets, all.values<float>())
      .wait();
  return all;
}

ExitCode run_on_rank(const Options& options, const CommonOptions& common, Job& job) {
  const OpenedDevice device = open_device(options.device, job.world);
  const Context context =
      job.context(make_mesh(job.world, parallel_config(options.layout), *device.device), device.device);
  LoadedModel model =
      load_model(options.model, options.grads ? Role::weight : Role::constant, context, device.compute);
  if (const auto wiring = parse_wiring(options.farskip, options.layers, model.config.num_layers))
    model.config.farskip = *wiring;
  const TokenMatrix matrix = read_tokens(options, model.config.vocab_size);
  refuse_overwriting("--out", options.out, model.folder);
  warn_beyond_context(model.config, "the length of the sequences", matrix.sequence_length, job.logger);
  const Communicator& readers = context.mesh.batch();
  const Batch batch = next_token_batch(matrix, own_sequences(matrix, readers, options));
  const Model wired = wire_model(model.config);

  std::map<std::string, HostTensor> tensors;
  if (options.grads) tensors = compute_gradients(model, wired, batch, matrix, device.compute, context);
  // Last: the logits lie in the arena.
  InferenceEngine inference(wired, model.states, context);
  double loss_sum = inference.loss(batch, matrix.sequence_length).loss_sum;
  readers.all_reduce(std::span(&loss_sum, 1));
  auto loss = static_cast<float>(loss_sum / static_cast<double>(matrix.batch * (matrix.sequence_length - 1)));
  tensors["logits"] = gather_logits(inference.logits(batch.tokens, matrix.sequence_length), matrix, readers);
  if (job.world.rank() != 0) return ExitCode::ok;
  std::map<std::string, TensorView> out{{"loss", TensorView{&loss, DType::f32, Shape{}}}};
  for (const auto& [name, tensor] : tensors) out[name] = tensor.view();
  write_safetensors(options.out, out);
  log_result({{"loss", loss}, {"tensors", out.size()}, {"out", options.out}},
             "loss {loss:.6f}; {tensors} tensors in {out}", common, job.logger);
  return ExitCode::ok;
}

ExitCode run(const Options& options, const CommonOptions& common) {
  refuse_overwriting("--out", options.out, options.tokens);
  return run_job(common, request_of(options), [&](Job& job) { return run_on_rank(options, common, job); });
}

}  // namespace

void add_forward(Subcommand& root) {
  auto o = std::make_shared<Options>();
  Subcommand sub = root.add("forward", "Compute logits, loss and gradients of a model for given tokens");
  sub.required_path("--model", o->model, "Model folder or checkpoint");
  sub.required_path("--tokens", o->tokens, "safetensors file with tensor tokens [B, S], I32 or I64");
  sub.required_path("--out", o->out, "safetensors file to write: logits, loss, grad.<tensor>");
  sub.text("--farskip", o->farskip,
           fmt::format("Wiring: {} (delay:N); default: the model's own", list_names(farskip_mode_names)));
  sub.text("--layers", o->layers, "Rewired layers: all, A-B or a list");
  sub.flag("--grads", o->grads, "Also write the gradient of the loss for every parameter");
  add_layout_options(sub, o->layout);
  add_device_options(sub, o->device);
  sub.run_on_ranks([o](const CommonOptions& common) { return run(*o, common); });
}

}  // namespace farskip
