// SPDX-License-Identifier: Apache-2.0
// What commands read as a model.

#include "farskip/cli/load.h"

#include <cstring>

#include "farskip/checkpoint/training_checkpoint.h"
#include "farskip/comm/local.h"
#include "support/catch.h"
#include "support/context.h"
#include "support/support.h"

namespace farskip {
namespace {

TEST_CASE("a checkpoint of any number of ranks loads as the model it was made from") {
  const Logger quiet(LogLevel::off);
  const fs::path source = test::fixtures() / "deepseek_v2";
  const LoadedModel model = load_model(source.string(), quiet);
  const std::vector<ParameterSpec> specs = list_parameters(model.config);
  for (const int ranks : {1, 2, 4}) {
    const test::TemporaryFolder run;
    run_local_ranks(ranks, [&](const Communicator& world) {
      const MeshPosition mesh{ranks, world.rank(), ranks};
      const auto parameters = local_parameters(specs, mesh, true);
      TensorMap weights = make_parameter_tensors(specs_of(parameters));
      load_weights(weights, parameters, specs, SafetensorsFolder(source));
      OptimizerStates states{{"adam.m.", make_optimizer_tensors(parameters)},
                             {"adam.v.", make_optimizer_tensors(parameters)}};
      for (auto& [kind, moments] : states)
        for (auto& [name, tensor] : moments) std::memset(tensor.view().data, 0, tensor.bytes().size());
      CheckpointSaver saver({run / "checkpoints", 1, false}, model.config, {},
                            test::quiet_context(Mesh(world, ranks)));
      saver.save({3, 12, 384}, {parameters, weights, states});
    });
    for (const fs::path& path : {run.path(), run / "checkpoints", run / "checkpoints/step-3"}) {
      INFO(path << " of " << ranks << " ranks");
      const LoadedModel loaded = load_model(path.string(), quiet);
      CHECK(loaded.config == model.config);
      for (const auto& [name, tensor] : model.weights)
        CHECK(std::memcmp(loaded.weights.at(name).bytes().data(), tensor.bytes().data(),
                          tensor.bytes().size()) == 0);
    }
  }
}

}  // namespace
}  // namespace farskip
