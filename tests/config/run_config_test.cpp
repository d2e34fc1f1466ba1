// SPDX-License-Identifier: Apache-2.0
// The schema of a run: defaults, values, overrides, the resolved file.
#include "farskip/config/run_config.h"

#include "farskip/base/file.h"
#include "farskip/config/reader.h"
#include "support/catch.h"
#include "support/support.h"

using namespace farskip;

namespace {

RunConfig load(const std::string& text, const std::vector<std::string>& overrides = {},
               LoadOptions options = {}) {
  const test::TemporaryFolder folder;
  write_text_file(folder / "run.yaml", text);
  RunConfig config = load_run_config(folder / "run.yaml", overrides, options);
  CHECK(config.file == (folder / "run.yaml").string());
  config.file.clear();  // which no two of them share
  config.named_by_file = false;
  return config;
}

// The example of the interface, every section in it.
const std::string example = R"(name: example
run_dir: runs/example
seed: 1
device: auto
precision: fp32
deterministic: true
model:
  family: deepseek_v2
  hidden_size: 256
  num_hidden_layers: 6
  rope_scaling: {type: yarn, factor: 40, odd: "a, b"}
  layer_types: [full, "0", [1, 2]]
  pad_token_id: null
farskip: {mode: full, layers: all}
parallel: {expert: 2, zero: 1, timeout: 90}
schedule: {overlap: true, micro_batches_in_flight: 1, recompute: none, routed_rows_memory: auto}
data:
  tokens: [path/prefix]
  tokenizer: tokenizer.json
  validation: [path/prefix]
  weights: [1.0]
  document_mask: false
  shuffle: true
train:
  steps: 1000
  sequence_length: 256
  global_batch: 32
  micro_batch: 8
  optimizer: {name: adamw, betas: [0.9, 0.95], eps: 1.0e-8, weight_decay: 0.1, clip_grad_norm: 1.0}
  learning_rate: {schedule: cosine, peak: 1.0e-3, final: 1.0e-4, warmup_steps: 100}
  aux_loss: 0.001
  router_bias_update: 0.0
  validate_every: 100
distill:
  teacher: models/teacher
  loss: kl
  hidden_l2: 0.0
  temperature: 1.0
  top_k: 0
  freeze: [embedding, head]
  early_stopping: {every: 1000, patience: 20, delta: 0.02}
checkpoint: {every: 200, keep: 3, resume: auto, async: true}
)";

}  // namespace

TEST_CASE("the smallest configuration has every default") {
  const RunConfig config = load("model: {family: olmoe}\n");
  RunConfig expected;
  expected.name = "run";
  expected.run_dir = "runs/run";
  expected.model = parse_yaml_text("model: {family: olmoe}", "f").children[0];
  expected.farskip = FarSkipConfig{};
  expected.train.learning_rate.decay_steps = 200;
  CHECK(config == expected);
  CHECK(config.train.optimizer.eps == 1e-8);
  CHECK(config.schedule.routed_rows_memory == std::nullopt);
  CHECK(config.schedule.expert_chunks == 1);
  CHECK(load("model: {family: olmoe}\nschedule: {expert_chunks: auto}\n").schedule.expert_chunks ==
        std::nullopt);
}

TEST_CASE("the example of the contract is read, every value of it") {
  const RunConfig config = load(example, {}, {.needs = {.model = true, .data = true, .distill = true}});
  CHECK(config.name == "example");
  CHECK(config.parallel == ParallelConfig{.expert = 2, .zero = 1, .timeout = 90});
  CHECK(config.data.tokens == std::vector<std::string>{"path/prefix"});
  CHECK(config.data.weights == std::vector<double>{1.0});
  CHECK(config.train.micro_batch == 8);
  CHECK(config.train.learning_rate.final_rate == 1e-4);
  CHECK(config.train.learning_rate.warmup_steps == 100);
  REQUIRE(config.distill);
  CHECK(config.distill->freeze == std::vector<std::string>{"embedding", "head"});
  CHECK(config.distill->early_stopping == EarlyStoppingConfig{});
  CHECK(config.model.find("family")->text == "deepseek_v2");
}

TEST_CASE("the resolved configuration loads to the same one") {
  const std::vector<std::string> variations = {
      example,
      "model: {family: olmoe}\n",
      "name: \"true\"\nrun_dir: \"runs/a b: #é\"\ninit: {from: \"null\"}\n",
      "init: {from: m}\nfarskip: {mode: mlp, layers: 2-5}\ntrain: {learning_rate: {schedule: wsd, "
      "decay_steps: 7}}\n",
      "model: {}\nfarskip: {mode: attention, layers: [3, 0]}\nschedule: {recompute: experts, "
      "routed_rows_memory: 1.5GiB, expert_chunks: auto}\n",
      "model: {}\nschedule: {recompute: auto, memory: 76GiB}\ntrain: {optimizer: {moments: bf16}}\n",
      "model: {x: \"0\"}\ndata: {text: [a, 'b, c', \"010\"], tokenizer: t, weights: [0.1, "
      "0.30000000000000004, 1e-3]}\n",
      "distill: {teacher: t, loss: jsd, temperature: 2.5}\nmodel: {a: 1}\n",
      "distill: {teacher: t, loss: {kl: 0.5, sft: 0.25}, hidden_l2: 0.1, hidden_layers: [3, 1], "
      "teacher_layers: [2, 0], router_agreement: 2, freeze: [head, \"model.layers.0.*\"], curriculum: "
      "{every: 7}, "
      "early_stopping: {metric: validation_kl}}\ndata: {validation: [v]}\nmodel: {a: 1}\n",
      "distill: {teacher: t, hidden_loss: {kind: normalised, weight: 0.3, anneal: 0.25}}\n",
      "distill: {teacher: t, loss: {kl: 2}, cache: {path: c, top_k: 12}}\nmodel: {a: 1}\n",
      "distill: {teacher: t, fold: {tokens: p, sequences: 12}, local_stage: {share: 0.15}}\n",
  };
  for (const std::string& text : variations) {
    const RunConfig config = load(text);
    const std::string yaml = resolved_yaml(config, "0.1.0", "abc\ninjected: 1", "host é", 4);
    INFO(yaml);
    CHECK(load(yaml) == config);
    CHECK_THAT(yaml, ContainsSubstring(
                         "# farskip: 0.1.0\n# commit: abc injected: 1\n# machine: host é\n# ranks: 4\n"));
  }
}

TEST_CASE("a resolved configuration is complete: its own tree gives every key a value") {
  const RunConfig config = load(example);
  ErrorList errors;
  read_run_config(run_config_tree(config), errors);
  REQUIRE(errors.empty());
  const ConfigNode tree = run_config_tree(config);
  for (const KnownKey& known : errors.known_keys()) {
    if (known.path == "init" || known.path == "init.from") continue;  // excluded by model
    if (known.path.rfind("distill.cache.", 0) == 0) continue;         // the example has none
    if (known.path.rfind("distill.fold.", 0) == 0) continue;          // nor that
    if (known.path == "distill.hidden_l2") continue;                  // short for distill.hidden_loss
    const ConfigNode* node = &tree;
    std::string rest = known.path;
    while (!rest.empty() && node != nullptr) {
      const auto dot = rest.find('.');
      node = node->find(rest.substr(0, dot));
      rest = dot == std::string::npos ? "" : rest.substr(dot + 1);
    }
    INFO(known.path);
    CHECK(node != nullptr);
  }
}

TEST_CASE("overrides win over the file and meet the same checks") {
  const RunConfig config =
      load(example, {"train.steps=2000", "farskip.mode=off", "data.tokens=[a, b]", "data.weights=[1, 3]",
                     "schedule.routed_rows_memory=512MiB", "name=x"});
  CHECK(config.train.steps == 2000);
  CHECK(config.farskip->mode == FarSkipMode::off);
  CHECK(config.data.weights == std::vector<double>{1, 3});
  CHECK(config.schedule.routed_rows_memory == std::uint64_t{512} << 20);
  CHECK(config.name == "x");
  CHECK(config.run_dir == "runs/example");
  CHECK_THROWS_WITH(
      load(example, {"train.stesp=20", "seed=x"}),
      ContainsSubstring(
          "command line: train.stesp=20: train.stesp: unknown key; did you mean train.steps?") &&
          ContainsSubstring("command line: seed=x: seed: \"x\" is not an integer"));
  CHECK_THROWS_WITH(load(example, {"seed=1", "seed=2"}),
                    ContainsSubstring("seed: set twice on the command line"));
}

TEST_CASE("a key and its value in two words are one mistake, with its cure") {
  CHECK_THROWS_WITH(load(example, {"train.steps", "5", "seed=2"}),
                    "command line: train.steps 5: write train.steps=5");
  CHECK_THROWS_WITH(load(example, {"seed", "5"}), "command line: seed 5: write seed=5");
  for (const auto& words : std::vector<std::vector<std::string>>{
           {"train.steps"}, {"train.steps", "seed=5"}, {"a.yaml", "b.yaml"}, {"a/b", "5"}})
    CHECK_THROWS_WITH(load(example, words), ContainsSubstring("not of the form key.path=value"));
}

TEST_CASE("a run made shorter on the command line keeps a schedule that fits, and says so") {
  std::vector<std::string> notices;
  const RunConfig config = load(example, {"train.steps=20"}, {.notices = &notices});
  CHECK(config.train.learning_rate.warmup_steps == 20);
  REQUIRE(notices.size() == 1);
  CHECK_THAT(notices[0], ContainsSubstring("train.learning_rate.warmup_steps: cut from 100 to 20"));
  CHECK(load(resolved_yaml(config, "", "", "")) == config);
  CHECK_THROWS_WITH(load(example, {"train.steps=20", "train.learning_rate.warmup_steps=30"}),
                    ContainsSubstring("30 does not fit into train.steps; allowed: at most 20"));
}

TEST_CASE("without a farskip section the wiring is full, or the checkpoint's own") {
  CHECK(load("model: {}\n").farskip == FarSkipConfig{});
  CHECK(load("init: {from: m}\n").farskip == std::nullopt);
  CHECK(load("init: {from: m}\nfarskip: {}\n").farskip == FarSkipConfig{});
  CHECK(load("init: {from: m}\ndistill: {teacher: t}\n").farskip == FarSkipConfig{});
}

TEST_CASE("every wiring is read, written and named") {
  for (const auto& choice : farskip_mode_names) {
    const bool delays = choice.value == FarSkipMode::delay;
    const FarSkipConfig want{choice.value, {LayerSelection::Kind::range, 1, 2, {}}, delays ? 8 : 1};
    const std::string mode(choice.name), delay = delays ? ", delay: 8" : "";
    const RunConfig config = load("model: {}\nfarskip: {mode: " + mode + ", layers: 1-2" + delay + "}\n");
    CHECK(config.farskip == want);
    CHECK(load(resolved_yaml(config, "", "", "")).farskip == want);
    CHECK(wiring_name(want) == (delays ? "delay:8" : mode));
    CHECK(parse_wiring_name(wiring_name(want)) == FarSkipConfig{choice.value, {}, want.delay});
  }
  for (const char* text : {"", ":", "on", "delay", "delay:", "delay:0", "delay:9", "delay:02", "delay:2:2",
                           "delay: 2", "ladder:", "ladder:1", "off:1"}) {
    INFO(text);
    CHECK(parse_wiring_name(text) == std::nullopt);
  }
}

TEST_CASE("a file without a name gives its own to the run, and is refused where it is none") {
  const test::TemporaryFolder folder;
  const auto load_as = [&](const std::string& file, const std::vector<std::string>& overrides = {}) {
    write_text_file(folder / file, "model: {}\n");
    return load_run_config(folder / file, overrides);
  };
  CHECK(load_as("lr-0.1.yaml").name == "lr-0.1");
  CHECK(load_as("lr-0.1.yaml").named_by_file);
  CHECK_FALSE(load_as("a.yaml", {"name=b"}).named_by_file);
  CHECK_FALSE(load_as("a.yaml", {"run_dir=b"}).named_by_file);
  for (const char* file : {"lr small.yaml", "lr large.yaml", ".yaml", "é.yaml", "\xff.yaml"}) {
    INFO(file);
    CHECK_THROWS_WITH(load_as(file),
                      ContainsSubstring("name: \"") &&
                          ContainsSubstring("\", the name of this file without its ending, cannot "
                                            "name a folder; allowed: letters, digits, _ - and ."));
    CHECK(load_as(file, {"name=lr"}).run_dir == "runs/lr");
    CHECK(load_as(file, {"run_dir=elsewhere"}).run_dir == "elsewhere");
  }
}

TEST_CASE("a resolved configuration says from which file it was made") {
  RunConfig config = load(example);
  config.file = "configs/a b.yaml";
  const std::string yaml = resolved_yaml(config, "", "", "");
  CHECK(resolved_from(yaml) == "configs/a b.yaml");
  CHECK(resolved_from("# no such line\nname: x\n").empty());
}

TEST_CASE("commands say what they need") {
  CHECK_NOTHROW(load("seed: 1\n", {}, {.needs = {.model = false}}));
  CHECK_THROWS_WITH(load("seed: 1\n"), ContainsSubstring("model: this key is missing"));
  CHECK_THROWS_WITH(load("model: {}\n", {}, {.needs = {.data = true}}),
                    ContainsSubstring("data.tokens: no data is named"));
  CHECK_THROWS_WITH(load("model: {}\n", {}, {.needs = {.distill = true}}),
                    ContainsSubstring("distill.teacher: this key is missing"));
  CHECK_NOTHROW(load("distill: {teacher: t}\n", {}, {.needs = {.distill = true}}));
}

TEST_CASE("mistakes of the model section come with the others") {
  const LoadOptions options{.check_model = [](const ConfigNode& model, ErrorList& errors) {
    Reader reader(model, errors, "model");
    reader.integer("hidden_size", {.min = 1});
    reader.finish();
  }};
  CHECK_THROWS_WITH(
      load("model: {hidden_sise: 1}\nsteps: 5\n", {}, options),
      ContainsSubstring(":1:8: model.hidden_size: this key is missing") &&
          ContainsSubstring(":1:9: model.hidden_sise: unknown key; did you mean model.hidden_size?") &&
          ContainsSubstring(":2:1: steps: unknown key; did you mean train.steps?"));
}

TEST_CASE("configuration mistakes leave with 64, a missing file with 66") {
  try {
    load("model: 5\n");
    FAIL("accepted");
  } catch (const Error& error) {
    CHECK(static_cast<int>(error.code()) == 64);
  }
  try {
    load_run_config("/nowhere/run.yaml", {});
    FAIL("accepted");
  } catch (const Error& error) {
    CHECK(static_cast<int>(error.code()) == 66);
  }
}

TEST_CASE("selections of layers know their layers") {
  const LayerSelection list = load("model: {}\nfarskip: {layers: [5, 0]}\n").farskip->layers;
  CHECK((list.contains(0) && list.contains(5) && !list.contains(3)));
  const LayerSelection range = load("model: {}\nfarskip: {layers: 2-4}\n").farskip->layers;
  CHECK((range.contains(2) && range.contains(4) && !range.contains(1) && !range.contains(5)));
  CHECK(LayerSelection{}.contains(1000));
}
