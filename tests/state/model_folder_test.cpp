// SPDX-License-Identifier: Apache-2.0
// Folders of other programs: parts of larger models, layers that are not built, weights in fp8.

#include "farskip/state/model_folder.h"

#include <cmath>
#include <cstring>

#include "farskip/model/model_config.h"
#include "farskip/state/weights.h"
#include "support/catch.h"
#include "support/models.h"
#include "support/states.h"
#include "support/support.h"
#include "tensor/safetensors_writer.h"

namespace farskip {
namespace {

/// The model of a fixture, and its tensors as the file has them.
struct Fixture {
  explicit Fixture(const std::string& name)
      : specs(list_parameters(read_hub_config(test::fixtures() / name))) {
    const SafetensorsFolder files(test::fixtures() / name);
    for (const TensorInfo* info : files.tensors()) tensors.emplace(info->name, files.read(info->name));
  }
  TensorMap load(const fs::path& folder, MeshPosition mesh = {}) const {
    const auto weights = test::make_weights(local_parameters(specs, mesh, false));
    load_weights(*weights, specs, SafetensorsFolder(folder));
    return read_states(*weights, Role::weight);
  }
  std::vector<ParameterSpec> specs;
  std::map<std::string, HostTensor> tensors;
};

void write_folder(const fs::path& folder, const std::map<std::string, HostTensor>& tensors) {
  std::vector<TensorSpec> specs;
  for (const auto& [name, tensor] : tensors) specs.push_back({name, tensor.dtype(), tensor.shape()});
  SafetensorsWriter writer(folder / "model.safetensors", specs);
  for (const TensorInfo& info : writer.tensors()) writer.write(info.name, tensors.at(info.name).bytes());
  writer.finish();
}

void check_equal(const TensorMap& got, const TensorMap& want) {
  REQUIRE(got.size() == want.size());
  for (const auto& [name, tensor] : want) {
    INFO(name);
    CHECK(std::memcmp(got.at(name).bytes().data(), tensor.bytes().data(), tensor.bytes().size()) == 0);
  }
}

HostTensor zeros(const Shape& shape) {
  HostTensor tensor(DType::f32, shape);
  std::fill(tensor.values<float>().begin(), tensor.values<float>().end(), 0.0F);
  return tensor;
}

TEST_CASE("layers behind the last are passed over where they predict further tokens, else named") {
  for (const auto& [name, is_passed_over] : {std::pair{"deepseek_v3", true}, {"deepseek_v2", false}}) {
    Fixture fixture(name);
    const TensorMap expected = fixture.load(test::fixtures() / name);
    fixture.tensors["model.layers.4.eh_proj.weight"] = zeros({2, 3});
    fixture.tensors["model.layers.4.self_attn.o_proj.weight"] = zeros({2, 3});
    const test::TemporaryFolder folder;
    write_folder(folder.path(), fixture.tensors);
    if (is_passed_over) {
      check_equal(fixture.load(folder.path()), expected);
      fixture.tensors["model.layers.3.eh_proj.weight"] = zeros({2, 3});
      write_folder(folder.path(), fixture.tensors);
      CHECK_THROWS_WITH(fixture.load(folder.path()),
                        ContainsSubstring("1 tensors do not fit") &&
                            ContainsSubstring("model.layers.3.eh_proj.weight [2, 3] is not part"));
    } else {
      CHECK_THROWS_WITH(fixture.load(folder.path()), ContainsSubstring("2 tensors do not fit") &&
                                                         ContainsSubstring("model.layers.4.eh_proj.weight"));
    }
  }
}

TEST_CASE("the text part of a model of text and images is loaded, and all of it must fit") {
  Fixture fixture("llama4_text");
  const TensorMap expected = fixture.load(test::fixtures() / "llama4_text");
  std::map<std::string, HostTensor> outer;
  for (const auto& [name, tensor] : fixture.tensors) outer["language_model." + name] = tensor;
  outer["vision_model.patch_embedding.linear.weight"] = zeros({4, 4});
  outer["multi_modal_projector.linear_1.weight"] = zeros({4, 4});
  const test::TemporaryFolder folder;
  write_folder(folder.path(), outer);
  check_equal(fixture.load(folder.path()), expected);
  outer["language_model.model.surplus.weight"] = zeros({1});
  outer.erase("language_model.model.norm.weight");
  write_folder(folder.path(), outer);
  CHECK_THROWS_WITH(fixture.load(folder.path()),
                    ContainsSubstring("2 tensors do not fit") &&
                        ContainsSubstring("language_model.model.surplus.weight [1] is not part") &&
                        ContainsSubstring("model.norm.weight [32] is missing"));
}

TEST_CASE(
    "a tensor that is missing, of another shape or type, or too many is named with its file, in every "
    "family") {
  for (const std::string& name : test::family_fixtures()) {
    const Fixture fixture(name);
    const test::TemporaryFolder folder;
    const auto refused = [&](const std::map<std::string, HostTensor>& tensors, const std::string& message) {
      write_folder(folder.path(), tensors);
      CHECK_THROWS_WITH(fixture.load(folder.path()),
                        ContainsSubstring("1 tensors do not fit the model's config.json") &&
                            ContainsSubstring("model.safetensors: " + message) &&
                            ContainsSubstring("fetch the weights again"));
    };
    std::set<std::string> kinds;  // their names without numbers: one of each is damaged
    for (const auto& [tensor, values] : fixture.tensors) {
      std::string kind = tensor;
      std::erase_if(kind, [](char c) { return c >= '0' && c <= '9'; });
      if (!kinds.insert(kind).second) continue;
      CAPTURE(name, tensor);
      const std::string shape = values.shape().text();
      std::map<std::string, HostTensor> damaged = fixture.tensors;
      std::vector<std::int64_t> twice = values.shape().dims();
      twice[0] *= 2;
      damaged[tensor] = zeros(Shape(twice));
      refused(damaged, tensor + " is " + Shape(twice).text() + ", the model has " + shape);
      damaged[tensor] = HostTensor(DType::i32, values.shape());
      refused(damaged, tensor + " is i32; f32, bf16, f16, f64, and f8_e4m3 with _scale_inv are read");
      damaged.erase(tensor);
      refused(damaged, tensor + " " + shape + " is missing");
      damaged[tensor] = values;
      damaged[tensor + ".more"] = zeros({3});
      refused(damaged, tensor + ".more [3] is not part of the model");
    }
    CHECK(kinds.size() >= 10);
  }
}

TEST_CASE("experts of which a folder has nothing are missing as other layers' experts lie there") {
  const test::TemporaryFolder folder;
  const Fixture fixture("mixtral");
  std::map<std::string, HostTensor> packed;
  for (auto& [name, values] : fixture.load(test::fixtures() / "mixtral")) packed[name] = values;
  packed.erase("model.layers.1.mlp.experts.down_proj");
  // Experts apart are known by other names, and gate and up lie apart in every folder.
  std::erase_if(packed, [](const auto& tensor) { return tensor.first.find("experts") == std::string::npos; });
  for (const auto& [name, values] : fixture.tensors)
    if (name.find("experts") == std::string::npos) packed[name] = values;
  write_folder(folder.path(), packed);
  CHECK_THROWS_WITH(fixture.load(folder.path()),
                    ContainsSubstring("1 tensors do not fit") &&
                        ContainsSubstring("model.safetensors: model.layers.1.mlp.experts.down_proj [") &&
                        ContainsSubstring("is missing"));
}

/// The e4m3 number next to x, by trying all: NaN and infinity there are none of.
std::uint8_t nearest_f8(float x) {
  HostTensor all(DType::f8_e4m3, Shape{256});
  for (int i = 0; i < 256; ++i)
    all.values<std::uint8_t>()[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(i);
  const HostTensor values = convert_dtype(all, DType::f32);
  std::uint8_t best = 0;
  for (int i = 0; i < 256; ++i) {
    const float value = values.values<float>()[static_cast<std::size_t>(i)];
    if (std::abs(value - x) < std::abs(values.values<float>()[best] - x)) best = static_cast<std::uint8_t>(i);
  }
  return best;
}

TEST_CASE("numbers in fp8 are those of its definition") {
  const std::vector<std::pair<std::uint8_t, float>> known{
      {0x00, 0.0F}, {0x01, 0x1p-9F}, {0x07, 7 * 0x1p-9F}, {0x08, 0x1p-6F}, {0x38, 1.0F},
      {0x3c, 1.5F}, {0xb8, -1.0F},   {0x7e, 448.0F},      {0xfe, -448.0F}, {0x81, -0x1p-9F}};
  for (const auto& [bits, value] : known) {
    HostTensor one(DType::f8_e4m3, Shape{1});
    one.values<std::uint8_t>()[0] = bits;
    CHECK(convert_dtype(one, DType::f32).values<float>()[0] == value);
  }
  HostTensor nan(DType::f8_e4m3, Shape{1});
  nan.values<std::uint8_t>()[0] = 0x7f;
  CHECK(std::isnan(convert_dtype(nan, DType::f32).values<float>()[0]));
}

/// A matrix, or several, in fp8 with a factor per block of 128 x 128, and what they stand for.
void store_in_f8(std::map<std::string, HostTensor>& tensors, const std::string& name, HostTensor& meant) {
  const Shape shape = tensors.at(name).shape();
  const std::int64_t rows = shape[shape.rank() - 2], columns = shape.back();
  std::vector<std::int64_t> dims = shape.dims();
  dims[dims.size() - 2] = (rows + 127) / 128;
  dims[dims.size() - 1] = (columns + 127) / 128;
  HostTensor scales(DType::f32, Shape(dims)), bits(DType::f8_e4m3, shape);
  for (std::int64_t i = 0; i < scales.num_elements(); ++i)
    scales.values<float>()[static_cast<std::size_t>(i)] = 0.001F * static_cast<float>(i + 1);
  meant = zeros(shape);
  for (std::int64_t i = 0; i < bits.num_elements(); ++i) {
    const std::int64_t matrix = i / (rows * columns), row = i / columns % rows, column = i % columns;
    const std::int64_t block = (matrix * dims[dims.size() - 2] + row / 128) * dims.back() + column / 128;
    const auto at = static_cast<std::size_t>(i);
    bits.values<std::uint8_t>()[at] = nearest_f8(static_cast<float>(i % 17) - 8.0F);
    meant.values<float>()[at] =
        (static_cast<float>(i % 17) - 8.0F) * scales.values<float>()[static_cast<std::size_t>(block)];
  }
  tensors[name] = bits;
  tensors[name + "_scale_inv"] = scales;
}

TEST_CASE("weights in fp8 are read with the factors of their blocks, as pieces and packed, on any rank") {
  Fixture fixture("deepseek_v3");
  HostTensor expert, packed;
  const std::string piece = "model.layers.1.mlp.experts.9.up_proj.weight";
  store_in_f8(fixture.tensors, piece, expert);
  // Another layer's experts in one tensor, as newer files may have them.
  const std::string pack = "model.layers.2.mlp.experts.down_proj";
  for (int e = 0; e < 16; ++e)
    fixture.tensors.erase("model.layers.2.mlp.experts." + std::to_string(e) + ".down_proj.weight");
  fixture.tensors[pack] = zeros({16, 32, 16});
  store_in_f8(fixture.tensors, pack, packed);
  const test::TemporaryFolder folder;
  write_folder(folder.path(), fixture.tensors);
  const TensorMap whole = fixture.load(folder.path());
  const float* up =
      whole.at("model.layers.1.mlp.experts.gate_up_proj").values<float>().data() + (9 * 2 + 1) * 16 * 32;
  CHECK(std::memcmp(up, expert.view().data, expert.bytes().size()) == 0);
  CHECK(std::memcmp(whole.at(pack).bytes().data(), packed.bytes().data(), packed.bytes().size()) == 0);
  const TensorMap second = fixture.load(folder.path(), {2, 1, 2});
  const auto half = packed.bytes().size() / 2;
  CHECK(std::memcmp(second.at(pack).bytes().data(), packed.bytes().data() + half, half) == 0);

  const auto refused = [&](const std::string& message) {
    write_folder(folder.path(), fixture.tensors);
    CHECK_THROWS_WITH(fixture.load(folder.path()), ContainsSubstring(message));
  };
  fixture.tensors[piece + "_scale_inv"] = zeros({2, 1});
  refused("_scale_inv is f32 [2, 1]; f32 [1, 1] is read, one factor per block of 128 x 128");
  fixture.tensors.erase(piece + "_scale_inv");
  refused("up_proj.weight is f8_e4m3, and model.layers.1.mlp.experts.9.up_proj.weight_scale_inv is missing");
}

TEST_CASE("a large matrix in fp8 has a factor per block, the last ones smaller") {
  const Shape shape{130, 257};
  std::map<std::string, HostTensor> tensors{{"w", zeros(shape)}};
  HostTensor meant;
  store_in_f8(tensors, "w", meant);
  const test::TemporaryFolder folder;
  write_folder(folder.path(), tensors);
  const SafetensorsFolder files(folder.path());
  ParameterSpec spec{.name = "w", .shape = shape, .pieces = {{"w", shape, 0}}};
  const ModelFolder names(files, {spec});
  CHECK(names.storage_problem("w").empty());
  HostTensor read = zeros(shape);
  names.read("w", 0, read.view());
  CHECK(std::memcmp(read.bytes().data(), meant.bytes().data(), meant.bytes().size()) == 0);
  HostTensor last = zeros({2, 257});
  names.read("w", 128 * 257, last.view());
  CHECK(std::memcmp(last.bytes().data(), meant.bytes().data() + 128 * 257 * 4, last.bytes().size()) == 0);
}

}  // namespace
}  // namespace farskip
