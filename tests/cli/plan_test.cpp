// SPDX-License-Identifier: Apache-2.0
// farskip plan: what it predicts is consistent, and what it cannot predict it refuses.

#include <algorithm>
#include <chrono>
#include <map>
#include <set>
#include <sstream>

#include "farskip/base/file.h"
#include "support/catch.h"
#include "support/json.h"
#include "support/support.h"

namespace farskip {
namespace {

using nlohmann::json;

constexpr const char* kSmall = R"(
name: small
seed: 1
model:
  family: deepseek_v2
  vocab_size: 512
  hidden_size: 64
  intermediate_size: 192
  moe_intermediate_size: 48
  num_hidden_layers: 4
  first_k_dense_replace: 1
  num_attention_heads: 4
  num_key_value_heads: 4
  q_lora_rank: null
  kv_lora_rank: 32
  qk_nope_head_dim: 16
  qk_rope_head_dim: 8
  v_head_dim: 16
  n_routed_experts: 8
  n_shared_experts: 1
  num_experts_per_tok: 2
  max_position_embeddings: 128
farskip: {mode: full}
parallel: {expert: 2, zero: 1}
train: {sequence_length: 64, global_batch: 8, micro_batch: 2}
)";

struct Folder {
  test::TemporaryFolder folder;
  Folder() { write_text_file(folder / "small.yaml", kSmall); }
  test::CommandResult plan(const std::string& arguments) const {
    return test::run_command(fmt::format("XDG_CACHE_HOME={0}/cache {1} plan {0}/small.yaml {2}",
                                         folder.path().string(), FARSKIP_BINARY, arguments));
  }
  json plan_json(const std::string& arguments) const {
    const auto result = plan(arguments + " --json");
    INFO(result.err);
    REQUIRE(result.status == 0);
    return test::parse_json(result.out);
  }
};

// Slow enough a device that its transports do not all hide, fast enough that they do not fill the step.
const std::string kDevice = " --device-rate 20GFLOP/s,10GB/s --link 100MB/s";

TEST_CASE("a search lists what fits a memory, fastest first, and plan takes its settings") {
  const Folder f;
  const json found = f.plan_json("--ranks 4 --search --memory 7MiB" + kDevice);
  REQUIRE(found["fits"].size() > 1);
  REQUIRE_FALSE(found["too_large"].empty());
  CHECK(found["searched"]["parallel.expert"] == std::vector<std::string>{"1", "2", "4"});
  double last = 0;
  for (const json& one : found["fits"]) {
    CHECK(one["peak_memory_bytes"] <= std::uint64_t{7} << 20);
    if (!one["scheduled"]) continue;
    CHECK(one["step_seconds"] >= last);
    last = one["step_seconds"];
  }
  for (const json& one : found["too_large"]) {
    CHECK_FALSE(one["reason"].get<std::string>().empty());
    CHECK(one["peak_memory_bytes"] > std::uint64_t{7} << 20);
  }
  CHECK(found["searched"]["parallel.tensor"] == std::vector<std::string>{"1", "2", "4"});
  CHECK(found["refused"].size() == 2 * 4);  // experts over 2, matrices over 4, and the other way round
  std::string settings;
  for (const auto& [key, value] : found["fits"][0]["settings"].items())
    settings += fmt::format(" {}={}", key, value.get<std::string>());
  const json plan = f.plan_json("--ranks 4" + settings + kDevice);
  CHECK(plan["step_seconds_farskip"] == found["fits"][0]["step_seconds"]);
  CHECK(plan["peak_memory_bytes"] == found["fits"][0]["peak_memory_bytes"]);
  CHECK_THAT(f.plan("--ranks 4 --search" + kDevice).err, ContainsSubstring("--memory"));
  CHECK_THAT(f.plan("--ranks 4 --search --memory 7MiB --link 100MB/s").err,
             ContainsSubstring("--device-rate"));
}

TEST_CASE("runs of inference are predicted blocking, scheduled and in halves, and held against a memory") {
  const Folder f;
  const std::string layout =
      "--inference --ranks 2 --lengths 32 --requests 1,6 --batches 5 parallel.tensor=2";
  const auto result = f.plan(layout + " --memory 1MB --json" + kDevice);
  INFO(result.err);
  REQUIRE(result.status == 0);
  std::map<std::string, std::vector<json>> rows;  // by run and texts
  std::istringstream lines(result.out);
  for (std::string line; std::getline(lines, line);) {
    const json row = test::parse_json(line);
    const bool decodes = row["run"] == "decode";
    rows[fmt::format("{} {}", row["run"].get<std::string>(), row[decodes ? "batch" : "requests"].get<int>())]
        .push_back(row);
  }
  REQUIRE(rows.size() == 3);
  CHECK(rows["prefill 1"].size() == 4);  // one text has no halves
  for (const char* run : {"prefill 6", "decode 5"}) {
    REQUIRE(rows[run].size() == 6);
    const json &blocking = rows[run][0], &scheduled = rows[run][1], &halves = rows[run][2];
    for (const std::size_t of : {0, 3}) {
      CHECK(rows[run][of + 2]["schedule"] == "halves");
      CHECK(rows[run][of + 2]["wiring"] == rows[run][of]["wiring"]);
    }
    CHECK(halves["wiring"] == "off");
    CHECK(scheduled["seconds"] <= blocking["seconds"]);
    // As many bytes travel, in twice as many messages of 20 us: of eight sub-blocks, embedding and logits.
    const double latency = 20e-6 * (8 + 2);
    CHECK(halves["all_reduce_seconds"] ==
          Catch::Approx(blocking["all_reduce_seconds"].get<double>() + latency));
    CHECK(halves["hideable_seconds"] > scheduled["hideable_seconds"]);
    CHECK(halves["hidden_fraction"] > scheduled["hidden_fraction"]);
    CHECK(halves["cache_bytes"] == blocking["cache_bytes"]);
    for (const json& row : rows[run]) {
      const std::uint64_t bytes = row["weight_bytes"].get<std::uint64_t>() +
                                  row["cache_bytes"].get<std::uint64_t>() +
                                  row["arena_bytes"].get<std::uint64_t>();
      CHECK(row["fits"] == (bytes <= 1'000'000));
    }
  }
  CHECK_THAT(f.plan(layout + " --memory 100kB" + kDevice).out, ContainsSubstring("use more ranks"));
  CHECK_THAT(f.plan(layout + " --memory 100GB" + kDevice).out, !ContainsSubstring("too large"));
  CHECK_THAT(f.plan("--memory 7MiB" + kDevice).err, ContainsSubstring("add one of them"));
}

TEST_CASE("the graphs of both wirings are written after each pass that changes them") {
  const Folder f;
  const auto dump = f.folder / "graphs";
  REQUIRE(f.plan(fmt::format("--ranks 4 --dump-graphs {}{}", dump.string(), kDevice)).status == 0);
  const std::filesystem::path graph = "micro-batch-2x64-reduce";
  for (const char* wiring : {"off", "full"})
    for (const char* pass : {"01-lower", "04-shard_experts", "05-differentiate", "08-reduce_gradients"})
      CHECK(std::filesystem::exists(dump / wiring / graph / fmt::format("{}.txt", pass)));
  const std::string before = read_text_file(dump / "full" / graph / "01-lower.txt");
  const std::string after = read_text_file(dump / "full" / graph / "08-reduce_gradients.txt");
  CHECK_THAT(before, !ContainsSubstring("reduce_scatter") && ContainsSubstring("input \"tokens\""));
  CHECK_THAT(after, ContainsSubstring("reduce_scatter") && ContainsSubstring("exchange_rows"));
  CHECK(before != read_text_file(dump / "off" / graph / "01-lower.txt"));
  CHECK_THAT(read_text_file(dump / "full" / "update" / "01-update.txt"), ContainsSubstring("adamw("));
  CHECK_FALSE(std::filesystem::exists(dump / "full" / "gather"));  // nothing to gather in fp32
}

TEST_CASE("a plan names every collective with consistent times, and FarSkip is not slower") {
  const Folder f;
  for (const char* link :
       {" --device-rate 20GFLOP/s,10GB/s --link 10MB/s", " --device-rate 20GFLOP/s,10GB/s --link 100MB/s",
        " --device-rate 20GFLOP/s,10GB/s --link 1GB/s --latency 0us"}) {
    for (const char* overrides : {"--ranks 2 train.global_batch=12", "--ranks 4"}) {
      CAPTURE(link, overrides);
      const json plan = f.plan_json(std::string(overrides) + link);
      // Where communication is short, the sums of a second stream may cost more than is left to hide.
      if (plan["farskip"]["total"]["transport_seconds"].get<double>() >
          plan["farskip"]["compute_seconds"].get<double>() / 4)
        CHECK(plan["step_seconds_farskip"] < plan["step_seconds_standard"]);
      for (const char* wiring : {"standard", "farskip"}) {
        const json& w = plan[wiring];
        CHECK(w["step_seconds_scheduled"] <= w["step_seconds_blocking"]);
        CHECK(plan[fmt::format("step_seconds_{}", wiring)] == w["step_seconds_scheduled"]);
        CHECK(w["step_seconds_scheduled"].get<double>() * (1 + 1e-9) >=
              std::max(w["compute_seconds"].get<double>(), w["critical_path_seconds"].get<double>()));
        // Blocking, the compute stream runs everything in turn.
        const json& total = w["total"];
        CHECK(w["step_seconds_blocking"].get<double>() ==
              Catch::Approx(w["compute_seconds"].get<double>() + total["transport_seconds"].get<double>()));
        CHECK(w["step_seconds_scheduled"].get<double>() ==
              Catch::Approx(w["compute_seconds"].get<double>() + total["exposed_seconds"].get<double>()));
        // No order hides more than the maximum flow.
        CHECK(w["step_seconds_blocking"].get<double>() - w["step_seconds_scheduled"].get<double>() <=
              total["hideable_seconds"].get<double>() * (1 + 1e-9));
        double transport = 0;
        for (const json& c :
             plan[wiring == std::string("farskip") ? "collectives" : "collectives_standard"]) {
          CAPTURE(c.dump());
          CHECK(c["bytes"] > 0);
          CHECK(c["exposed_seconds"] >= 0);
          CHECK(c["exposed_seconds"].get<double>() <= c["transport_seconds"].get<double>() * (1 + 1e-9));
          CHECK(c["window_seconds"] >= 0);
          CHECK(c["window_seconds"] <= w["compute_seconds"]);
          CHECK((c["blocked_by"].is_null() ||
                 c["blocked_by"].get<std::string>().find(" @") != std::string::npos));
          CHECK(c["scope"].get<std::string>().ends_with(c["direction"].get<std::string>()));
          transport += c["transport_seconds"].get<double>() * c["repeats"].get<double>();
        }
        CHECK(transport == Catch::Approx(total["transport_seconds"].get<double>()));
      }
      CHECK(plan["peak_memory_bytes"] > 0);
    }
  }
}

/// Of the other schedules of a plan, the one with these settings.
json other_schedule(const json& plan, int in_flight, int chunks) {
  for (const json& other : plan["other_schedules"])
    if (other["micro_batches_in_flight"] == in_flight && other["expert_chunks"] == chunks) return other;
  return {};
}

TEST_CASE("both wirings are planned with one and two micro-batches in flight, and with one and two chunks") {
  const Folder f;
  const std::string ranks = "--ranks 2 train.global_batch=8" + kDevice;
  const json one = f.plan_json(ranks), two = f.plan_json(ranks + " schedule.micro_batches_in_flight=2"),
             chunks = f.plan_json(ranks + " schedule.expert_chunks=2");
  for (const auto& [plan, in_flight, number] : {std::tuple{&two, 2, 1}, {&chunks, 1, 2}})
    for (const char* key : {"step_seconds_standard", "step_seconds_farskip", "peak_memory_bytes_standard",
                            "peak_memory_bytes"}) {
      CHECK(other_schedule(one, in_flight, number)[key] == (*plan)[key]);
      CHECK(other_schedule(*plan, 1, 1)[key] == one[key]);
    }
  CHECK(two["step_seconds_standard"] < one["step_seconds_standard"]);
  CHECK(two["peak_memory_bytes"] > one["peak_memory_bytes"]);
  // What standard wiring lacks is a window: one chunk's experts under the other's rows.
  CHECK(chunks["step_seconds_standard"] < one["step_seconds_standard"]);
  CHECK(chunks["step_seconds_standard_blocking"] >= one["step_seconds_standard_blocking"]);
  CHECK(other_schedule(f.plan_json("--ranks 2 train.global_batch=4" + kDevice), 2, 1).is_null());
  CHECK(f.plan_json("--ranks 1 parallel.expert=1 train.global_batch=8 --device-rate 20GFLOP/s,10GB/s")
            .at("other_schedules")
            .empty());
}

TEST_CASE("FarSkip lets attention run under the all-to-alls of the forward, the standard wiring nothing") {
  const Folder f;
  const json plan = f.plan_json("--ranks 2 train.global_batch=4" + kDevice);
  const auto seconds = [&](const char* wiring, const char* what) {
    return plan[wiring]["forward"][what].get<double>();
  };
  CHECK(seconds("farskip", "transport_seconds") == Catch::Approx(seconds("standard", "transport_seconds")));
  CHECK(seconds("farskip", "hideable_seconds") > 2 * seconds("standard", "hideable_seconds"));
  CHECK(seconds("farskip", "exposed_seconds") < seconds("standard", "exposed_seconds"));
  // What waits for rows of layer 2 is their way into the experts of layer 2.
  bool found = false;
  for (const json& c : plan["collectives"])
    if (c["scope"] == "2.routed.forward" && c["op"] == "exchange_rows" && !c["blocked_by"].is_null()) {
      found = true;
      CHECK_THAT(c["blocked_by"].get<std::string>(), ContainsSubstring("2.routed.forward"));
    }
  CHECK(found);
}

TEST_CASE("memory of a plan is sharded as training shards it") {
  const Folder f;
  const auto memory = [&](const std::string& arguments) {
    return f.plan_json(arguments + kDevice)["farskip"]["memory_bytes"];
  };
  const json two = memory("--ranks 2 parallel.zero=0"), zero = memory("--ranks 2"),
             alone = memory("--ranks 1 parallel.expert=1 parallel.zero=0");
  CHECK(two["weights"] < alone["weights"]);
  CHECK(two["moments"] == 2 * two["weights"].get<std::int64_t>());
  CHECK(zero["moments"] < two["moments"]);
  const json half = memory("--ranks 2 precision=bf16");
  CHECK(half["activations"] < zero["activations"]);
  // A copy of each matrix but the routers, beside the parameters.
  CHECK(half["weights"].get<double>() <= 1.5 * zero["weights"].get<double>());
  CHECK(half["weights"].get<double>() > 1.45 * zero["weights"].get<double>());
}

TEST_CASE("bf16 halves what travels") {
  const Folder f;
  const auto bytes = [&](const char* precision) {
    double sum = 0;
    const json plan = f.plan_json(fmt::format("--ranks 2 precision={}", precision) + kDevice);
    for (const json& c : plan["collectives"])
      if (c["scope"].get<std::string>().ends_with(".forward")) sum += c["bytes"].get<double>();
    return sum;
  };
  // The routing weights travel in f32.
  CHECK(bytes("bf16") > bytes("fp32") / 2);
  CHECK(bytes("bf16") < 0.55 * bytes("fp32"));
}

TEST_CASE("kernels are measured once and kept, and a table of costs takes their place") {
  const Folder f;
  const auto first = f.plan("--link 100MB/s");
  INFO(first.err);
  REQUIRE(first.status == 0);
  CHECK_THAT(first.err, ContainsSubstring("measuring the kernels of 3 of 4 layers"));
  CHECK_THAT(first.out, ContainsSubstring("FarSkip (full)"));
  const auto second = f.plan("--link 100MB/s");
  CHECK_THAT(second.err, ContainsSubstring("costs measured before"));
  CHECK(second.err.find("measuring") == std::string::npos);
  fs::path kept;
  for (const auto& entry : fs::directory_iterator(f.folder / "cache" / "farskip")) kept = entry.path();
  const std::string table = read_text_file(kept);
  const std::string with_key = (f.folder / "costs.txt").string();
  write_text_file(with_key, "a key of training\n" + table);
  CHECK(f.plan_json("--link 100MB/s --costs " + with_key)["step_seconds_farskip"] ==
        f.plan_json("--link 100MB/s --costs " + kept.string())["step_seconds_farskip"]);
  write_text_file(kept, "nonsense\n");
  CHECK_THAT(f.plan("--link 100MB/s").err, ContainsSubstring("measured again"));
}

TEST_CASE("what cannot be planned is refused with one clear message") {
  const Folder f;
  write_text_file(f.folder / "bad.txt", "key\nno\ttable\n");
  const struct {
    std::string arguments;
    int status;
    std::string message;
  } cases[] = {
      {"", 64, "--link 48GB/s"},
      {"--link 48", 64, "GB/s"},
      {"--link 1GB/s --latency soon", 64, "--latency 20us"},
      {"--ranks 3" + kDevice, 64, "multiple of 2"},
      {"--ranks -1" + kDevice, 64, "--ranks"},
      {"--ranks 16" + kDevice, 64, "train.global_batch"},
      {"--ranks 16 parallel.expert=16 train.global_batch=32" + kDevice, 64, "expert"},
      {"device=cpu precision=bf16 --link 1GB/s", 64, "precision"},
      {"--costs x" + kDevice, 64, "one of them"},
      {"--costs " + (f.folder / "none").string() + " --link 1GB/s", 66, "none"},
      {"--costs " + (f.folder / "bad.txt").string() + " --link 1GB/s", 65, "bad.txt"},
      {"--device-rate fast --link 1GB/s", 64, "400TFLOP/s,3TB/s"},
      {"--gpu b100", 64, "allowed: h100, h200, b200"},
      {"--gpu h100" + kDevice, 64, "one of them"},
      {"--ranks 16 train.global_batch=32 device=cuda", 64, "NVLink joins only 8"},
      {"farskip.layers=2-9" + kDevice, 64, "0 to 3"},
      {"train.stepz=1" + kDevice, 64, "stepz"},
  };
  for (const auto& c : cases) {
    CAPTURE(c.arguments);
    const auto result = f.plan(c.arguments);
    CHECK(result.status == c.status);
    CHECK_THAT(result.err, ContainsSubstring(c.message));
    CHECK(result.out.empty());
  }
}

TEST_CASE("what only a GPU can run is planned by the rates of a named one, and the plan says so") {
  const Folder f;
  CHECK(f.plan_json(kDevice)["gpu"].is_null());
  const json wide = f.plan_json("device=cuda"), low = f.plan_json("precision=bf16");
  for (const json* plan : {&wide, &low}) CHECK((*plan)["gpu"]["name"] == "h100");
  // Attained, so below the peaks of the data sheet, and not by much.
  const auto share = [](const json& plan, const char* rate, double peak) {
    return plan["gpu"][rate].get<double>() / peak;
  };
  for (const double of_peak :
       {share(wide, "flops_per_second", 66.9e12), share(low, "flops_per_second", 989e12),
        share(low, "memory_bytes_per_second", 3.35e12), share(low, "link_bytes_per_second", 450e9)}) {
    CHECK(of_peak > 0.5);
    CHECK(of_peak < 0.9);
  }
  CHECK(low["gpu"]["flops_per_second"] > wide["gpu"]["flops_per_second"]);
  CHECK(f.plan_json("device=cuda --gpu h100")["step_seconds_farskip"] == wide["step_seconds_farskip"]);
  CHECK(f.plan_json("--gpu b200 precision=bf16")["step_seconds_farskip"] < low["step_seconds_farskip"]);
  CHECK_THAT(f.plan("device=cuda").out,
             ContainsSubstring("by the rates that an NVIDIA H100 SXM (--gpu h100)"));
  // Beyond a host the link is asked for; within one it may be given.
  const json wider = f.plan_json("--ranks 16 train.global_batch=32 device=cuda --link 400Gb/s");
  CHECK(wider["gpu"]["link_bytes_per_second"] == 50e9);
  // A table or rates take the card's place.
  CHECK(f.plan_json("device=cuda" + kDevice)["gpu"].is_null());
}

TEST_CASE("a plan that does not fit the card names what makes it smaller, and the first of that does") {
  const auto plan_large = [](const std::string& arguments) {
    return test::run_command(FARSKIP_BINARY " plan " FARSKIP_SOURCE_DIR
                                            "/configs/models/deepseek_v2_lite.yaml --gpu h100 --ranks 8 "
                                            "model.num_hidden_layers=6 train.micro_batch=12 "
                                            "train.global_batch=192 " +
                             arguments)
        .out;
  };
  CHECK_THAT(plan_large(""), ContainsSubstring("this does not fit the card, which has 75 GiB; try "
                                               "schedule.recompute=full, a smaller train.micro_batch, "));
  CHECK_THAT(plan_large("schedule.recompute=full"), !ContainsSubstring("does not fit"));
}

TEST_CASE("each released model among the configurations is planned on eight ranks") {
  const std::set<std::string> expected{
      "deepseek_v2",  "deepseek_v2_lite", "deepseek_v3",   "instella_moe_16b", "llama4_maverick",
      "llama4_scout", "mixtral_8x7b",     "moonlight_16b", "olmoe_1b_7b",      "qwen3_30b_a3b"};
  std::set<std::string> planned;
  for (const auto& entry : fs::directory_iterator(FARSKIP_SOURCE_DIR "/configs/models")) {
    CAPTURE(entry.path());
    // Layers are of three kinds at most; a plan of all sixty takes ten seconds.
    const auto result = test::run_command(FARSKIP_BINARY " plan --json --quiet --ranks 8 " +
                                          entry.path().string() + " model.num_hidden_layers=6");
    INFO(result.err);
    REQUIRE(result.status == 0);
    const json plan = test::parse_json(result.out);
    for (const char* seconds : {"step_seconds_standard", "step_seconds_farskip"})
      CHECK(plan[seconds].get<double>() > 0.0);
    CHECK(!plan["collectives"].empty());
    planned.insert(entry.path().stem().string());
  }
  CHECK(std::includes(planned.begin(), planned.end(), expected.begin(), expected.end()));
}

TEST_CASE("one rank needs no link and has no communication") {
  const Folder f;
  const json plan = f.plan_json("parallel.expert=1 --device-rate 20GFLOP/s,10GB/s");
  CHECK(plan["ranks"] == 1);
  CHECK(plan["collectives"].empty());
  CHECK(plan["step_seconds_farskip"].get<double>() ==
        Catch::Approx(plan["farskip"]["compute_seconds"].get<double>()));
}

TEST_CASE("the wirings stand side by side") {
  const Folder f;
  const auto text = f.plan("--graph");
  CHECK(text.status == 0);
  CHECK_THAT(text.out, ContainsSubstring("3.attention reads all before, omits 2.routed"));
  CHECK_THAT(text.out, ContainsSubstring("| "));
  const json graph = f.plan_json("--graph" + kDevice)["graph"];
  CHECK(graph["standard"].size() == graph["farskip"].size());
  CHECK(graph["standard"] != graph["farskip"]);
  // Without a wiring in the configuration, the standard one is compared with the full one.
  CHECK(f.plan_json("--graph farskip.mode=off" + kDevice)["graph"] == graph);
}

/// A teacher that is only planned for: its configuration, and no weights.
void write_teacher(const fs::path& folder) {
  write_text_file(folder / "config.json", read_text_file(test::fixtures() / "deepseek_v2" / "config.json"));
}

constexpr const char* kDistill = R"(
name: small-distill
device: cpu
farskip: {mode: full}
train: {sequence_length: 32, global_batch: 4, micro_batch: 2}
distill: {teacher: TEACHER, freeze: [embedding]}
)";

TEST_CASE("a plan of a distillation has the teacher in its graph and is compared with two models") {
  const Folder f;
  fs::create_directories(f.folder / "teacher");
  write_teacher(f.folder / "teacher");
  std::string config = kDistill;
  config.replace(config.find("TEACHER"), 7, (f.folder / "teacher").string());
  write_text_file(f.folder / "small.yaml", config);
  const std::string rates = "--device-rate 20GFLOP/s,10GB/s";
  const json plan = f.plan_json(rates);
  const double joined = plan["peak_memory_bytes_graph_order"],
               teacher = plan["peak_memory_bytes_teacher_alone"],
               student = plan["peak_memory_bytes_student_alone"];
  CHECK(joined < teacher + student);
  CHECK(joined > student);
  CHECK(plan["farskip"]["memory_bytes"]["gradients"].get<double>() <
        plan["farskip"]["memory_bytes"]["weights"].get<double>() / 1.5);
  const auto text = f.plan(rates);
  CHECK_THAT(text.out, ContainsSubstring("teacher (off) and student in one graph"));
  const json kept = f.plan_json(rates + " distill.cache.path=kept");
  CHECK_FALSE(kept.contains("peak_memory_bytes_teacher_alone"));
  CHECK(kept["step_seconds_farskip"] < plan["step_seconds_farskip"]);
  const json low = f.plan_json(rates + " precision=bf16");
  CHECK(low["step_seconds_farskip"] < plan["step_seconds_farskip"]);
  CHECK(low["peak_memory_bytes_graph_order"].get<double>() < joined);

  const auto bench = test::run_command(fmt::format("{} bench distill {} --steps 1 --warmup 0 --json --quiet",
                                                   FARSKIP_BINARY, (f.folder / "small.yaml").string()));
  INFO(bench.err);
  REQUIRE(bench.status == 0);
  const json measured = test::parse_json(bench.out);
  CHECK(measured["planned_peak_memory_bytes"].get<double>() == Catch::Approx(joined).epsilon(0.02));
  CHECK(measured["separate_peak_memory_bytes"].get<double>() ==
        Catch::Approx(teacher + student).epsilon(0.02));
  const auto step = test::run_command(fmt::format("{} bench step {} --steps 1 --warmup 0 --json --quiet",
                                                  FARSKIP_BINARY, (f.folder / "small.yaml").string()));
  INFO(step.err);
  REQUIRE(step.status == 0);
  CHECK(test::parse_json(step.out)["planned_peak_memory_bytes"] == measured["planned_peak_memory_bytes"]);
  CHECK(test::parse_json(step.out)["ops"].contains("distill_loss_grad"));
}

TEST_CASE("sixty layers on 1,024 ranks are planned within a minute") {
  const Folder f;
  const auto start = std::chrono::steady_clock::now();
  const json plan = f.plan_json(
      "--ranks 1024 parallel.expert=64 model.n_routed_experts=64 model.num_hidden_layers=60 "
      "train.global_batch=2048" +
      kDevice);
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(60));
  CHECK(plan["collectives"].size() > 59 * 6);
}

}  // namespace
}  // namespace farskip
