// SPDX-License-Identifier: Apache-2.0
// Distillation runs as a whole: exact zero, freezing, resume, kept teacher outputs, early stopping.
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "distill/distill_setup.h"
#include "farskip/tensor/safetensors.h"
#include "support/catch.h"
#include "support/context.h"
#include "support/run_files.h"
#include "support/small_run.h"
#include "support/states.h"

namespace farskip {
namespace {

using test::checkpoint_bytes, test::make_small_run, test::read_metrics, test::run_small, test::SmallRunKind;
using Run = test::SmallRun;

const Logger kQuiet(LogLevel::off);
const fs::path kTeacher = test::small_model();

Run make_run(const fs::path& run_dir, const std::vector<std::string>& overrides = {}) {
  return make_small_run(run_dir, SmallRunKind::distill, overrides);
}

TrainResult distill(const Run& run) {
  return run_small(run);
}

/// What a rank at this place of a mesh runs.
TrainingProgram program_of(const Run& run, const MeshPosition& mesh = {}, int zero = 0,
                           DType compute = DType::f32) {
  TrainEngineOptions options;
  options.zero = zero;
  options.compute = compute;
  options.frozen = frozen_in_run(run.config, run.model);
  return {wire_model(run.model), options, mesh};
}

/// A run before its first step.
struct Prepared {
  Prepared(const fs::path& run_dir, const std::vector<std::string>& overrides)
      : run(make_run(run_dir, overrides)),
        states(std::make_shared<States>(make_cpu_device(), program_of(run).weight_states())),
        distillation(run.config, run.model, *states,
                     test::quiet_context(make_self_mesh(), make_cpu_device(), &heartbeat)) {}

  Run run;
  std::shared_ptr<States> states;
  Heartbeat heartbeat;
  Distillation distillation;
};

/// Whether a tensor of the last checkpoint has the teacher's bits.
bool is_unchanged(const fs::path& run_dir, const std::string& name) {
  const HostTensor now = SafetensorsFile(run_dir / "checkpoints" / "step-6" / "model.safetensors").read(name);
  const HostTensor before = SafetensorsFolder(kTeacher).read(name);
  return now.bytes().size() == before.bytes().size() &&
         std::memcmp(now.bytes().data(), before.bytes().data(), now.bytes().size()) == 0;
}

TEST_CASE("a student that is its teacher has exactly zero loss and gradient, and stays it") {
  const test::TemporaryFolder folder;
  const std::vector<std::vector<std::string>> losses{
      {"distill.loss=kl"},
      {"distill.loss=reverse_kl", "distill.temperature=2"},
      {"distill.loss=jsd", "distill.hidden_l2=0.5", "distill.router_agreement=0.5"},
      {"distill.loss=kl", "distill.top_k=7", "schedule.recompute=full"},
      {"distill.loss=jsd", "distill.top_k=7", "schedule.micro_batches_in_flight=2"},
      {"distill.hidden_loss={kind: normalised, weight: 0.5, anneal: 0.5}",
       "schedule.micro_batches_in_flight=2"},
      {"distill.hidden_loss={kind: cosine, weight: 0.5}"},
      {"distill.local_stage.share=1"},
      {"distill.local_stage.share=1", "schedule.recompute=full", "schedule.micro_batches_in_flight=2"}};
  int number = 0;
  for (std::vector<std::string> overrides : losses) {
    INFO(fmt::format("{}", fmt::join(overrides, " ")));
    overrides.insert(overrides.end(), {"farskip.mode=off", "train.optimizer.weight_decay=0"});
    const fs::path run_dir = folder / std::to_string(number++);
    distill(make_run(run_dir, overrides));
    for (const auto& line : read_metrics(run_dir)) {
      CHECK(line["loss"] == 0.0);
      CHECK(line["grad_norm"] == 0.0);
      CHECK(line["kl"] == 0.0);
      CHECK(line["agreement"] == 1.0);
      for (const auto& share : line["routing_flips"]) CHECK(share == 0.0);
      CHECK(line["student_loss"] == line["teacher_loss"]);
    }
    CHECK(is_unchanged(run_dir, "lm_head.weight"));
    CHECK(is_unchanged(run_dir, "model.layers.2.mlp.experts.3.up_proj.weight"));
  }
}

TEST_CASE("a distillation may begin with folded weights, and refuses a fold that its settings would undo") {
  const test::TemporaryFolder folder;
  const std::string tokens = (kTeacher / "tokens").string();
  const auto distance = [&](const char* name, const std::vector<std::string>& overrides) {
    distill(make_run(folder / name, overrides));
    for (const auto& line : read_metrics(folder / name))
      if (line.contains("validation_untrained_loss"))
        return std::abs(line["validation_untrained_loss"].get<double>() -
                        line["validation_teacher_loss"].get<double>());
    return -1.0;
  };
  const std::string fold = "distill.fold.tokens=" + tokens;
  const double plain = distance("plain", {}), folded = distance("folded", {fold});
  CHECK(folded >= 0.0);
  CHECK(folded < 0.5 * plain);
  const auto refuses = [&](const std::vector<std::string>& overrides, const std::string& message) {
    CHECK_THROWS_WITH(distill(make_run(folder / "refused", overrides)), ContainsSubstring(message));
  };
  // Before the fold, which takes long.
  refuses({fold + "-none", "distill.freeze=[attention]"}, "which distill.freeze keeps");
  fs::copy(kTeacher, folder / "copy");
  refuses({fold, "init.from=" + (folder / "copy").string()}, "does not start from the teacher");
  refuses({fold, "distill.curriculum.every=2"}, "distill.curriculum");
  refuses({fold, "distill.fold.text=" + tokens}, "one of text and tokens");
  refuses({"distill.fold.tokens=" + tokens + "-none"}, "tokens-none");
}

TEST_CASE("distillation lowers the divergence, and reports what it is about") {
  const test::TemporaryFolder folder;
  distill(make_run(folder / "run",
                   {"train.steps=40", "train.learning_rate.peak=3e-4", "train.global_batch=8",
                    "train.validate_every=20", "train.optimizer.weight_decay=0", "data.shuffle=false"}));
  const auto lines = read_metrics(folder / "run");
  REQUIRE(lines.size() == 40);
  CHECK(lines.back()["kl"] < 0.7 * lines.front()["kl"].get<double>());
  const auto& last = lines.back();
  CHECK(last["validation_kl"] > 0);
  CHECK(last["validation_agreement"] <= 1);
  CHECK(last["routing_flips"].size() == 3);
  const double teacher = last["validation_teacher_loss"], untrained = last["validation_untrained_loss"];
  CHECK(last["recovered"].get<double>() ==
        Catch::Approx((untrained - last["validation_loss"].get<double>()) / (untrained - teacher))
            .epsilon(1e-6));
}

TEST_CASE("frozen tensors keep every bit, and the others do not") {
  const test::TemporaryFolder folder;
  distill(make_run(folder / "run", {"distill.freeze=[embedding, head, \"model.layers.1.*\"]"}));
  for (const char* name :
       {"model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.gate.weight",
        "model.layers.1.input_layernorm.weight", "model.layers.1.mlp.experts.5.down_proj.weight"})
    CHECK(is_unchanged(folder / "run", name));
  for (const char* name :
       {"model.norm.weight", "model.layers.2.mlp.gate.weight", "model.layers.0.self_attn.o_proj.weight"})
    CHECK_FALSE(is_unchanged(folder / "run", name));
  const SafetensorsFile moments(folder / "run" / "checkpoints" / "step-6" / "optimizer.safetensors");
  for (const TensorInfo& info : moments.tensors()) CHECK(info.name.find("lm_head") == std::string::npos);
}

TEST_CASE(
    "the step's graph fuses loss and gradient, and has no backward for the teacher and what is frozen") {
  const test::TemporaryFolder folder;
  const Prepared p(folder / "run", {"distill.freeze=[head, experts]"});
  const Distillation& d = p.distillation;
  LowerOptions lowering;
  lowering.sequence_length = 8;
  MicroBatchKind kind;
  kind.objective = d.objective().get();
  auto trained = local_parameters(list_parameters(p.run.model), {}, false);
  std::erase_if(trained, [&](const LocalParameter& one) { return d.frozen().contains(one.spec.name); });
  const Graph graph = run_pipeline(
      micro_batch_pipeline({p.run.model, *d.layers_at(0)}, trained, lowering, {}, kind), {}, kQuiet);
  std::map<std::string, int> ops;
  int teacher_nodes = 0;
  for (const Node& node : graph.nodes()) {
    ++ops[node.op->name];
    if (node.scope.model == 0) continue;
    ++teacher_nodes;
    CHECK(node.scope.phase == Phase::forward);
  }
  CHECK(teacher_nodes > 40);
  CHECK(ops["distill_loss"] == 0);
  CHECK(ops["distill_loss_grad"] == 1);
  CHECK(ops["grouped_matmul_wgrad"] == 0);
  CHECK(ops["grouped_matmul"] == 3 * 2 * 3);  // of teacher and student, and back to the rows
  CHECK_FALSE(graph.find_external("grad.lm_head.weight"));
  CHECK(graph.find_external("grad.model.norm.weight"));
}

TEST_CASE("on every layout a frozen parameter is one tensor of the type it computes in, for both models") {
  const test::TemporaryFolder folder;
  const Run run = make_run(folder / "run", {"distill.freeze=[head, experts, router, norms]"});
  const std::set<std::string> frozen = frozen_in_run(run.config, run.model);
  for (const DType compute : {DType::f32, DType::bf16})
    for (const auto& [mesh, zero] : {std::pair{MeshPosition{}, false},
                                     {MeshPosition{2, 1, 2}, false},
                                     {MeshPosition{2, 1, 1}, true},
                                     {MeshPosition{4, 2, 2}, true}}) {
      CAPTURE(dtype_name(compute), mesh.world_size, mesh.expert_size, zero);
      const TrainingProgram program = program_of(run, mesh, zero, compute);
      std::vector<StateSpec> states = program.weight_states();
      for (const auto& more : {program.training_states(),
                               plan_teacher(read_distill_setup(run.config), run.model).states(mesh, compute)})
        states.insert(states.end(), more.begin(), more.end());
      std::set<std::string> seen;
      for (const StateSpec& state : states) {
        const ParameterSpec& p = state.parameter->spec;
        if (!frozen.contains(p.name)) continue;
        CAPTURE(p.name);
        CHECK(seen.insert(p.name).second);
        CHECK(state.role == Role::constant);
        CHECK(state.dtype == (p.has_compute_copy() ? compute : DType::f32));
        CHECK(state.shape() == p.shape);
      }
      CHECK(seen == frozen);
    }
}

TEST_CASE("a frozen tensor that both models share is kept once, and no bit depends on that") {
  const test::TemporaryFolder folder;
  Prepared p(folder / "run", {"distill.freeze=[head, experts]"});
  const Distillation& d = p.distillation;
  CHECK_FALSE(d.objective()->states()->contains("teacher.lm_head.weight"));
  CHECK_FALSE(d.objective()->states()->contains("teacher.model.layers.1.mlp.experts.down_proj"));
  CHECK(d.objective()->states()->contains("teacher.model.embed_tokens.weight"));
  CHECK_NOTHROW(d.check_weights(*p.states));
  test::values_of(*p.states, "lm_head.weight")[3] += 1.0F;
  CHECK_THROWS_AS(d.check_weights(*p.states), UsageError);
}

TEST_CASE("distillation in two halves gives the bytes of one piece, with kept teacher outputs too") {
  for (const bool cached : {false, true}) {
    INFO((cached ? "with a cache" : "without"));
    const test::TemporaryFolder folder;
    std::vector<std::string> more{"distill.curriculum.every=2", "distill.freeze=[embedding]"};
    if (cached)
      more.insert(more.end(), {"distill.cache.path=" + (folder / "kept").string(), "distill.cache.top_k=9"});
    const auto run = [&](const char* name) { return make_run(folder / name, more); };
    distill(run("whole"));
    if (cached) fs::remove_all(folder / "kept");
    distill(run("halves"));  // its second half is a run of its own: as after a kill at step 4
    fs::remove_all(folder / "halves" / "checkpoints" / "step-6");
    CHECK(distill(run("halves")).step == 6);
    CHECK(checkpoint_bytes(folder / "whole", 6) == checkpoint_bytes(folder / "halves", 6));
    const auto a = read_metrics(folder / "whole"), b = read_metrics(folder / "halves");
    REQUIRE(a.size() == 6);
    REQUIRE(b.size() == 6);
    for (std::size_t i = 0; i < 6; ++i)
      for (const char* key : {"loss", "kl", "agreement", "grad_norm"}) CHECK(a[i][key] == b[i][key]);
    CHECK(a[5]["recovered"] == b[5]["recovered"]);
  }
}

TEST_CASE("kept teacher outputs replace the teacher to the bit, and refuse another one") {
  const test::TemporaryFolder folder;
  const std::string path = "distill.cache.path=" + (folder / "kept").string();
  const auto first = make_run(folder / "first", {path, "distill.cache.top_k=9"});
  distill(first);
  std::uint64_t bytes = 0;
  const auto records = [&] {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(folder / "kept"))
      if (entry.path().extension() == ".bin") files.push_back(entry.path());
    return files;
  };
  for (const fs::path& file : records()) bytes += fs::file_size(file);
  const std::uint64_t record = 64 + 32 * (9 * 6 + 8);
  CHECK(bytes > 0);
  CHECK(bytes % record == 0);
  distill(make_run(folder / "again", {path, "distill.cache.top_k=9", "train.micro_batch=1"}));
  CHECK(records().size() == 1);  // nothing was asked again
  distill(make_run(folder / "again2", {path, "distill.cache.top_k=9"}));
  CHECK(checkpoint_bytes(folder / "first", 6) == checkpoint_bytes(folder / "again2", 6));
  // With all logits kept, only rounding is between it and the live teacher.
  distill(make_run(folder / "all",
                   {"distill.cache.path=" + (folder / "all kept").string(), "distill.cache.top_k=160"}));
  distill(make_run(folder / "live"));
  const double kept = read_metrics(folder / "all")[0]["kl"], live = read_metrics(folder / "live")[0]["kl"];
  CHECK(kept == Catch::Approx(live).margin(1e-5));

  CHECK_THROWS_WITH(distill(make_run(folder / "x", {path, "distill.cache.top_k=8"})),
                    ContainsSubstring("holds outputs of another teacher"));
  CHECK_THROWS_WITH(
      distill(make_run(folder / "y", {path, "distill.cache.top_k=9", "train.sequence_length=16"})),
      ContainsSubstring("sequence_length"));
  std::string text = read_text_file(records()[0]);
  text[100] = static_cast<char>(text[100] ^ 1);
  write_text_file(records()[0], text);
  distill(make_run(folder / "z", {path, "distill.cache.top_k=9"}));  // asked again, of the damaged one alone
  CHECK(checkpoint_bytes(folder / "first", 6) == checkpoint_bytes(folder / "z", 6));
  CHECK(records().size() == 2);
}

TEST_CASE("early stopping ends a run without progress, for good, and keeps its best checkpoint") {
  const test::TemporaryFolder folder;
  // A rate of almost nothing: the first look is the best one.
  const auto run = make_run(
      folder / "run", {"train.steps=50", "train.learning_rate.peak=1e-12", "train.learning_rate.final=0",
                       "distill.early_stopping.every=2", "distill.early_stopping.patience=3",
                       "distill.early_stopping.metric=validation_kl"});
  const TrainResult result = distill(run);
  CHECK(result.converged);
  CHECK_FALSE(result.stopped_early);
  CHECK(result.step == 8);
  CHECK(fs::exists(folder / "run" / "best" / "step-2" / "manifest.json"));
  CHECK(distill(run).step == 8);  // resumed: still over
}

TEST_CASE("a curriculum rewires layer by layer, the last one first") {
  const test::TemporaryFolder folder;
  const Prepared p(folder / "run", {"distill.curriculum.every=3"});
  const Distillation& d = p.distillation;
  const auto rewired = [&](std::int64_t step) {
    const LayerGraph standard = build_layer_graph(p.run.model), now = *d.layers_at(step);
    std::string layers;
    for (std::size_t i = 0; i < now.blocks.size(); ++i)
      if (now.blocks[i].kind == SubBlock::shared && now.blocks[i].omits != standard.blocks[i].omits)
        layers += std::to_string(now.blocks[i].layer);
    return layers;
  };
  CHECK(rewired(0) == "3");
  CHECK(rewired(2) == "3");
  CHECK(rewired(3) == "23");
  CHECK(rewired(6) == "123");
  CHECK(d.layers_at(9) == d.layers_at(1000));
}

TEST_CASE("what distillation cannot do is refused with the reason") {
  const test::TemporaryFolder folder;
  const auto refused = [&](const std::vector<std::string>& overrides) {
    try {
      distill(make_run(folder / "run", overrides));
    } catch (const UsageError& e) {
      return std::string(e.what());
    }
    return std::string("not refused");
  };
  CHECK_THAT(refused({"distill.freeze=[\"model.lay.*\"]"}), ContainsSubstring("covers no parameter"));
  CHECK_THAT(refused({"distill.freeze=[\"*.experts.2.*\"]"}), ContainsSubstring("cover all of them or none"));
  CHECK_THAT(refused({"distill.freeze=[\"*\"]"}), ContainsSubstring("leave something to train"));
  CHECK_THAT(refused({"distill.top_k=161"}), ContainsSubstring("the vocabulary has 160 tokens"));
  CHECK_THAT(refused({"distill.hidden_l2=1", "distill.hidden_layers=[4]"}), ContainsSubstring("0 to 3"));
}

TEST_CASE("biases of projections are frozen with attention, weights of norms with norms") {
  const ModelConfig config = read_hub_config(test::fixtures() / "llama_biases");
  const std::set<std::string> attention = frozen_parameters({"attention"}, config),
                              norms = frozen_parameters({"norms"}, config);
  for (const char* name : {"self_attn.q_proj.bias", "self_attn.o_proj.bias", "self_attn.o_proj.weight"}) {
    CAPTURE(name);
    CHECK(attention.contains(layer_name(1, name)));
    CHECK(!norms.contains(layer_name(1, name)));
  }
  CHECK(norms.contains(layer_name(1, "input_layernorm.weight")));
  CHECK(!attention.contains(layer_name(1, "input_layernorm.weight")));
}

TEST_CASE("biases of MLPs are frozen with what they belong to") {
  const ModelConfig config = read_hub_config(test::fixtures() / "deepseek_v2_biases");
  const std::set<std::string> shared = frozen_parameters({"shared_experts"}, config),
                              dense = frozen_parameters({"dense_mlp"}, config);
  CHECK(shared.contains(layer_name(1, "mlp.shared_experts.gate_up_proj.bias")));
  CHECK(shared.contains(layer_name(1, "mlp.shared_experts.down_proj.bias")));
  CHECK(!shared.contains(layer_name(0, "mlp.gate_up_proj.bias")));
  CHECK(dense.contains(layer_name(0, "mlp.gate_up_proj.bias")));
}

TEST_CASE("patterns match whole names") {
  CHECK(matches_pattern("model.layers.10.mlp", "model.layers.1*.mlp"));
  CHECK(matches_pattern("abc", "a?c"));
  CHECK(matches_pattern("", "*"));
  CHECK(matches_pattern("aXbXc", "*b*c"));
  CHECK_FALSE(matches_pattern("abcd", "a?c"));
  CHECK_FALSE(matches_pattern("abc", "ab"));
  CHECK_FALSE(matches_pattern("aab", "*aa"));
}

}  // namespace
}  // namespace farskip
