// SPDX-License-Identifier: Apache-2.0
// A table of configurations with mistakes, and what the message must say: place, key, value, what is allowed.
#include <vector>

#include "farskip/base/file.h"
#include "farskip/config/run_config.h"
#include "support/catch.h"
#include "support/support.h"

using namespace farskip;

namespace {

struct BadConfig {
  const char* what;
  const char* text;  // "model: {}\n" comes in front as line 1 where `whole` is false
  std::vector<const char*> fragments;
  bool whole = false;
};

const std::vector<BadConfig> table = {
    // Keys.
    {"misspelt section", "trian: {}\n", {"c.yaml:2:1: trian: unknown key; did you mean train?"}},
    {"misspelt key",
     "train:\n  step: 5\n",
     {"c.yaml:3:3: train.step: unknown key; did you mean train.steps?"}},
    {"misspelt nested key",
     "train: {optimizer: {beta: [0.9, 0.9]}}\n",
     {"c.yaml:2:21: train.optimizer.beta", "did you mean train.optimizer.betas?"}},
    {"hyphen for underscore",
     "train: {micro-batch: 2}\n",
     {"c.yaml:2:9:", "did you mean train.micro_batch?"}},
    {"key of another section",
     "learning_rate: {peak: 1}\n",
     {"c.yaml:2:1: learning_rate: unknown key; did you mean train.learning_rate?"}},
    {"key a level too high", "steps: 5\n", {"c.yaml:2:1: steps: unknown key; did you mean train.steps?"}},
    {"key a level too deep",
     "train: {seed: 5}\n",
     {"c.yaml:2:9: train.seed: unknown key; did you mean seed?"}},
    {"name of another tool",
     "train: {lr: 1e-3}\n",
     {"c.yaml:2:9: train.lr: unknown key", "the nearest valid key is", "keys here: steps, sequence_length"}},
    {"merge key", "train: {<<: {steps: 3}}\n", {"c.yaml:2:9: train.<<: unknown key"}},
    {"empty name of a key", "\"\": 5\n", {"c.yaml:2:1: ", "unknown key"}},
    {"duplicate key",
     "seed: 1\nseed: 2\n",
     {"c.yaml:3:1: seed: duplicate key; first given in line 2, column 1"}},
    {"duplicate section",
     "train: {steps: 1}\ntrain: {steps: 2}\n",
     {"c.yaml:3:1: train: duplicate key; first given in line 2, column 1"}},
    {"duplicate nested key", "train: {steps: 1, steps: 1}\n", {"c.yaml:2:19: train.steps: duplicate key"}},
    // Paths that a shell would expand.
    {"home folder",
     "run_dir: ~/x\n",
     {"c.yaml:2:10: run_dir: \"~/x\" begins with ~, which a shell expands", "./~/x", "allowed: path"}},
    {"another user's home", "init: {from: ~bob/m}\n", {"init.from: \"~bob/m\" begins with ~"}, true},
    {"variable in a list",
     "data: {tokens: [a, $DATA/b]}\n",
     {"data.tokens[1]: \"$DATA/b\" names a variable"}},
    {"variable in braces",
     "data: {validation: [\"${DATA}/c\"]}\n",
     {"data.validation[0]: \"${DATA}/c\" names a variable"}},
    {"variable in text", "data: {text: [x/$A], tokenizer: t}\n", {"data.text[0]: \"x/$A\" names a variable"}},
    {"variable in a tokenizer", "data: {tokenizer: $_t}\n", {"data.tokenizer: \"$_t\" names a variable"}},
    {"variable in a teacher", "distill: {teacher: $T}\n", {"distill.teacher: \"$T\" names a variable"}},
    {"variable in a cache",
     "distill: {teacher: t, cache: {path: c/$T}}\n",
     {"distill.cache.path: \"c/$T\" names a variable"}},
    // Types.
    {"text for an integer",
     "train: {steps: many}\n",
     {"c.yaml:2:16: train.steps: \"many\" is not an integer; allowed: integer, 1 to 1000000000000"}},
    {"quoted integer", "seed: \"1\"\n", {"c.yaml:2:7: seed: \"1\" is text; write it without quotes"}},
    {"octal", "seed: 010\n", {"c.yaml:2:7: seed: \"010\" has a leading zero", "write 10"}},
    {"hexadecimal", "seed: 0x10\n", {"c.yaml:2:7: seed:", "hexadecimal"}},
    {"underscores", "train: {steps: 1_000}\n", {"c.yaml:2:16:", "write 1000"}},
    {"exponent in an integer", "train: {steps: 1e3}\n", {"c.yaml:2:16:", "is not an integer; write 1000"}},
    {"fraction in an integer", "train: {steps: 10.5}\n", {"c.yaml:2:16:", "is not an integer"}},
    {"yes for true",
     "deterministic: yes\n",
     {"c.yaml:2:16: deterministic: \"yes\" is not true or false; write true"}},
    {"on for true", "schedule: {overlap: on}\n", {"c.yaml:2:21: schedule.overlap", "write true"}},
    {"1 for true", "data: {shuffle: 1}\n", {"c.yaml:2:17: data.shuffle", "write true"}},
    {"capital false", "checkpoint: {async: False}\n", {"c.yaml:2:21: checkpoint.async", "write false"}},
    {"not a number", "train: {aux_loss: .nan}\n", {"c.yaml:2:19: train.aux_loss: \".nan\" is not finite"}},
    {"infinite",
     "train: {learning_rate: {peak: .inf}}\n",
     {"c.yaml:2:31: train.learning_rate.peak", "is not finite"}},
    {"too large a double", "train: {aux_loss: 1e400}\n", {"c.yaml:2:19:", "beyond the range of a double"}},
    {"decimal comma", "train: {aux_loss: \"0,1\"}\n", {"c.yaml:2:19:", "\"0,1\" is not a number"}},
    {"too large an integer",
     "seed: 9223372036854775808\n",
     {"c.yaml:2:7: seed:", "does not fit into 64 bits"}},
    {"scalar for a list",
     "data: {tokens: a}\n",
     {"c.yaml:2:16: data.tokens: \"a\" is no list; allowed: list: path"}},
    {"map for a list", "data: {tokens: {a: b}}\n", {"c.yaml:2:16: data.tokens: a map stands here"}},
    {"scalar for a map", "train: 5\n", {"c.yaml:2:8: train: an integer stands here; allowed: a map"}},
    {"list for a map", "parallel: [2]\n", {"c.yaml:2:11: parallel: a list stands here"}},
    {"map for a scalar", "name: {a: b}\n", {"c.yaml:2:7: name: a map stands here; allowed: text"}},
    {"wrong item of a list",
     "data: {tokens: [a, [b]]}\n",
     {"c.yaml:2:20: data.tokens[1]: a list stands here; allowed: path"}},
    {"no value", "train: {steps: }\n", {"c.yaml:2:9: train.steps: there is no value"}},
    {"null for a value", "seed: null\n", {"c.yaml:2:1: seed: there is no value"}},
    {"empty text", "run_dir: \"\"\n", {"c.yaml:2:10: run_dir: is empty"}},
    {"control characters",
     "run_dir: \"a\\0b\"\n",
     {"c.yaml:2:10: run_dir: \"a\\x00b\" contains control characters"}},
    // Ranges and names.
    {"unknown device",
     "device: gpu\n",
     {"c.yaml:2:9: device: \"gpu\" is not known; allowed: auto, cpu, cuda"}},
    {"unknown precision", "precision: fp16\n", {"c.yaml:2:12: precision:", "allowed: fp32, bf16"}},
    {"unknown mode",
     "farskip: {mode: on}\n",
     {"c.yaml:2:17: farskip.mode: \"on\"",
      "allowed: off, attention, mlp, full, ladder, parallel, shortcut, delay"}},
    {"delay without its number",
     "farskip: {mode: delay}\n",
     {"farskip.delay: this key is missing, which mode delay needs; allowed: 1 to 8"}},
    {"delay of nothing", "farskip: {mode: delay, delay: 0}\n", {"farskip.delay: 0", "1 to 8"}},
    {"too long a delay", "farskip: {mode: delay, delay: 9}\n", {"farskip.delay: 9", "1 to 8"}},
    {"a delay in another mode",
     "farskip: {mode: ladder, delay: 2}\n",
     {"c.yaml:2:32: farskip.delay: 2 is for mode delay, and the mode is ladder; leave it out"}},
    {"two modes", "farskip: {mode: \"attention, mlp\"}\n", {"c.yaml:2:17: farskip.mode", "is not known"}},
    {"unknown recompute", "schedule: {recompute: all}\n", {"allowed: none, attention, experts, full"}},
    {"unknown optimizer",
     "train: {optimizer: {name: sgd}}\n",
     {"c.yaml:2:27: train.optimizer.name", "allowed: adamw, muon"}},
    {"unknown schedule", "train: {learning_rate: {schedule: linear}}\n", {"allowed: constant, cosine, wsd"}},
    {"unknown loss", "distill: {teacher: t, loss: ce}\n", {"allowed: kl, reverse_kl, jsd, sft"}},
    {"unknown group",
     "distill: {teacher: t, freeze: [embedding, heads]}\n",
     {"c.yaml:2:43: distill.freeze[1]: \"heads\" is not known"}},
    {"unknown resume", "checkpoint: {resume: yes}\n", {"allowed: auto, never, required"}},
    {"negative seed", "seed: -1\n", {"c.yaml:2:7: seed: -1 is out of range; allowed: integer >= 0"}},
    {"no experts' ranks", "parallel: {expert: 0}\n", {"c.yaml:2:20: parallel.expert: 0 is out of range"}},
    {"ZeRO-4",
     "parallel: {zero: 4}\n",
     {"c.yaml:2:18: parallel.zero: 4 is out of range; allowed: integer, 0 to 3"}},
    {"a timeout in the past",
     "parallel: {timeout: -1}\n",
     {"c.yaml:2:21: parallel.timeout: -1 is out of range; allowed: integer, 0 to 1000000"}},
    {"no steps", "train: {steps: 0}\n", {"c.yaml:2:16: train.steps: 0 is out of range"}},
    {"peak of zero",
     "train: {learning_rate: {peak: 0}}\n",
     {"train.learning_rate.peak: 0 is out of range; allowed: number > 0 and <= 100"}},
    {"beta of one",
     "train: {optimizer: {betas: [0.9, 1]}}\n",
     {"c.yaml:2:34: train.optimizer.betas[1]: 1 is out of range; allowed: number >= 0 and < 1"}},
    {"one beta",
     "train: {optimizer: {betas: [0.9]}}\n",
     {"c.yaml:2:28: train.optimizer.betas: 1 values; allowed: list of 2"}},
    {"size without unit",
     "schedule: {routed_rows_memory: 512}\n",
     {"c.yaml:2:32: schedule.routed_rows_memory: \"512\" has no unit; allowed: auto, a size such as 512MiB"}},
    {"chunks of no kind",
     "schedule: {expert_chunks: some}\n",
     {"schedule.expert_chunks: \"some\" is not an integer; allowed: auto, integer, 1 to 16"}},
    {"size of an unknown unit", "schedule: {routed_rows_memory: 512mb}\n", {"unknown unit \"mb\""}},
    {"choice by a size that is not given", "schedule: {recompute: auto}\n", {"auto needs schedule.memory"}},
    {"size that nothing reads",
     "schedule: {memory: 76GiB}\n",
     {"c.yaml:2:20: schedule.memory: given without recompute: auto"}},
    {"size of nothing", "schedule: {routed_rows_memory: 0B}\n", {"0 bytes hold no rows"}},
    {"temperature of zero",
     "distill: {teacher: t, temperature: 0}\n",
     {"distill.temperature: 0 is out of range; allowed: number >= 0.01 and <= 1000"}},
    {"temperature that makes all tokens alike",
     "distill: {teacher: t, temperature: 1e300}\n",
     {"distill.temperature: 1e300 is out of range; allowed: number >= 0.01 and <= 1000"}},
    {"temperature that leaves one token",
     "distill: {teacher: t, temperature: 1e-300}\n",
     {"distill.temperature: 1e-300 is out of range"}},
    {"coefficient of a distance beyond f32",
     "distill: {teacher: t, hidden_l2: 1e308}\n",
     {"distill.hidden_l2: 1e308 is out of range; allowed: number >= 0 and <= 1000000"}},
    {"coefficient of routers beyond f32",
     "distill: {teacher: t, router_agreement: 1e308}\n",
     {"distill.router_agreement: 1e308 is out of range; allowed: number >= 0 and <= 1000000"}},
    {"weight of a term beyond f32",
     "distill: {teacher: t, loss: {kl: 1e308}}\n",
     {"distill.loss.kl: 1e308 is out of range; allowed: number >= 0 and <= 1000000"}},
    {"coefficient of balance beyond f32",
     "train: {aux_loss: 1e308}\n",
     {"c.yaml:2:19: train.aux_loss: 1e308 is out of range; allowed: number >= 0 and <= 1000000"}},
    {"decay beyond every weight",
     "train: {optimizer: {weight_decay: 1e308}}\n",
     {"train.optimizer.weight_decay: 1e308 is out of range; allowed: number >= 0 and <= 1000"}},
    {"eps that f32 does not hold",
     "train: {optimizer: {eps: 1e-320}}\n",
     {"train.optimizer.eps: 1e-320 is out of range; allowed: number >= 1e-30 and <= 1"}},
    {"keep nothing",
     "checkpoint: {keep: 0}\n",
     {"c.yaml:2:20: checkpoint.keep: 0 is out of range; allowed: integer >= 1"}},
    {"reversed range of layers",
     "farskip: {layers: 5-2}\n",
     {"c.yaml:2:19: farskip.layers: \"5-2\" is a range that ends before it begins"}},
    {"single layer",
     "farskip: {layers: 3}\n",
     {"c.yaml:2:19: farskip.layers: \"3\" is a single number; write [3]"}},
    {"negative layer", "farskip: {layers: [-1]}\n", {"c.yaml:2:20: farskip.layers[0]: -1 is out of range"}},
    {"layer twice",
     "farskip: {layers: [1, 2, 1]}\n",
     {"c.yaml:2:19: farskip.layers: layer 1 is listed twice"}},
    {"no layer", "farskip: {layers: []}\n", {"farskip.layers: 0 values; allowed: list of at least 1"}},
    {"name with a folder", "name: ../x\n", {"c.yaml:2:7: name: \"../x\" cannot name a folder"}},
    // Contradictions.
    {"batch not divisible",
     "train: {global_batch: 30, micro_batch: 8}\n",
     {"c.yaml:2:23: train.global_batch: 30 is not a multiple of train.micro_batch = 8"}},
    {"tokens and text",
     "data: {tokens: [a], text: [b], tokenizer: t}\n",
     {"c.yaml:2:27: data.text: given beside data.tokens"}},
    {"text without tokenizer", "data: {text: [b]}\n", {"data.tokenizer: this key is missing"}},
    {"too few weights",
     "data: {tokens: [a, b], weights: [1]}\n",
     {"c.yaml:2:33: data.weights: 1 weights for 2 sources"}},
    {"weights of zero", "data: {tokens: [a], weights: [0]}\n", {"data.weights: all weights are 0"}},
    {"negative weight",
     "data: {tokens: [a], weights: [-1]}\n",
     {"c.yaml:2:31: data.weights[0]: -1 is out of range"}},
    {"warm-up beyond the run",
     "train: {steps: 10, learning_rate: {warmup_steps: 11}}\n",
     {"c.yaml:2:50: train.learning_rate.warmup_steps: 11 does not fit into train.steps; allowed: at most "
      "10"}},
    {"decay beyond the run",
     "train: {steps: 10, learning_rate: {schedule: wsd, warmup_steps: 5, decay_steps: 6}}\n",
     {"train.learning_rate.decay_steps: 6 does not fit", "at most 5"}},
    {"final above peak",
     "train: {learning_rate: {peak: 1e-4, final: 1e-3}}\n",
     {"c.yaml:2:44: train.learning_rate.final: 0.001 is above the peak 0.0001"}},
    {"model and init", "init: {from: m}\n", {"c.yaml:1:8: model: given beside init.from"}},
    {"init without from", "init: {}\n", {"c.yaml:1:7: init.from: this key is missing"}, true},
    {"mixture with an unknown term",
     "distill: {teacher: t, loss: {kl: 1, ce: 0.1}}\n",
     {"c.yaml:2:37: distill.loss.ce: unknown key"}},
    {"mixture of nothing",
     "distill: {teacher: t, loss: {kl: 0}}\n",
     {"distill.loss: all weights are 0; allowed: at least one above 0"}},
    {"negative weight of a term",  // and no word on a sum of weights
     "distill: {teacher: t, loss: {kl: -1}}\n",
     {"distill.loss.kl: -1 is out of range; allowed: number >= 0"}},
    {"weight of an unknown term alone",
     "distill: {teacher: t, loss: {ce: 1}}\n",
     {"distill.loss.ce: unknown key"}},
    {"layers without hidden loss",
     "distill: {teacher: t, hidden_layers: [1]}\n",
     {"distill.hidden_layers: hidden_loss uses these layers, and its weight is 0"}},
    {"layer mapping of other length",
     "distill: {teacher: t, hidden_l2: 1, hidden_layers: [1, 2], teacher_layers: [3]}\n",
     {"distill.teacher_layers: 1 layers for 2 hidden_layers"}},
    {"cache beside hidden states",
     "distill: {teacher: t, hidden_l2: 1, cache: {path: c}}\n",
     {"distill.hidden_l2: not possible beside distill.cache, which keeps no hidden states"}},
    {"cache beside a hidden loss",
     "distill: {teacher: t, hidden_loss: {weight: 1}, cache: {path: c}}\n",
     {"distill.hidden_loss: not possible beside distill.cache, which keeps no hidden states"}},
    {"two forms of a hidden loss",
     "distill: {teacher: t, hidden_l2: 1, hidden_loss: {kind: cosine, weight: 1}}\n",
     {"distill.hidden_l2: not possible beside distill.hidden_loss"}},
    {"a hidden loss of another kind",
     "distill: {teacher: t, hidden_loss: {kind: l1, weight: 1}}\n",
     {"distill.hidden_loss.kind: \"l1\" is not known; allowed: l2, normalised, cosine"}},
    {"a hidden loss without a weight",
     "distill: {teacher: t, hidden_loss: {kind: cosine}}\n",
     {"distill.hidden_loss.weight: this key is missing; give the loss a weight above 0"}},
    {"a local stage beside a cache",
     "distill: {teacher: t, local_stage: {share: 0.1}, cache: {path: c}}\n",
     {"distill.local_stage: not possible beside distill.cache, which keeps no activations"}},
    {"a local stage without a share",
     "distill: {teacher: t, local_stage: {}}\n",
     {"distill.local_stage.share: this key is missing; give a share of the steps"}},
    {"a section that is no map",
     "distill: {teacher: t, local_stage: 0.5}\n",
     {"distill.local_stage: a number stands here; allowed: a map"}},
    {"sections whose missing keys would be asked for",
     "distill: {teacher: t, hidden_loss: 5}\n",
     {"distill.hidden_loss: an integer stands here"}},
    {"a null share",
     "distill: {teacher: t, local_stage: {share: null}}\n",
     {"distill.local_stage.share: there is no value"}},
    {"a null weight",
     "distill: {teacher: t, hidden_loss: {weight: null}}\n",
     {"distill.hidden_loss.weight: there is no value"}},
    {"a local stage of steps in place of a share",
     "distill: {teacher: t, local_stage: {share: 100}}\n",
     {"distill.local_stage.share: 100 is out of range; allowed: number >= 0 and <= 1"}},
    {"a local stage in a curriculum",
     "distill: {teacher: t, local_stage: {share: 0.1}, curriculum: {every: 2}}\n",
     {"distill.local_stage: not possible beside distill.curriculum, whose first steps"}},
    {"annealed over more than the run",
     "distill: {teacher: t, hidden_loss: {weight: 1, anneal: 1.5}}\n",
     {"distill.hidden_loss.anneal: 1.5 is out of range; allowed: number >= 0 and <= 1"}},
    {"cache beside routers",
     "distill: {teacher: t, router_agreement: 1, cache: {path: c}}\n",
     {"distill.router_agreement: not possible beside distill.cache, which keeps no routing"}},
    {"cache with two numbers of logits",
     "distill: {teacher: t, top_k: 8, cache: {path: c, top_k: 16}}\n",
     {"distill.top_k: not possible beside distill.cache"}},
    {"cache without a place",
     "distill: {teacher: t, cache: {top_k: 16}}\n",
     {"distill.cache.path: this key is missing"}},
    {"early stopping on what a cache does not know",
     "distill: {teacher: t, cache: {path: c}, early_stopping: {metric: validation_kl}}\ndata: {validation: "
     "[v]}\n",
     {"distill.early_stopping: metric validation_kl needs the teacher on held-out text"}},
    {"early stopping without held-out text",
     "distill: {teacher: t, early_stopping: {every: 5}}\n",
     {"distill: early_stopping evaluates held-out text, and data.validation names none"}},
    {"distillation without teacher",
     "distill: {loss: kl}\n",
     {"c.yaml:2:10: distill.teacher: this key is missing"}},
    {"neither model nor init",
     "seed: 1\n",
     {"c.yaml:1:1: model: this key is missing; give model (the architecture) or init"},
     true},
    {"model is no map", "model: olmoe\n", {"c.yaml:1:8: model: text stands here; allowed: a map"}, true},
    // The text itself.
    {"list at the root",
     "- a\n- b\n",
     {"c.yaml:1:1: a list stands here; allowed: a map of key: value lines"},
     true},
    {"word at the root", "hello\n", {"c.yaml:1:1: text stands here"}, true},
    {"empty", "", {"c.yaml:1:1: empty"}, true},
    {"second document", "---\nseed: 1\n", {"c.yaml:2:1: a second document begins"}},
    {"tab indent", "train:\n\tsteps: 5\n", {"c.yaml:3:", "not valid YAML", "tab"}},
    {"unclosed list", "data: {tokens: [a\n", {"c.yaml:3:1: not valid YAML: end of"}},
    {"two colons", "train: steps: 5\n", {"c.yaml:2:13: not valid YAML"}},
    {"anchor", "train: &t {steps: 5}\n", {"c.yaml:2:8: YAML anchor"}},
    {"alias", "train: *t\n", {"c.yaml:2:8: YAML alias"}},
    {"tag", "seed: !!int 5\n", {"c.yaml:2:7: YAML tag"}},
    {"local tag", "seed: !x 5\n", {"c.yaml:2:7: YAML tag"}},
    {"bare tag", "name: ! 5\n", {"c.yaml:2:7: YAML tag"}},
    {"list as a key", "? [a, b]\n: 5\n", {"c.yaml:2:3: a list or a map is used as a key"}},
    {"null as a key", "~: 5\n", {"c.yaml:2:1: an empty key"}},
};

std::string refuse(const std::string& text) {
  const test::TemporaryFolder folder;
  write_text_file(folder / "c.yaml", text);
  try {
    load_run_config(folder / "c.yaml", {});
  } catch (const UsageError& error) {
    CHECK(error.code() == ExitCode::usage);
    return error.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("every kind of mistake is refused with its place, its key and what is allowed") {
  for (const BadConfig& bad : table) {
    const std::string message = refuse((bad.whole ? "" : "model: {}\n") + std::string(bad.text));
    INFO(bad.what << "\n" << bad.text << message);
    for (const char* fragment : bad.fragments) CHECK_THAT(message, ContainsSubstring(fragment));
    CHECK_THAT(message, !ContainsSubstring("\n"));  // one mistake, one line
  }
}

TEST_CASE("many mistakes of all kinds are reported in one go, in the order of the file") {
  const std::string message = refuse(
      "seed: 010\nmodle: {}\nparallel: {expert: 0}\ntrain:\n  steps: many\n  steps: 5\n  global_batch: 30\n"
      "  micro_batch: 8\n  optimizer: {betas: [2, x]}\ncheckpoint: {async: yes}\n");
  std::vector<std::string> lines;
  for (std::size_t start = 0; start <= message.size();) {
    const std::size_t end = std::min(message.find('\n', start), message.size());
    lines.push_back(message.substr(message.find("c.yaml", start), end - message.find("c.yaml", start)));
    start = end + 1;
  }
  INFO(message);
  REQUIRE(lines.size() == 10);
  CHECK_THAT(lines[0], ContainsSubstring("c.yaml:2:1: modle: unknown key; did you mean model?"));
  CHECK_THAT(lines[1], ContainsSubstring("c.yaml:1:1: model: this key is missing"));  // therefore
  CHECK_THAT(lines[2], ContainsSubstring("c.yaml:1:7: seed"));
  CHECK_THAT(lines[3], ContainsSubstring("c.yaml:3:20: parallel.expert"));
  CHECK_THAT(lines[4], ContainsSubstring("c.yaml:5:10: train.steps: \"many\""));
  CHECK_THAT(lines[5], ContainsSubstring("c.yaml:6:3: train.steps: duplicate key"));
  CHECK_THAT(lines[6], ContainsSubstring("c.yaml:7:17: train.global_batch: 30"));
  CHECK_THAT(lines[7], ContainsSubstring("c.yaml:9:23: train.optimizer.betas[0]: 2 is out of range"));
  CHECK_THAT(lines[8], ContainsSubstring("c.yaml:9:26: train.optimizer.betas[1]: \"x\""));
  CHECK_THAT(lines[9], ContainsSubstring("c.yaml:10:21: checkpoint.async"));
}
