// SPDX-License-Identifier: Apache-2.0
// Distillation on a device whose memory the host cannot touch, and in bf16, on the CPU
// (tests/reference/rounded.h).
#include <cmath>
#include <nlohmann/json.hpp>

#include "reference/rounded.h"
#include "support/catch.h"
#include "support/run_files.h"
#include "support/small_run.h"
#include "support/states.h"

namespace farskip {
namespace {

using Catch::Matchers::ContainsSubstring;
using test::checkpoint_bytes, test::make_small_run, test::read_metrics, test::run_small, test::SmallRunKind;

/// Runs on the given device whatever the configuration says.
TrainResult distill(const fs::path& run_dir, const std::shared_ptr<Device>& device,
                    std::vector<std::string> overrides) {
  overrides.emplace_back("train.optimizer.weight_decay=0");
  return run_small(make_small_run(run_dir, SmallRunKind::distill, overrides), device);
}

/// The fixture as most models come: in bf16.
fs::path write_low_teacher(const fs::path& folder) {
  fs::copy(test::small_model(), folder, fs::copy_options::recursive);
  write_tensors(folder / "model.safetensors", hub_sources(*test::load_weights(test::small_model())),
                DType::bf16);
  return folder;
}

void check_same_numbers(const std::vector<nlohmann::json>& a, const std::vector<nlohmann::json>& b) {
  REQUIRE(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i)
    for (const char* key :
         {"loss", "kl", "agreement", "student_loss", "teacher_loss", "grad_norm", "hidden_loss",
          "router_agreement", "routing_flips", "validation_loss", "validation_kl", "validation_teacher_loss",
          "validation_untrained_loss", "recovered"}) {
      CAPTURE(i, key);
      CHECK(a[i].value(key, nlohmann::json()) == b[i].value(key, nlohmann::json()));
    }
}

/// Everything that a live teacher can be compared by; part of it is shared with the student.
const std::vector<std::string> kLive{"distill.loss={kl: 0.6, reverse_kl: 0.2, jsd: 0.1, sft: 0.1}",
                                     "distill.hidden_l2=0.1", "distill.router_agreement=0.1",
                                     "distill.freeze=[embedding, \"model.layers.1.*\"]",
                                     "distill.curriculum.every=2"};

TEST_CASE("distillation on a device with memory of its own gives the bits of the CPU") {
  const bool cached = GENERATE(false, true);
  CAPTURE(cached);
  const test::TemporaryFolder folder;
  const auto run = [&](const char* name, const std::shared_ptr<Device>& device) {
    std::vector<std::string> overrides = kLive;
    if (cached)
      overrides = {"distill.cache.path=" + (folder / name / "kept").string(), "distill.cache.top_k=9",
                   "distill.loss={kl: 0.8, sft: 0.2}"};
    distill(folder / name, device, overrides);
  };
  run("here", make_cpu_device());
  run("there", make_pretended_gpu());
  check_same_numbers(read_metrics(folder / "here"), read_metrics(folder / "there"));
  CHECK(checkpoint_bytes(folder / "here", 6) == checkpoint_bytes(folder / "there", 6));
}

TEST_CASE("distillation in bf16 goes the way of f32, with and without kept teacher outputs") {
  const bool cached = GENERATE(false, true);
  CAPTURE(cached);
  const test::TemporaryFolder folder;
  std::vector<std::string> overrides = kLive;
  if (cached) overrides = {"distill.cache.top_k=9"};
  const auto run = [&](const char* name, const std::shared_ptr<Device>& device, const char* precision) {
    std::vector<std::string> all = overrides;
    all.push_back(fmt::format("precision={}", precision));
    if (cached) all.push_back("distill.cache.path=" + (folder / name / "kept").string());
    distill(folder / name, device, all);
    return read_metrics(folder / name);
  };
  const auto wide = run("wide", make_cpu_device(), "fp32"), low = run("low", make_pretended_gpu(), "bf16");
  REQUIRE(low.size() == wide.size());
  for (std::size_t i = 0; i < wide.size(); ++i) {
    CAPTURE(i);
    // Thousandths of a nat that are left of logits of order one.
    for (const char* key : {"loss", "kl", "hidden_loss", "router_agreement", "validation_kl"}) {
      CAPTURE(key);
      if (wide[i].contains(key))
        CHECK(low[i][key].get<double>() == Catch::Approx(wide[i][key].get<double>()).epsilon(0.1));
    }
    CHECK(low[i]["teacher_loss"].get<double>() ==
          Catch::Approx(wide[i]["teacher_loss"].get<double>()).epsilon(5e-3));
    // Of a sum of such remainders, and on weights that drift apart from step to step.
    CHECK(low[i]["grad_norm"].get<double>() ==
          Catch::Approx(wide[i]["grad_norm"].get<double>()).epsilon(0.15));
  }
  CHECK(low[0]["teacher_loss"] != wide[0]["teacher_loss"]);
}

TEST_CASE("a student that is its teacher has exactly zero loss and gradient in bf16 too") {
  const test::TemporaryFolder folder;
  const std::string loss = GENERATE("kl", "reverse_kl", "jsd");
  const int top_k = GENERATE(0, 7);
  distill(folder / "run", make_pretended_gpu(),
          {"distill.loss=" + loss, fmt::format("distill.top_k={}", top_k), "distill.hidden_l2=0.5",
           "distill.router_agreement=0.5", "farskip.mode=off", "precision=bf16"});
  for (const auto& line : read_metrics(folder / "run")) {
    CHECK(line["loss"] == 0.0);
    CHECK(line["grad_norm"] == 0.0);
    CHECK(line["agreement"] == 1.0);
  }
}

TEST_CASE("distillation in bf16 in two halves gives the bytes of one piece") {
  const bool cached = GENERATE(false, true);
  CAPTURE(cached);
  const test::TemporaryFolder folder;
  const auto run = [&](const char* name) {
    std::vector<std::string> overrides = kLive;
    if (cached)
      overrides = {"distill.cache.path=" + (folder / name / "kept").string(), "distill.cache.top_k=9"};
    overrides.emplace_back("precision=bf16");
    return distill(folder / name, make_pretended_gpu(), overrides);
  };
  run("whole");
  run("halves");  // its second half is a run of its own: as after a kill at step 4
  fs::remove_all(folder / "halves" / "checkpoints" / "step-6");
  CHECK(run("halves").step == 6);
  CHECK(checkpoint_bytes(folder / "whole", 6) == checkpoint_bytes(folder / "halves", 6));
  check_same_numbers(read_metrics(folder / "whole"), read_metrics(folder / "halves"));
}

TEST_CASE("a frozen tensor in bf16 is saved as it was read, goes on in a resumed run, and stays frozen") {
  const test::TemporaryFolder folder;
  const fs::path teacher = write_low_teacher(folder / "teacher");
  const auto run = [&](const char* name, std::vector<std::string> more) {
    more.insert(more.end(), {"precision=bf16", "distill.teacher=" + teacher.string()});
    return distill(folder / name, make_pretended_gpu(), more);
  };
  const std::vector<std::string> frozen{"distill.freeze=[head, experts]"};
  run("whole", frozen);
  const SafetensorsFile saved(test::checkpoint_folder(folder / "whole", 6) / "model.safetensors");
  const SafetensorsFile read(teacher / "model.safetensors");
  for (const std::string name : {"lm_head.weight", "model.layers.2.mlp.experts.3.up_proj.weight"}) {
    CAPTURE(name);
    CHECK(saved.find(name).dtype == DType::bf16);
    CHECK(test::same_bits(saved.read(name).view(), read.read(name).view()));
  }
  CHECK(saved.find("model.layers.2.mlp.gate.weight").dtype == DType::f32);

  run("halves", frozen);
  fs::remove_all(test::checkpoint_folder(folder / "halves", 6));
  CHECK(run("halves", frozen).step == 6);
  CHECK(checkpoint_bytes(folder / "whole", 6) == checkpoint_bytes(folder / "halves", 6));

  // Moments of what was frozen are nowhere; what was trained is no longer the teacher's.
  fs::remove_all(test::checkpoint_folder(folder / "halves", 6));
  CHECK_THROWS_WITH(run("halves", {"distill.freeze=[head]"}), ContainsSubstring("more frozen parameters"));
  CHECK_THROWS_WITH(run("halves", {"distill.freeze=[head, experts, attention]"}),
                    ContainsSubstring("the checkpoint has trained it"));
}

}  // namespace
}  // namespace farskip
