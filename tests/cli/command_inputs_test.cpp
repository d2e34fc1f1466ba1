// SPDX-License-Identifier: Apache-2.0
// What commands read as a model.

#include "cli/command_inputs.h"

#include <cstring>

#include "checkpoint/training_checkpoint.h"
#include "comm/local.h"
#include "hub/hub_folder.h"
#include "support/catch.h"
#include "support/context.h"
#include "support/models.h"
#include "support/states.h"
#include "support/support.h"

namespace farskip {
namespace {

/// Over so many ranks, of which as many hold other experts as divide them.
MeshPosition mesh_of(const ModelConfig& config, int ranks, int rank) {
  const bool divides = config.moe.num_experts > 0 && config.moe.num_experts % ranks == 0;
  return {ranks, rank, divides ? ranks : 1};
}

TEST_CASE(
    "a model of every family goes through checkpoints of any number of ranks and back to a folder, bit by "
    "bit") {
  const Logger quiet(LogLevel::off);
  for (const std::string& name : test::model_fixtures()) {
    const fs::path source = test::fixtures() / name;
    const LoadedModel model = load_model(source.string(), Role::weight, quiet);
    const std::vector<ParameterSpec> specs = list_parameters(model.config);
    for (const int ranks : {1, 2, 4}) {
      const test::TemporaryFolder run;
      run_local_ranks(ranks, [&](const Communicator& world) {
        const MeshPosition mesh = mesh_of(model.config, ranks, world.rank());
        const auto states = test::load_weights(source, mesh, true);
        auto trained = local_parameters(specs, mesh, true);
        std::erase_if(trained, [](const LocalParameter& p) { return !p.spec.is_trained; });
        states->add(test::moments_of(trained));
        states->fill_zero(Role::optimizer);
        CheckpointSaver saver({run / "checkpoints", 1, false}, model.config, {},
                              test::quiet_context(Mesh(world, mesh.expert_size)));
        saver.save({3, 12, 384}, *states);
      });
      for (const fs::path& path : {run.path(), run / "checkpoints", run / "checkpoints/step-3"}) {
        INFO(path << " of " << name << " on " << ranks << " ranks");
        const LoadedModel loaded = load_model(path.string(), Role::weight, quiet);
        CHECK(loaded.config == model.config);
        for (const StateSpec& spec : model.states->specs())
          CHECK(test::same_bits(loaded.states->at(spec.name), model.states->at(spec.name)));
      }
      const LoadedModel loaded = load_model(run.path().string(), Role::weight, quiet);
      write_hub_folder(run / "exported", loaded.config, hub_sources(*loaded.states), DType::f32, {});
      const LoadedModel again = load_model((run / "exported").string(), Role::weight, quiet);
      CHECK(again.config == model.config);
      for (const StateSpec& spec : model.states->specs())
        CHECK(test::same_bits(again.states->at(spec.name), model.states->at(spec.name)));
    }
  }
}

}  // namespace
}  // namespace farskip
