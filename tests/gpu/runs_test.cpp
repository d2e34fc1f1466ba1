// SPDX-License-Identifier: Apache-2.0
// Runs of training and of distillation on a GPU, from the configuration to the checkpoint, against those on
// the CPU. Without a GPU they are skipped.
#include <cmath>
#include <nlohmann/json.hpp>

#include "support/catch.h"
#include "support/run_files.h"
#include "support/skip.h"
#include "support/small_run.h"

namespace farskip {
namespace {

void need_gpu() {
  if (const std::string why = why_no_cuda_device(); !why.empty()) test::skip(why);
}

/// Lines of metrics.jsonl. "DIR" in an override is the run directory.
std::vector<nlohmann::json> run(test::SmallRunKind kind, const fs::path& run_dir, const char* device,
                                const char* precision, std::vector<std::string> overrides) {
  for (std::string& o : overrides)
    if (const auto at = o.find("DIR"); at != std::string::npos) o.replace(at, 3, run_dir.string());
  overrides.insert(
      overrides.begin(),
      {"train.steps=8", "train.validate_every=4", "train.optimizer.weight_decay=0", "farskip.mode=full",
       fmt::format("device={}", device), fmt::format("precision={}", precision)});
  test::run_small(test::make_small_run(run_dir, kind, overrides));
  return test::read_metrics(run_dir);
}

std::vector<nlohmann::json> distill(const fs::path& run_dir, const char* device, const char* precision,
                                    const std::vector<std::string>& overrides) {
  return run(test::SmallRunKind::distill, run_dir, device, precision, overrides);
}
std::vector<nlohmann::json> pretrain(const fs::path& run_dir, const char* device, const char* precision) {
  return run(test::SmallRunKind::train, run_dir, device, precision, {"train.aux_loss=0.01"});
}

/// The last two with what is kept of the teacher.
const std::vector<std::vector<std::string>> kLosses{
    {"distill.loss=kl"},
    {"distill.loss={kl: 0.5, reverse_kl: 0.2, jsd: 0.2, sft: 0.1}", "distill.temperature=1.5",
     "distill.hidden_l2=0.1", "distill.router_agreement=0.1"},
    {"distill.loss={kl: 0.5, jsd: 0.5}", "distill.top_k=9", "distill.freeze=[embedding, head]"},
    {"distill.loss=kl", "distill.cache.path=DIR/kept", "distill.cache.top_k=9"},
    {"distill.loss={kl: 0.9, sft: 0.1}", "distill.cache.path=DIR/kept", "distill.cache.top_k=160",
     "distill.curriculum.every=3"}};

void compare(const std::vector<nlohmann::json>& cpu, const std::vector<nlohmann::json>& gpu, double loss,
             double norm) {
  REQUIRE(cpu.size() == gpu.size());
  for (std::size_t i = 0; i < cpu.size(); ++i)
    for (const char* key :
         {"loss", "kl", "student_loss", "teacher_loss", "hidden_loss", "router_agreement", "validation_loss",
          "validation_kl", "validation_teacher_loss", "validation_untrained_loss", "grad_norm"}) {
      CAPTURE(i, key);
      REQUIRE(cpu[i].contains(key) == gpu[i].contains(key));
      if (!cpu[i].contains(key)) continue;
      const double bound = std::string_view(key) == "grad_norm" ? norm : loss;
      CHECK(gpu[i][key].get<double>() == Catch::Approx(cpu[i][key].get<double>()).epsilon(bound));
    }
}

TEST_CASE("distillation on a GPU in fp32 follows the losses of the CPU") {
  need_gpu();
  for (const auto& overrides : kLosses) {
    CAPTURE(fmt::format("{}", fmt::join(overrides, " ")));
    const test::TemporaryFolder folder;
    compare(distill(folder / "cpu", "cpu", "fp32", overrides),
            distill(folder / "gpu", "cuda", "fp32", overrides), 1e-2, 2e-2);
  }
}

TEST_CASE("distillation on a GPU in bf16 stays within rounding of the CPU in fp32") {
  need_gpu();
  for (const auto& overrides : kLosses) {
    CAPTURE(fmt::format("{}", fmt::join(overrides, " ")));
    const test::TemporaryFolder folder;
    compare(distill(folder / "cpu", "cpu", "fp32", overrides),
            distill(folder / "gpu", "cuda", "bf16", overrides), 0.12, 0.15);
  }
}

TEST_CASE("on a GPU a student that is its teacher has exactly zero loss and gradient") {
  need_gpu();
  for (const char* precision : {"fp32", "bf16"})
    for (const char* loss : {"kl", "reverse_kl", "jsd"})
      for (const char* top_k : {"0", "7"}) {
        CAPTURE(precision, loss, top_k);
        const test::TemporaryFolder folder;
        for (const auto& line :
             distill(folder / "run", "cuda", precision,
                     {fmt::format("distill.loss={}", loss), fmt::format("distill.top_k={}", top_k),
                      "distill.temperature=2", "distill.hidden_l2=0.5", "distill.router_agreement=0.5",
                      "farskip.mode=off"})) {
          CHECK(line["loss"] == 0.0);
          CHECK(line["grad_norm"] == 0.0);
          CHECK(line["agreement"] == 1.0);
        }
      }
}

TEST_CASE("training on a GPU follows the CPU, and in two halves gives the bytes of one piece") {
  need_gpu();
  const test::TemporaryFolder folder;
  const auto cpu = pretrain(folder / "cpu", "cpu", "fp32");
  compare(cpu, pretrain(folder / "fp32", "cuda", "fp32"), 2e-4, 2e-3);
  compare(cpu, pretrain(folder / "whole", "cuda", "bf16"), 2e-2, 0.1);
  pretrain(folder / "halves", "cuda", "bf16");
  fs::remove_all(folder / "halves" / "checkpoints" / "step-8");
  pretrain(folder / "halves", "cuda", "bf16");
  for (const char* name : {"model.safetensors", "optimizer.safetensors"}) {
    CAPTURE(name);
    CHECK(read_text_file(folder / "whole" / "checkpoints" / "step-8" / name) ==
          read_text_file(folder / "halves" / "checkpoints" / "step-8" / name));
  }
}

TEST_CASE("distillation on a GPU in two halves gives the bytes of one piece") {
  need_gpu();
  for (const auto& overrides : kLosses) {
    CAPTURE(fmt::format("{}", fmt::join(overrides, " ")));
    const test::TemporaryFolder folder;
    distill(folder / "whole", "cuda", "bf16", overrides);
    distill(folder / "halves", "cuda", "bf16", overrides);
    fs::remove_all(folder / "halves" / "checkpoints" / "step-8");
    distill(folder / "halves", "cuda", "bf16", overrides);
    for (const char* name : {"model.safetensors", "optimizer.safetensors"}) {
      CAPTURE(name);
      CHECK(read_text_file(folder / "whole" / "checkpoints" / "step-8" / name) ==
            read_text_file(folder / "halves" / "checkpoints" / "step-8" / name));
    }
  }
}

}  // namespace
}  // namespace farskip
