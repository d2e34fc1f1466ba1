// SPDX-License-Identifier: Apache-2.0
// Loads a model folder and prints the mean loss of each next token: consumer MODEL FILE, a safetensors file
// with `tokens` [batch, length], I32.
#include <cstdio>

#include "farskip/engine/engine.h"
#include "farskip/state/weights.h"

int main(int, char** argv) {
  using namespace farskip;
  const Model model = wire_model(read_hub_config(argv[1]));
  const auto specs = list_parameters(model.config);
  const auto device = make_cpu_device();
  const auto states = std::make_shared<States>(device, constant_states(whole_parameters(specs), DType::f32));
  load_weights(*states, specs, SafetensorsFolder(argv[1]));
  InferenceEngine engine(model, states, make_context(device, Logger(LogLevel::warning)));
  const HostTensor tokens = SafetensorsFile(argv[2]).read("tokens");
  const auto ids = tokens.values<std::int32_t>();
  const auto length = static_cast<std::size_t>(tokens.shape()[1]);
  Batch batch{{ids.begin(), ids.end()}, {ids.begin() + 1, ids.end()}, {}};
  batch.targets.push_back(-1);
  for (std::size_t end = length; end <= ids.size(); end += length) batch.targets[end - 1] = -1;
  const double counted = static_cast<double>(tokens.shape()[0] * (tokens.shape()[1] - 1));
  std::printf("%.9f\n", engine.loss(batch, tokens.shape()[1]).loss_sum / counted);
}
