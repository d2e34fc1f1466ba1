// SPDX-License-Identifier: Apache-2.0
// Weights by rank: every layout starts from the same bits and reads its own part of a model folder.

#include "farskip/state/weights.h"

#include <cstring>

#include "support/catch.h"
#include "support/models.h"
#include "support/support.h"

namespace farskip {
namespace {

const std::vector<MeshPosition> kMeshes{{1, 0, 1}, {2, 0, 1}, {2, 0, 2}, {3, 0, 1}, {4, 0, 2}, {4, 0, 4}};

/// The part of a whole parameter that `p` is, as bytes.
std::span<const std::byte> slice_of(const TensorMap& whole, const LocalParameter& p) {
  const auto row_bytes = static_cast<std::size_t>(p.spec.row_size()) * sizeof(float);
  return whole.at(p.spec.name)
      .bytes()
      .subspan(static_cast<std::size_t>(p.first_row) * row_bytes,
               static_cast<std::size_t>(p.spec.num_rows()) * row_bytes);
}

void check_equals_slices(const TensorMap& part, const TensorMap& whole,
                         const std::vector<LocalParameter>& parameters) {
  for (const LocalParameter& p : parameters) {
    INFO(p.spec.name);
    const auto expected = slice_of(whole, p), got = part.at(p.spec.name).bytes();
    REQUIRE(got.size() == expected.size());
    CHECK(std::memcmp(got.data(), expected.data(), got.size()) == 0);
  }
}

TensorMap load_whole(const SafetensorsFolder& folder, const std::vector<ParameterSpec>& specs) {
  TensorMap whole = make_parameter_tensors(specs);
  load_weights(whole, whole_parameters(specs), specs, folder);
  return whole;
}

void check_load_by_rank(const fs::path& path, const std::vector<ParameterSpec>& specs,
                        const TensorMap& whole) {
  const SafetensorsFolder folder(path);
  for (MeshPosition mesh : kMeshes)
    for (mesh.world_rank = 0; mesh.world_rank < mesh.world_size; ++mesh.world_rank) {
      const auto parameters = local_parameters(specs, mesh, true);
      TensorMap part = make_parameter_tensors(specs_of(parameters));
      load_weights(part, parameters, specs, folder);
      check_equals_slices(part, whole, parameters);
    }
}

TEST_CASE("weights initialised on any mesh are slices of the whole model's") {
  for (const std::string& model : test::family_fixtures()) {
    const std::vector<ParameterSpec> specs = list_parameters(read_hub_config(test::fixtures() / model));
    TensorMap whole = make_parameter_tensors(specs);
    initialise_weights(whole, whole_parameters(specs), 7, 0.02);
    for (MeshPosition mesh : kMeshes)
      for (mesh.world_rank = 0; mesh.world_rank < mesh.world_size; ++mesh.world_rank) {
        const auto parameters = local_parameters(specs, mesh, false);
        TensorMap part = make_parameter_tensors(specs_of(parameters));
        initialise_weights(part, parameters, 7, 0.02);
        check_equals_slices(part, whole, parameters);
      }
  }
}

TEST_CASE("each rank loads its own experts from a model folder, one tensor each or packed, f32 or bf16") {
  for (const std::string& model : test::family_fixtures()) {
    const fs::path source = test::fixtures() / model;
    const std::vector<ParameterSpec> specs = list_parameters(read_hub_config(source));
    const SafetensorsFolder files(source);
    const TensorMap whole = load_whole(files, specs);
    // An independent look at one tensor, where there are experts of the last one, which the last rank has.
    const auto experts =
        std::find_if(specs.rbegin(), specs.rend(), [](const auto& s) { return s.is_expert; });
    const std::string name = (experts == specs.rend() ? specs.back() : *experts).pieces.back().name;
    const HostTensor read = convert_dtype(files.read(name), DType::f32);
    CHECK(std::memcmp(read.bytes().data(), hub_views(whole, specs).at(name).data, read.bytes().size()) == 0);
    check_load_by_rank(source, specs, whole);

    const test::TemporaryFolder folder;
    ViewMap packed;
    for (const auto& [parameter, tensor] : whole) packed[parameter] = tensor.view();
    for (const DType dtype : {DType::f32, DType::bf16}) {
      write_tensors(folder / "model.safetensors", packed, dtype);
      const TensorMap expected = load_whole(SafetensorsFolder(folder.path()), specs);
      if (dtype == DType::f32) check_equals_slices(expected, whole, whole_parameters(specs));
      check_load_by_rank(folder.path(), specs, expected);
    }
  }
}

TEST_CASE("a rank notices what does not fit the model wherever its experts are, before it reads") {
  const test::TemporaryFolder folder;
  const std::vector<ParameterSpec> specs = list_parameters(read_hub_config(test::fixtures() / "qwen3_moe"));
  TensorMap whole = make_parameter_tensors(specs);
  initialise_weights(whole, whole_parameters(specs), 1, 0.02);
  ViewMap views = hub_views(whole, specs);
  const std::string missing = "model.layers.0.mlp.experts.0.up_proj.weight";
  const std::string cut = "model.layers.0.mlp.experts.7.up_proj.weight";
  views["surplus"] = views.extract(missing).mapped();
  views[cut].shape = Shape{8, 32};
  write_tensors(folder / "model.safetensors", views, DType::f32);
  for (const int rank : {0, 1}) {
    const auto parameters = local_parameters(specs, {2, rank, 2}, false);
    TensorMap part = make_parameter_tensors(specs_of(parameters));
    CHECK_THROWS_WITH(
        load_weights(part, parameters, specs, SafetensorsFolder(folder.path())),
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
    const TensorMap tensors = make_optimizer_tensors(local_parameters(specs, mesh, zero));
    for (const char* name : {"matrix", "vector", "experts"}) list.push_back(tensors.at(name).shape());
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
