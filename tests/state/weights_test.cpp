// SPDX-License-Identifier: Apache-2.0
// Weights by rank: every layout starts from the same bits and reads its own part of a model folder.

#include "farskip/state/weights.h"

#include <cstring>

#include "support/catch.h"
#include "support/models.h"
#include "support/states.h"
#include "support/support.h"

namespace farskip {
namespace {

const std::vector<MeshPosition> kMeshes{{1, 0, 1}, {2, 0, 1}, {2, 0, 2}, {3, 0, 1}, {4, 0, 2}, {4, 0, 4}};

/// The part of a whole parameter that `p` is, as bytes.
std::span<const std::byte> slice_of(const States& whole, const LocalParameter& p) {
  const auto row_bytes = static_cast<std::size_t>(p.spec.row_size()) * sizeof(float);
  return std::span<const std::byte>(whole.at(p.spec.name).bytes())
      .subspan(static_cast<std::size_t>(p.first_row) * row_bytes,
               static_cast<std::size_t>(p.spec.num_rows()) * row_bytes);
}

void check_equals_slices(const States& part, const States& whole) {
  for (const StateSpec& spec : part.specs()) {
    INFO(spec.name);
    const auto expected = slice_of(whole, *spec.parameter);
    const std::span<const std::byte> got = part.at(spec.name).bytes();
    REQUIRE(got.size() == expected.size());
    CHECK(std::memcmp(got.data(), expected.data(), got.size()) == 0);
  }
}

/// This place's part of a folder of this model.
std::shared_ptr<States> load_part(const SafetensorsFolder& folder, const std::vector<ParameterSpec>& specs,
                                  const MeshPosition& mesh = {}) {
  auto states = test::make_weights(local_parameters(specs, mesh, true));
  load_weights(*states, specs, folder);
  return states;
}

void check_load_by_rank(const fs::path& path, const std::vector<ParameterSpec>& specs, const States& whole) {
  const SafetensorsFolder folder(path);
  for (MeshPosition mesh : kMeshes)
    for (mesh.world_rank = 0; mesh.world_rank < mesh.world_size; ++mesh.world_rank)
      check_equals_slices(*load_part(folder, specs, mesh), whole);
}

TEST_CASE("weights initialised on any mesh are slices of the whole model's") {
  for (const std::string& model : test::family_fixtures()) {
    const std::vector<ParameterSpec> specs = list_parameters(read_hub_config(test::fixtures() / model));
    const auto whole = test::make_weights(whole_parameters(specs));
    initialise_weights(*whole, 7, 0.02);
    for (MeshPosition mesh : kMeshes)
      for (mesh.world_rank = 0; mesh.world_rank < mesh.world_size; ++mesh.world_rank) {
        const auto part = test::make_weights(local_parameters(specs, mesh, false));
        initialise_weights(*part, 7, 0.02);
        check_equals_slices(*part, *whole);
      }
  }
}

TEST_CASE("each rank loads its own experts from a model folder, one tensor each or packed, f32 or bf16") {
  for (const std::string& model : test::family_fixtures()) {
    const fs::path source = test::fixtures() / model;
    const std::vector<ParameterSpec> specs = list_parameters(read_hub_config(source));
    const SafetensorsFolder files(source);
    const auto whole = load_part(files, specs);
    for (const HubSource& tensor : hub_sources(*whole)) {
      INFO(tensor.name);
      const HostTensor stored = convert_dtype(files.read(tensor.name), DType::f32);
      const HostTensor ours = read_source(tensor);
      REQUIRE(ours.shape() == stored.shape());
      CHECK(std::memcmp(stored.bytes().data(), ours.bytes().data(), stored.bytes().size()) == 0);
    }
    check_load_by_rank(source, specs, *whole);

    const test::TemporaryFolder folder;
    std::vector<HubSource> packed;
    for (const StateSpec& spec : whole->specs())
      packed.push_back(test::source_of(spec.name, whole->at(spec.name)));
    for (const DType dtype : {DType::f32, DType::bf16}) {
      write_tensors(folder / "model.safetensors", packed, dtype);
      const auto expected = load_part(SafetensorsFolder(folder.path()), specs);
      if (dtype == DType::f32) check_equals_slices(*expected, *whole);
      check_load_by_rank(folder.path(), specs, *expected);
    }
  }
}

TEST_CASE("a rank notices what does not fit the model wherever its experts are, before it reads") {
  const test::TemporaryFolder folder;
  const std::vector<ParameterSpec> specs = list_parameters(read_hub_config(test::fixtures() / "qwen3_moe"));
  const auto whole = test::make_weights(whole_parameters(specs));
  initialise_weights(*whole, 1, 0.02);
  const std::string missing = "model.layers.0.mlp.experts.0.up_proj.weight";
  const std::string cut = "model.layers.0.mlp.experts.7.up_proj.weight";
  std::vector<HubSource> sources = hub_sources(*whole);
  for (HubSource& source : sources) {
    if (source.name == missing) source.name = "surplus";
    if (source.name == cut) {
      source.shape = Shape{8, 32};
      source.give = [half = HostTensor(DType::f32, Shape{8, 32})](const HubSource::Take& take) {
        take(half.view());
      };
    }
  }
  write_tensors(folder / "model.safetensors", sources, DType::f32);
  for (const int rank : {0, 1}) {
    CHECK_THROWS_WITH(
        load_part(SafetensorsFolder(folder.path()), specs, {2, rank, 2}),
        ContainsSubstring("3 tensors do not fit") && ContainsSubstring(missing + " [16, 32] is missing") &&
            ContainsSubstring("model.safetensors: " + cut + " is [8, 32], the model has [16, 32]") &&
            ContainsSubstring("model.safetensors: surplus [16, 32] is not part of the model"));
  }
}

TEST_CASE("moments have the rows whose state a rank keeps") {
  std::vector<ParameterSpec> specs(3);
  specs[0] = {"matrix", {5, 3}, SubBlock::none, -1, false, Initializer::normal, {{"matrix", {5, 3}, 0}}};
  specs[1] = {"vector", {1}, SubBlock::none, -1, false, Initializer::ones, {{"vector", {1}, 0}}};
  specs[2] = {"experts", {2, 2, 3}, SubBlock::none, -1, true, Initializer::normal, {}};
  for (const std::int64_t e : {0, 1}) specs[2].pieces.push_back({fmt::format("e{}", e), {2, 3}, 2 * e});
  const auto shapes = [&](const MeshPosition& mesh, bool zero) {
    std::vector<Shape> list;
    const States states(make_cpu_device(), test::moments_of(local_parameters(specs, mesh, zero)));
    for (const char* name : {"matrix", "vector", "experts"})
      list.push_back(states.at(std::string(kSecondMoment) + name).shape);
    return list;
  };
  CHECK(shapes({}, true) == std::vector<Shape>{{5, 3}, {1}, {2, 2, 3}});
  CHECK(shapes({2, 0, 2}, false) == std::vector<Shape>{{5, 3}, {1}, {1, 2, 3}});
  CHECK(shapes({2, 0, 2}, true) == std::vector<Shape>{{2, 3}, {0}, {1, 2, 3}});
  CHECK(shapes({2, 1, 1}, true) == std::vector<Shape>{{3, 3}, {1}, {2, 3}});
  CHECK(shapes({4, 3, 2}, true) == std::vector<Shape>{{2, 3}, {1}, {1, 3}});
}

}  // namespace
}  // namespace farskip
