// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <nlohmann/json.hpp>

#include "farskip/base/folder.h"
#include "farskip/cli/command.h"
#include "farskip/cli/command_inputs.h"
#include "farskip/engine/engine.h"
#include "farskip/tensor/safetensors_writer.h"

namespace farskip {
namespace {

struct Options {
  std::string model, tokens, out, farskip, layers;
  DeviceOptions device{.device = "cpu"};
  bool grads = false;
};

// Targets are the next tokens; the last of a sequence has none.
Batch next_token_batch(const TokenMatrix& matrix) {
  Batch batch{matrix.ids, matrix.ids, {}};
  for (std::size_t i = 0; i < matrix.ids.size(); ++i) {
    const bool last = static_cast<std::int64_t>(i + 1) % matrix.sequence_length == 0;
    batch.targets[i] = last ? -1 : matrix.ids[i + 1];
  }
  return batch;
}

ExitCode run(const Options& options, const CommonOptions& common) {
  const Logger logger = common.logger();
  refuse_overwriting("--out", options.out, options.tokens);
  const OpenedDevice device = open_device(options.device);
  LoadedModel model =
      load_model(options.model, options.grads ? Role::weight : Role::constant, logger, device);
  if (const auto wiring = parse_wiring(options.farskip, options.layers, model.config.num_layers))
    model.config.farskip = *wiring;
  const TokenMatrix matrix = read_token_matrix(options.tokens, model.config.vocab_size);
  if (matrix.batch == 0 || matrix.sequence_length < 2)
    throw DataError(fmt::format("{}: tokens is [{}, {}]; at least one sequence of two tokens is needed",
                                options.tokens, matrix.batch, matrix.sequence_length));
  refuse_overwriting("--out", options.out, model.folder);
  warn_beyond_context(model.config, "the length of the sequences", matrix.sequence_length, logger);
  const Batch batch = next_token_batch(matrix);
  const Model wired = wire_model(model.config);
  const auto counted = static_cast<double>(matrix.batch * (matrix.sequence_length - 1));

  const Context context = make_context(device.device, logger);
  std::map<std::string, HostTensor> gradients;
  if (options.grads) {
    TrainEngineOptions train;
    train.micro_batch = matrix.batch;
    train.sequence_length = matrix.sequence_length;
    train.compute = device.compute;
    TrainEngine engine(wired, model.states, train, context);
    engine.compute_gradients(std::span(&batch, 1), static_cast<float>(1.0 / counted), 0.0F);
    for (const HubSource& gradient : hub_sources(*model.states, Role::gradient))
      gradients.emplace("grad." + gradient.name, read_source(gradient));
  }
  std::map<std::string, TensorView> out;
  for (const auto& [name, tensor] : gradients) out[name] = tensor.view();
  // Last: the logits lie in the arena.
  InferenceEngine inference(wired, model.states, context);
  auto loss = static_cast<float>(inference.loss(batch, matrix.sequence_length).loss_sum / counted);
  out["loss"] = TensorView{&loss, DType::f32, Shape{}};
  TensorView logits = inference.logits(matrix.ids, matrix.sequence_length);
  logits.shape = Shape{matrix.batch, matrix.sequence_length, model.config.vocab_size};
  out["logits"] = logits;
  write_safetensors(options.out, out);
  if (common.json) print_json({{"loss", loss}, {"tensors", out.size()}, {"out", options.out}});
  logger.info("loss {:.6f}; {} tensors in {}", loss, out.size(), options.out);
  return ExitCode::ok;
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
  add_device_options(sub, o->device);
  sub.run([o](const CommonOptions& common) { return run(*o, common); });
}

}  // namespace farskip
