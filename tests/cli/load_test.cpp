// SPDX-License-Identifier: Apache-2.0
// What commands read as a model.

#include "farskip/cli/load.h"

#include <cstring>

#include "farskip/checkpoint/training_checkpoint.h"
#include "farskip/comm/local.h"
#include "support/catch.h"
#include "support/context.h"
#include "support/states.h"
#include "support/support.h"

namespace farskip {
namespace {

TEST_CASE("a checkpoint of any number of ranks loads as the model it was made from") {
  const Logger quiet(LogLevel::off);
  const fs::path source = test::fixtures() / "deepseek_v2";
  const LoadedModel model = load_model(source.string(), Role::weight, quiet);
  const std::vector<ParameterSpec> specs = list_parameters(model.config);
  for (const int ranks : {1, 2, 4}) {
    const test::TemporaryFolder run;
    run_local_ranks(ranks, [&](const Communicator& world) {
      const MeshPosition mesh{ranks, world.rank(), ranks};
      const auto states = test::load_weights(source, mesh, true);
      states->add(test::moments_of(local_parameters(specs, mesh, true)));
      states->fill_zero(Role::optimizer);
      CheckpointSaver saver({run / "checkpoints", 1, false}, model.config, {},
                            test::quiet_context(Mesh(world, ranks)));
      saver.save({3, 12, 384}, *states);
    });
    for (const fs::path& path : {run.path(), run / "checkpoints", run / "checkpoints/step-3"}) {
      INFO(path << " of " << ranks << " ranks");
      const LoadedModel loaded = load_model(path.string(), Role::weight, quiet);
      CHECK(loaded.config == model.config);
      for (const StateSpec& spec : model.states->specs())
        CHECK(test::same_bits(loaded.states->at(spec.name), model.states->at(spec.name)));
    }
  }
}

}  // namespace
}  // namespace farskip
