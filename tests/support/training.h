// SPDX-License-Identifier: Apache-2.0
#pragma once
// An engine over the weights of a fixture, for tests that link the train layer.

#include <algorithm>
#include <cmath>

#include "measure/measure.h"
#include "run/trainer.h"
#include "support/context.h"
#include "support/states.h"
#include "support/support.h"

namespace farskip::test {

inline const Logger quiet_logger(LogLevel::off);

struct Training {
  Training(const std::string& fixture, FarSkipMode mode, const std::shared_ptr<Device>& device,
           TrainEngineOptions engine_options)
      : options(std::move(engine_options)),
        config(read_hub_config(fixtures() / fixture)),
        specs(list_parameters(config)),
        model(wire_model(config, {mode, {}})),
        context(quiet_context(make_self_mesh(), device)) {
    options.optimizer.weight_decay = 0.1;
    states = make_weights(whole_parameters(specs), options.compute, device);
    farskip::load_weights(*states, specs, SafetensorsFolder(fixtures() / fixture));
    engine = std::make_unique<TrainEngine>(model, states, options, context);
  }

  std::int64_t batch_tokens() const { return options.micro_batch * options.sequence_length; }
  /// The micro-batches of a step.
  std::vector<Batch> batches(std::int64_t step) const {
    std::vector<Batch> out;
    for (std::int64_t i = 0; i < options.micro_batches; ++i)
      out.push_back(random_batch(3, static_cast<std::uint64_t>(options.micro_batches * step + i),
                                 batch_tokens(), config.vocab_size));
    return out;
  }
  /// Of the sum of losses of a step.
  float scale() const { return 1.0F / static_cast<float>(options.micro_batches * batch_tokens()); }
  StepResult step(std::int64_t number) {
    return engine->step(batches(number), scale(), 1e-3F, 1e-3, number + 1);
  }
  TensorMap gradients() const { return read_states(*states, Role::gradient); }
  BatchLoss compute_gradients() { return engine->compute_gradients(batches(0), scale(), 1e-3F); }

  TrainEngineOptions options;
  ModelConfig config;
  std::vector<ParameterSpec> specs;
  Model model;
  Context context;
  std::shared_ptr<States> states;
  std::unique_ptr<TrainEngine> engine;
};

/// ‖got - want‖ / ‖want‖ of f32 tensors.
inline double relative_error(const TensorView& got, const TensorView& want) {
  double difference = 0, norm = 0;
  for (std::int64_t i = 0; i < want.num_elements(); ++i) {
    difference += std::pow(static_cast<double>(got.as<float>()[i]) - want.as<float>()[i], 2);
    norm += std::pow(static_cast<double>(want.as<float>()[i]), 2);
  }
  return std::sqrt(difference / norm);
}

inline bool same_bytes(const HostTensor& a, const HostTensor& b) {
  return std::equal(a.bytes().begin(), a.bytes().end(), b.bytes().begin(), b.bytes().end());
}

/// Rounding sends a few tokens to other experts. What these experts, the router and the norm before it get
/// from such a token then changes as a whole.
inline bool depends_on_routing(const std::string& parameter) {
  return parameter.find("mlp.experts") != std::string::npos ||
         parameter.find("mlp.gate") != std::string::npos ||
         parameter.find("post_attention_layernorm") != std::string::npos;
}

/// A norm of queries and keys, whose gradient is a sum over all tokens and heads that nearly cancels: in bf16
/// up to a third of it is rounding (OLMoE, whose norm takes all heads together, on a CPU and on a GPU).
inline bool nearly_cancels(const std::string& parameter) {
  return parameter.find("self_attn.q_norm") != std::string::npos ||
         parameter.find("self_attn.k_norm") != std::string::npos;
}

}  // namespace farskip::test
