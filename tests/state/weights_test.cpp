// SPDX-License-Identifier: Apache-2.0
// Weights by rank: every layout starts from the same bits and reads its own part of a model folder.

#include "farskip/state/weights.h"

#include <cstring>

#include "farskip/base/random.h"
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
      .subspan(static_cast<std::size_t>(p.blocks.front().whole_row) * row_bytes,
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

/// A device whose memory the host cannot write in place; it notes what is copied into it.
class FarDevice final : public Device {
 public:
  DeviceKind kind() const override { return cpu_->kind(); }
  std::string name() const override { return "far"; }
  const KernelTable& kernels() const override { return cpu_->kernels(); }
  bool shares_host_memory() const override { return false; }
  DeviceMemory memory() const override { return cpu_->memory(); }
  std::shared_ptr<std::byte[]> allocate(std::size_t bytes) override {
    auto memory = cpu_->allocate(bytes);
    std::fill_n(memory.get(), bytes, std::byte{0xff});  // NaN
    return memory;
  }
  void copy_in(void* device, const void* host, std::size_t bytes) override {
    largest_copy_in = std::max(largest_copy_in, bytes);
    cpu_->copy_in(device, host, bytes);
  }
  void copy_out(std::span<const CopyOut> parts) override { cpu_->copy_out(parts); }
  void copy_within(void* to, const void* from, std::size_t bytes) override {
    cpu_->copy_within(to, from, bytes);
  }
  void fill_zero(void* device, std::size_t bytes) override { cpu_->fill_zero(device, bytes); }
  void fill_normal(const TensorView& to, const NormalNumbers& numbers) override {
    cpu_->fill_normal(to, numbers);
  }
  void synchronize() override {}
  std::unique_ptr<TimeMarks> make_time_marks(std::size_t count) override {
    return cpu_->make_time_marks(count);
  }

  std::size_t largest_copy_in = 0;

 private:
  std::shared_ptr<Device> cpu_ = make_cpu_device();
};

TEST_CASE("random weights are made on the device in the type that they have there") {
  const ModelConfig config = read_hub_config(test::fixtures() / "deepseek_v3_biases");
  const auto parameters = local_parameters(list_parameters(config), {2, 1, 2}, false);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const auto device = std::make_shared<FarDevice>();
    States states(device, constant_states(parameters, dtype));
    initialise_weights(states, 7, 0.02);
    for (const StateSpec& spec : states.specs()) {
      CAPTURE(spec.name);
      const ParameterSpec& p = spec.parameter->spec;
      HostTensor expected(DType::f32, p.shape);
      const float constant = p.initializer == Initializer::ones ? 1.0F : 0.0F;
      std::fill(expected.values<float>().begin(), expected.values<float>().end(), constant);
      const auto first = static_cast<std::uint64_t>(spec.parameter->blocks.front().whole_row * p.row_size());
      if (p.initializer == Initializer::normal)
        fill_normal(7, stream_id(p.name), first, 0.0, 0.02, expected.values<float>());
      const HostTensor rounded = convert_dtype(expected, spec.dtype),
                       got = copy_to_host(*device, states.at(spec.name));
      REQUIRE(got.bytes().size() == rounded.bytes().size());
      CHECK(std::memcmp(got.bytes().data(), rounded.bytes().data(), rounded.bytes().size()) == 0);
    }
    CHECK(device->largest_copy_in <= static_cast<std::size_t>(config.hidden_size) * sizeof(float));  // norms
  }
}

// More than 64 MiB each; the hub has the second with swapped dims.
std::vector<ParameterSpec> large_parameters() {
  std::vector<ParameterSpec> specs(2);
  specs[0] = {
      "table", {70001, 256}, SubBlock::none, -1, false, Initializer::normal, {{"table", {70001, 256}, 0}}};
  specs[1] = {"experts", {5, 1001, 4096}, SubBlock::none, -1, true, Initializer::normal, {}};
  specs[1].packed_transposed = "packed";
  return specs;
}

TEST_CASE("weights pass through host memory in parts, of whole matrices where dims are swapped") {
  const test::TemporaryFolder folder;
  const std::vector<ParameterSpec> specs = large_parameters();
  const auto whole = test::make_weights(whole_parameters(specs));
  initialise_weights(*whole, 3, 0.02);
  write_tensors(folder / "model.safetensors", hub_sources(*whole), DType::f32);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const auto device = std::make_shared<FarDevice>();
    States states(device, constant_states(whole_parameters(specs), dtype));
    load_weights(states, specs, SafetensorsFolder(folder.path()));
    CHECK(device->largest_copy_in <= std::size_t{64} << 20);
    for (const StateSpec& spec : states.specs()) {
      const HostTensor got = copy_to_host(*device, states.at(spec.name));
      const HostTensor expected =
          convert_dtype(copy_to_host(whole->device(), whole->at(spec.parameter->spec.name)), spec.dtype);
      CHECK(std::memcmp(got.bytes().data(), expected.bytes().data(), expected.bytes().size()) == 0);
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

TEST_CASE("what ZeRO deals out is loaded, initialised and written as rows of the whole") {
  for (const char* model : {"deepseek_v2", "llama4_text"})
    for (const DType compute : {DType::f32, DType::bf16})
      for (const MeshPosition& mesh : {MeshPosition{2, 1, 1}, {3, 1, 1}, {4, 1, 2}, {4, 3, 1, 2}})
        for (const int zero : {2, 3}) {
          INFO(model << ", " << dtype_name(compute) << ", ZeRO-" << zero << " on " << mesh.world_size);
          const fs::path folder = test::fixtures() / model;
          const std::vector<ParameterSpec> specs = list_parameters(read_hub_config(folder));
          const auto whole = test::make_weights(local_parameters(specs, mesh, 0), compute),
                     part = test::make_weights(local_parameters(specs, mesh, zero), compute);
          const auto check = [&] {
            for (const StateSpec& spec : part->specs()) {
              INFO(spec.name);
              const Range rows = spec.rows();
              CHECK(test::same_bits(part->at(spec.name),
                                    rows_view(whole->at(spec.name), rows.first, rows.count)));
            }
          };
          for (States* states : {whole.get(), part.get()})
            load_weights(*states, specs, SafetensorsFolder(folder));
          check();
          for (States* states : {whole.get(), part.get()}) initialise_weights(*states, 7, 0.02);
          check();
          write_states(*part, read_states(*whole, Role::weight), Role::weight);
          check();
          // Matrices that no one needs whole are a fraction.
          const Role role = is_low(compute) && zero == 3 ? Role::compute_copy : Role::weight;
          const bool in_parts = is_low(compute) || zero == 3;
          CHECK((part->num_bytes(role) < whole->num_bytes(role) * 3 / 4) == in_parts);
        }
}

TEST_CASE("moments have the rows whose state a rank keeps") {
  std::vector<ParameterSpec> specs(3);
  specs[0] = {"matrix", {5, 3}, SubBlock::none, -1, false, Initializer::normal, {{"matrix", {5, 3}, 0}}};
  specs[1] = {"vector", {1}, SubBlock::none, -1, false, Initializer::ones, {{"vector", {1}, 0}}};
  specs[2] = {"experts", {2, 2, 3}, SubBlock::none, -1, true, Initializer::normal, {}};
  specs[2].layout = {{.dim = 0, .axis = MeshAxis::expert}};
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
