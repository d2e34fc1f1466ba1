// SPDX-License-Identifier: Apache-2.0
// Every fixture of every family: from its folder onto any ranks and back, and a run that changes its layout.

#include "hub/hub_folder.h"
#include "runs.h"
#include "support/catch.h"
#include "support/models.h"
#include "support/run_files.h"
#include "support/states.h"
#include "tensor/safetensors_writer.h"

namespace farskip::test {
namespace {

/// Without those that a model cannot be laid out on: fewer experts than ranks share, or not as many for each.
std::vector<Layout> layouts_of(const ModelConfig& model, std::vector<Layout> layouts) {
  std::erase_if(layouts, [&](const Layout& layout) { return model.moe.num_experts % layout.expert != 0; });
  return layouts;
}

/// The weights of a folder in the form in which it leaves, as `convert` has them.
std::vector<HubSource> leaving(const ModelFolder& folder, const std::vector<ParameterSpec>& specs) {
  return hub_sources(specs, rows_of(folder), [&](const ParameterSpec& spec, const std::string& tensor) {
    return stored_place(folder, spec, tensor);
  });
}
void export_folder(const fs::path& from, const fs::path& to, DType dtype) {
  const ModelConfig config = read_hub_config(from);
  const std::vector<ParameterSpec> specs = list_parameters(config);
  const SafetensorsFolder files(from);
  const ModelFolder folder(files, specs);
  write_hub_folder(to, config, leaving(folder, specs), dtype, {});
}

/// Ranks read a model folder, and save what each of them has.
void pass_through_ranks(const fs::path& from, const Layout& layout, const fs::path& to) {
  const ModelConfig config = read_hub_config(from);
  on_ranks(layout.ranks(), [&](const Communicator& world) {
    const Mesh mesh(world, layout.expert, layout.tensor);
    const auto states = load_weights(from, mesh.position(), layout.zero);
    CheckpointSaver saver({to, 1, false}, config, {}, quiet_context(mesh));
    saver.save({1, 1, 1}, *states);
    saver.wait();
    return 0;
  });
}

/// Names, shapes and bits of what would leave `got` are those of `want`, which has f32.
void check_leaves_as(const fs::path& got, const fs::path& want) {
  const std::vector<ParameterSpec> specs = list_parameters(read_hub_config(got));
  const SafetensorsFolder files(got), expected(want);
  const ModelFolder folder(files, specs);
  const std::vector<HubSource> sources = leaving(folder, specs);
  CHECK(sources.size() == expected.tensors().size());
  for (const HubSource& source : sources) {
    CAPTURE(source.name);
    REQUIRE(expected.contains(source.name));
    CHECK(expected.find(source.name).shape == source.shape);
    CHECK(same_bits(read_source(source).view(), expected.read(source.name).view()));
  }
}

/// Experts of a layer in one tensor, as transformers has them in memory.
void write_packed(const fs::path& fixture, const fs::path& folder) {
  const auto states = load_weights(fixture);
  std::vector<HubSource> sources;
  for (const StateSpec& state : states->specs())
    sources.push_back(source_of(state.name, states->at(state.name)));
  fs::create_directory(folder);
  write_tensors(folder / "model.safetensors", sources, DType::f32);
  fs::copy_file(fixture / "config.json", folder / "config.json");
}

TEST_CASE("every family's weights go through any ranks and leave as they came, byte for byte") {
  std::size_t number = 0;
  for (const std::string& name : model_fixtures()) {
    const TemporaryFolder folder;
    const fs::path source = fixtures() / name;
    const std::vector<Layout> four =
        layouts_of(read_hub_config(source), {{.expert = 2, .data = 2, .zero = 2},
                                             {.tensor = 4},
                                             {.expert = 4},
                                             {.expert = 2, .data = 2, .zero = 3, .tensor = 2}});
    const Layout& of_four = four[number++ % four.size()];
    for (const Layout& layout :
         {Layout{}, Layout{.expert = 2}, Layout{.tensor = 2}, Layout{.data = 2, .zero = 3}, of_four}) {
      CAPTURE(name, layout.text());
      pass_through_ranks(source, layout, folder / layout.text());
      check_leaves_as(folder / layout.text() / "step-1", source);
    }
    // In again from what has left, from experts in one tensor, and in bf16.
    CAPTURE(name, of_four.text());
    const auto pass_again = [&](const fs::path& from, const char* to, DType dtype) {
      pass_through_ranks(from, of_four, folder / to);
      export_folder(folder / to / "step-1", folder / to / "left", dtype);
      CHECK(read_hub_config(folder / to / "left") == read_hub_config(source));
      return read_text_file(folder / to / "left" / "model.safetensors");
    };
    const std::string once = pass_again(source, "once", DType::f32);
    CHECK(pass_again(folder / "once" / "left", "twice", DType::f32) == once);
    write_packed(source, folder / "packed");
    CHECK(pass_again(folder / "packed", "unpacked", DType::f32) == once);
    export_folder(source, folder / "low", DType::bf16);
    CHECK(pass_again(folder / "low", "still low", DType::bf16) ==
          read_text_file(folder / "low" / "model.safetensors"));
  }
}

TEST_CASE("every family goes on after a resume to the bit, and from any layout on any other to rounding") {
  const std::vector<Layout> four{{.expert = 2, .data = 2, .zero = 1},
                                 {.data = 2, .zero = 3, .tensor = 2},
                                 {.data = 4, .zero = 2},
                                 {.expert = 2, .data = 2, .tensor = 2},
                                 {.tensor = 4}};
  const std::vector<Layout> two{{.expert = 2}, {.tensor = 2}, {.data = 2, .zero = 3}};
  std::size_t number = 0;
  for (const std::string& name : model_fixtures()) {
    const ModelConfig model = read_hub_config(fixtures() / name);
    std::vector<std::string> overrides{"checkpoint.every=0", "train.validate_every=0", "train.micro_batch=1",
                                       "schedule.overlap=false"};
    if (model.moe.selection_bias) overrides.push_back("train.router_bias_update=0.01");
    const TemporaryFolder folder;
    const auto run = [&](const char* to, const Layout& layout, std::int64_t steps) {
      REQUIRE(train_run(make_run(folder / to, layout, steps, overrides, name)).step == steps);
    };
    const Layout &own = four[number % four.size()], &second = two[number % two.size()],
                 &third = two[(number + 1) % two.size()];
    ++number;
    CAPTURE(name, own.text(), second.text(), third.text());
    run("whole", own, 4);
    run("half", own, 2);
    fs::copy(folder / "half", folder / "moved", fs::copy_options::recursive);
    run("half", own, 4);
    check_metrics(folder / "half", folder / "whole", 0);
    CHECK(checkpoint_bytes(folder / "half", 4) == checkpoint_bytes(folder / "whole", 4));
    run("moved", second, 3);
    run("moved", third, 4);
    check_metrics(folder / "moved", folder / "whole", 1e-5);
    CHECK(checkpoint_difference(checkpoint_folder(folder / "moved", 4),
                                checkpoint_folder(folder / "whole", 4)) < 1e-3);
  }
}

}  // namespace
}  // namespace farskip::test
