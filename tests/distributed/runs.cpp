// SPDX-License-Identifier: Apache-2.0
#include "runs.h"

#include <nlohmann/json.hpp>

#include "support/catch.h"
#include "support/run_files.h"

namespace farskip::test {

Run make_run(const fs::path& run_dir, const Layout& layout, std::int64_t steps,
             const std::vector<std::string>& overrides, const std::string& fixture) {
  const fs::path model = fixtures() / fixture, data = fixtures() / "qwen3_moe";
  ErrorList errors;
  ConfigNode tree = parse_yaml_text(fmt::format(R"(
run_dir: {0}
device: cpu
init: {{from: {1}}}
farskip: {{mode: full}}
parallel: {{expert: {2}, tensor: {3}, zero: {4}}}
data: {{tokens: [{5}/tokens], validation: [{5}/tokens]}}
train:
  steps: {6}
  sequence_length: 16
  global_batch: 16
  micro_batch: 2
  learning_rate: {{schedule: constant, peak: 1.0e-3, warmup_steps: 2}}
  validate_every: 3
checkpoint: {{every: 3, keep: 10}}
)",
                                                run_dir.string(), model.string(), layout.expert,
                                                layout.tensor, layout.zero, data.string(), steps),
                                    "test", errors);
  for (const std::string& o : overrides) apply_override(tree, o, errors);
  Run run{read_run_config(tree, errors), read_hub_config(model), layout.ranks()};
  errors.throw_if_any();
  return run;
}

TrainResult train_run(const Run& run) {
  const std::vector<TrainResult> results = on_ranks(run.ranks, [&](const Communicator& world) {
    Heartbeat heartbeat;
    return train(run.config, run.model, world, heartbeat, kQuiet);
  });
  for (const TrainResult& r : results)
    if (r.step != results[0].step || r.loss != results[0].loss || r.stopped_early != results[0].stopped_early)
      throw std::runtime_error("ranks end in different ways");
  return results[0];
}

void check_metrics(const fs::path& got_dir, const fs::path& want_dir, double tolerance) {
  const auto got = read_metrics(got_dir), want = read_metrics(want_dir);
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    INFO("step " << i + 1);
    CHECK(got[i]["step"] == want[i]["step"]);
    CHECK(got[i]["tokens"] == want[i]["tokens"]);
    CHECK(got[i]["learning_rate"] == want[i]["learning_rate"]);
    for (const char* key : {"loss", "grad_norm", "aux_loss", "validation_loss"}) {
      REQUIRE(got[i].contains(key) == want[i].contains(key));
      if (!want[i].contains(key)) continue;
      INFO(key);
      const double a = got[i][key].get<double>(), b = want[i][key].get<double>();
      CHECK((tolerance == 0 ? a == b : a == Catch::Approx(b).epsilon(tolerance)));
    }
  }
}

double checkpoint_difference(const fs::path& got, const fs::path& want) {
  const Checkpoint a = open_checkpoint(got), b = open_checkpoint(want);
  if (a.manifest().tensors.size() != b.manifest().tensors.size()) return 1e30;
  double worst = 0;
  for (const auto& [name, tensor] : b.manifest().tensors) {
    const HostTensor x = convert_dtype(a.read(name), DType::f32), y = convert_dtype(b.read(name), DType::f32);
    double difference = 0, largest = 1e-30;
    for (std::size_t i = 0; i < y.values<float>().size(); ++i) {
      difference = std::max(difference, std::abs(static_cast<double>(x.values<float>()[i]) -
                                                 static_cast<double>(y.values<float>()[i])));
      largest = std::max(largest, std::abs(static_cast<double>(y.values<float>()[i])));
    }
    worst = std::max(worst, difference / largest);
  }
  return worst;
}

}  // namespace farskip::test
