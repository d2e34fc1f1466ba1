// SPDX-License-Identifier: Apache-2.0
// Model folders as commands read and write them.

#include <signal.h>
#include <sys/resource.h>

#include <set>

#include "farskip/base/file.h"
#include "farskip/model/parameters.h"
#include "farskip/tensor/safetensors.h"
#include "support/catch.h"
#include "support/commands.h"
#include "support/json.h"
#include "support/support.h"
#include "tensor/safetensors_writer.h"

namespace farskip {
namespace {

using nlohmann::json;
using test::farskip_command;
using test::TemporaryFolder;
using test::train_small_run;

std::string fixture(const std::string& name) {
  return (test::fixtures() / name).string();
}

/// A model folder to be changed: config.json and weights of a fixture.
fs::path copy_model(const TemporaryFolder& folder, const std::string& name) {
  const fs::path path = folder / "model";
  fs::create_directory(path);
  for (const char* file : {"config.json", "model.safetensors"})
    fs::copy_file(test::fixtures() / name / file, path / file);
  return path;
}

TEST_CASE("no command follows a link in a model folder, and nothing of its target gets out") {
  const TemporaryFolder folder;
  const std::string secret = R"({"version": "1.0", "model": {}, "key": "hunter2"})";
  write_text_file(folder / "secret", secret);
  const fs::path model = copy_model(folder, "qwen3_moe");
  write_text_file(folder / "train.yaml",
                  fmt::format("run_dir: {0}/run\ninit: {{from: {0}/model}}\ndata: {{tokens: [{1}/tokens]}}\n"
                              "train: {{steps: 1, sequence_length: 32, global_batch: 1, micro_batch: 1}}\n",
                              folder.path().string(), fixture("qwen3_moe")));
  const std::string m = model.string(), out = (folder / "out").string();
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json",
                           "chat_template.jinja", "special_tokens_map.json"}) {
    CAPTURE(name);
    fs::create_symlink(folder / "secret", model / name);
    for (const std::string& command :
         {"convert " + m + " " + out, "train " + (folder / "train.yaml").string(),
          "generate --model " + m + " --prompt x", "inspect --verify " + m}) {
      CAPTURE(command);
      const auto result = farskip_command(command);
      CHECK(result.status == 74);
      CHECK_THAT(result.err, ContainsSubstring(name) && ContainsSubstring("is a symbolic link"));
      CHECK_THAT(result.out + result.err, !ContainsSubstring("hunter2"));
    }
    CHECK_FALSE(fs::exists(folder / "out"));
    fs::remove(model / name);
  }
  for (const char* name : {"config.json", "model.safetensors"}) {
    CAPTURE(name);
    fs::rename(model / name, folder / "moved");
    fs::create_symlink(folder / "moved", model / name);
    for (const std::string& command : {"convert " + m + " " + out, "inspect " + m,
                                       "eval --model " + m + " --data " + fixture("qwen3_moe") + "/tokens"}) {
      const auto result = farskip_command(command);
      CHECK(result.status == 74);
      CHECK_THAT(result.err, ContainsSubstring(name) && ContainsSubstring("is a symbolic link"));
    }
    fs::remove(model / name);
    fs::rename(folder / "moved", model / name);
  }
  fs::create_directory_symlink(model, folder / "link");  // the folder itself is what the user named
  CHECK(farskip_command("inspect " + (folder / "link").string()).status == 0);
}

TEST_CASE("a report shows nothing that a link in a run directory leads to") {
  const TemporaryFolder folder;
  fs::create_directory(folder / "run");
  write_text_file(folder / "secret", "name: hunter2\n");
  write_text_file(folder / "run" / "metrics.jsonl", "{\"step\": 1, \"loss\": 2.0}\n");
  fs::create_symlink(folder / "secret", folder / "run" / "config.yaml");
  const auto result = farskip_command("report " + (folder / "run").string());
  CHECK(result.status == 0);
  CHECK_THAT(result.err, ContainsSubstring("config.yaml is left out"));
  CHECK_THAT(read_text_file(folder / "run" / "report.html"), !ContainsSubstring("hunter2"));
  fs::remove(folder / "run" / "metrics.jsonl");
  fs::create_symlink(folder / "secret", folder / "run" / "metrics.jsonl");
  CHECK(farskip_command("report " + (folder / "run").string()).status == 74);
}

TEST_CASE("convert takes the files beside the weights along and names what stays") {
  const TemporaryFolder folder;
  const fs::path model = copy_model(folder, "qwen3_moe");
  const std::string generation = "{\"eos_token_id\": [5, 7]}\n";
  write_text_file(model / "generation_config.json", generation);
  write_text_file(model / "chat_template.jinja", "{{ x }}");
  write_text_file(model / "README.md", "# model\n");
  const std::string out = (folder / "out").string();
  const auto result = farskip_command("convert " + model.string() + " " + out + " --json");
  REQUIRE(result.status == 0);
  CHECK(test::parse_json(result.out)["left_behind"] == json{"README.md"});
  CHECK_THAT(result.err, ContainsSubstring("not copied: README.md"));
  CHECK(read_text_file(out + "/generation_config.json") == generation);
  CHECK(read_text_file(out + "/chat_template.jinja") == "{{ x }}");
  CHECK(test::parse_json(read_text_file(out + "/config.json"))["eos_token_id"] == json{5, 7});
  REQUIRE(farskip_command("convert " + out + " " + out + "2").status == 0);
  CHECK(read_text_file(out + "2/generation_config.json") == generation);
}

TEST_CASE("damage in an exported model is found by every command that reads its weights") {
  const TemporaryFolder folder;
  const std::string out = (folder / "out").string(), data = " --data " + fixture("qwen3_moe") + "/tokens";
  REQUIRE(farskip_command("convert " + fixture("qwen3_moe") + " " + out).status == 0);
  REQUIRE(farskip_command("inspect --verify " + out).status == 0);
  std::string bytes = read_text_file(out + "/model.safetensors");
  bytes[300000] = static_cast<char>(bytes[300000] ^ 1);
  write_text_file(out + "/model.safetensors", bytes);
  for (const std::string& command :
       {"inspect --verify " + out, "eval --model " + out + data, "convert " + out + " " + out + "2"}) {
    CAPTURE(command);
    const auto result = farskip_command(command);
    CHECK(result.status == 65);
    CHECK_THAT(result.err, ContainsSubstring("model.safetensors") && ContainsSubstring("damaged"));
  }
  fs::remove(out + "/model.manifest.json");
  CHECK(farskip_command("inspect --verify " + out).status == 0);
}

TEST_CASE("a checkpoint without its manifest is refused by name") {
  const TemporaryFolder folder;
  const fs::path step = train_small_run(folder) / "checkpoints" / "step-2";
  CHECK(farskip_command("inspect --verify " + step.string()).status == 0);
  fs::remove(step / "manifest.json");
  const std::string s = step.string();
  for (const std::string& command :
       {"inspect " + s, "inspect --verify " + s, "convert " + s + " " + (folder / "out").string(),
        "generate --prompt x --model " + s,
        "eval --model " + s + " --data " + fixture("qwen3_moe") + "/tokens"}) {
    CAPTURE(command);
    const auto result = farskip_command(command);
    CHECK(result.status == 65);
    CHECK_THAT(result.err, ContainsSubstring("without its manifest.json"));
  }
  write_text_file(folder / "from.yaml",
                  fmt::format("run_dir: {0}/run2\ninit: {{from: {1}}}\ndata: {{text: [{0}/text.txt]}}\n"
                              "train: {{steps: 1, sequence_length: 32, global_batch: 1, micro_batch: 1}}\n",
                              folder.path().string(), s));
  CHECK(farskip_command("train " + (folder / "from.yaml").string()).status == 65);
}

TEST_CASE("a run from scratch knows the end of its texts, and an older one learns it on the way") {
  const TemporaryFolder folder;
  const fs::path run = train_small_run(folder);
  const auto eos = [&](int step) {
    const fs::path config = run / "checkpoints" / fmt::format("step-{}", step) / "config.json";
    return test::parse_json(read_text_file(config))["eos_token_id"];
  };
  CHECK(eos(2) == 0);  // <|endoftext|> of train-tokenizer
  CHECK(fs::exists(run / "checkpoints" / "step-2" / "tokenizer.json"));
  train_small_run(folder, "train.steps=3 'model.eos_token_id=[0,5]'");
  CHECK(eos(3) == json{0, 5});
}

TEST_CASE("convert refuses weights that are not finite, naming file and tensor") {
  const TemporaryFolder folder;
  const fs::path model = copy_model(folder, "qwen3_moe");
  std::string bytes = read_text_file(model / "model.safetensors");
  {
    const SafetensorsFile file(model / "model.safetensors");
    const TensorInfo& info = file.find("model.layers.1.mlp.experts.3.up_proj.weight");
    for (std::size_t i = 0; i < dtype_size(info.dtype); ++i)
      bytes[info.offset + 2 * dtype_size(info.dtype) + i] = '\xff';
  }
  write_text_file(model / "model.safetensors", bytes);
  for (const std::string& command : {"convert " + model.string() + " " + (folder / "out").string(),
                                     "inspect --verify " + model.string()}) {
    const auto result = farskip_command(command);
    CHECK(result.status == 65);
    CHECK_THAT(result.err,
               ContainsSubstring("model.safetensors: model.layers.1.mlp.experts.3.up_proj.weight"));
  }
  CHECK_FALSE(fs::exists(folder / "out"));
}

TEST_CASE("an output is never one of the inputs") {
  const TemporaryFolder folder;
  const fs::path model = copy_model(folder, "qwen3_moe");
  const std::string m = model.string(), tokens = (folder / "tokens.safetensors").string(),
                    text = (folder / "text.txt").string(), tokenizer = (folder / "tokenizer.json").string();
  HostTensor ids(DType::i32, Shape{1, 4});
  std::fill(ids.values<std::int32_t>().begin(), ids.values<std::int32_t>().end(), 3);
  write_safetensors(tokens, {{"tokens", ids.view()}});
  write_text_file(text, "some text\n");
  write_text_file(folder / "text.bin", "more text\n");
  REQUIRE(
      farskip_command("data train-tokenizer " + text + " --out " + tokenizer + " --vocab-size 258").status ==
      0);
  fs::create_hard_link(tokens, folder / "hard");
  const std::string forward = "forward --model " + m + " --tokens " + tokens + " --out ";
  for (const std::string& command :
       {forward + tokens, forward + (folder / "hard").string(), forward + m + "/model.safetensors",
        forward + m + "/config.json", "data train-tokenizer " + text + " --out " + text + " --vocab-size 258",
        "data tokenize " + (folder / "text.bin").string() + " --tokenizer " + tokenizer + " --out " +
            (folder / "text").string()}) {
    CAPTURE(command);
    const auto result = farskip_command(command);
    CHECK(result.status == 64);
    CHECK_THAT(result.err, ContainsSubstring("would overwrite"));
  }
  CHECK(read_text_file(text) == "some text\n");
  CHECK(farskip_command(forward + (folder / "new").string()).status == 0);
}

TEST_CASE("a conversion that fails leaves nothing in the way of the next one") {
  const TemporaryFolder folder;
  const fs::path model = copy_model(folder, "qwen3_moe");
  const auto weights = fs::file_size(model / "model.safetensors");
  write_text_file(model / "merges.txt", std::string(3 * weights + (1 << 20), 'x'));
  const std::string out = (folder / "new" / "out").string(),
                    command = "convert " + model.string() + " " + out;
  // The weights fit, and what is written after them does not; blocks are of 512 or 1024 bytes.
  const auto full =
      test::run_command(fmt::format("ulimit -f {}; {} {}", weights / 512 + 8, FARSKIP_BINARY, command));
  CHECK(full.status == 74);
  CHECK_THAT(full.err, ContainsSubstring("merges.txt: write failed"));
  CHECK_FALSE(fs::exists(folder / "new"));
  CHECK(farskip_command(command).status == 0);
}

/// The names in a folder.
std::set<std::string> names_in(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename().string());
  return names;
}

TEST_CASE(
    "a conversion that is killed leaves nothing that looks like a model, and the next one clears it away") {
  const TemporaryFolder folder;
  const fs::path out = folder / "out";
  const std::string convert = "convert --shard-size 50kB " + fixture("llama") + " ";
  const auto killed =
      test::run_command("FARSKIP_FAULT=convert.shard " FARSKIP_BINARY " " + convert + out.string());
  CHECK(killed.status == 128 + SIGKILL);
  const std::set<std::string> left = names_in(out);
  REQUIRE(left.size() == 1);
  CHECK_THAT(*left.begin(), ContainsSubstring("unfinished.tmp-"));
  CHECK(farskip_command("inspect " + out.string()).status != 0);
  REQUIRE(farskip_command(convert + out.string()).status == 0);
  REQUIRE(farskip_command(convert + (folder / "clean").string()).status == 0);
  CHECK(names_in(out) == names_in(folder / "clean"));

  const auto failed = test::run_command("FARSKIP_FAULT=convert.shard:error " FARSKIP_BINARY " " + convert +
                                        (folder / "new").string());
  CHECK(failed.status == 74);
  CHECK_FALSE(fs::exists(folder / "new"));
}

TEST_CASE("a teacher may be a config.json alone where no weights are needed: plan and bench") {
  const TemporaryFolder folder;
  fs::create_directory(folder / "teacher");
  fs::copy(test::fixtures() / "deepseek_v2" / "config.json", folder / "teacher" / "config.json");
  const std::string config = (folder / "distill.yaml").string();
  write_text_file(config,
                  fmt::format("name: d\nrun_dir: {0}/run\nfarskip: {{mode: full}}\n"
                              "distill: {{teacher: {0}/teacher}}\n"
                              "data: {{tokens: [{1}/deepseek_v2/tokens]}}\n"
                              "train: {{steps: 2, sequence_length: 16, global_batch: 2, micro_batch: 2}}\n",
                              folder.path().string(), test::fixtures().string()));
  for (const std::string& command :
       {"plan --device-rate 20GFLOP/s,10GB/s " + config, "bench distill --steps 1 --warmup 0 " + config,
        "bench step --steps 1 " + config}) {
    CAPTURE(command);
    const auto result = farskip_command(command);
    INFO(result.err);
    CHECK(result.status == 0);
  }
  const auto distill = farskip_command("distill " + config);
  CHECK(distill.status == 66);
  CHECK_THAT(distill.err, ContainsSubstring("teacher"));
}

TEST_CASE("the size of files of weights is asked for with its unit") {
  const TemporaryFolder folder;
  const std::string out = (folder / "out").string(), command = "convert " + fixture("llama") + " " + out;
  for (const char* bad : {"0B", "5", "5 GBs", "-1GB"}) {
    CAPTURE(bad);
    const auto result = farskip_command(command + " --shard-size='" + bad + "'");
    CHECK(result.status == 64);
    CHECK_THAT(result.err, ContainsSubstring("--shard-size") && ContainsSubstring("such as 5GB"));
  }
  REQUIRE(farskip_command(command + " --shard-size 50kB").status == 0);
  CHECK(fs::exists(out + "/model.safetensors.index.json"));
  CHECK_FALSE(fs::exists(out + "/model.safetensors"));
  CHECK(farskip_command("inspect --verify " + out).status == 0);
  REQUIRE(farskip_command("convert " + out + " " + out + "2").status == 0);
  REQUIRE(farskip_command("convert " + fixture("llama") + " " + out + "3").status == 0);
  CHECK(read_text_file(out + "2/model.safetensors") == read_text_file(out + "3/model.safetensors"));
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they keep memory of their own
TEST_CASE("convert and inspect --verify need the memory of a piece, not of the model") {
  const TemporaryFolder folder;
  json config = test::parse_json(read_text_file(test::fixtures() / "llama" / "config.json"));
  config["vocab_size"] = 4'000'000;  // a head and an embedding of 256 MB each
  fs::create_directory(folder / "model");
  write_text_file(folder / "model" / "config.json", config.dump());
  std::vector<TensorSpec> specs;
  for (const ParameterSpec& spec : list_parameters(read_hub_config(folder / "model")))
    for (const HubPiece& piece : spec.pieces) specs.push_back({piece.name, DType::bf16, piece.shape});
  SafetensorsWriter writer(folder / "model" / "model.safetensors", specs);
  for (const TensorInfo& info : writer.tensors())
    writer.write(info.name, std::vector<std::byte>(info.num_bytes));
  writer.finish();
  const std::string model = (folder / "model").string(), out = (folder / "out").string();
  for (const std::string& command :
       {"convert --dtype bf16 " + model + " " + out, "inspect --verify " + model}) {
    CAPTURE(command);
    const auto result = farskip_command(command);
    INFO(result.err);
    CHECK(result.status == 0);
    rusage most{};  // resident, with the libraries of GPUs; the weights in f32 are 1 GB
    REQUIRE(::getrusage(RUSAGE_CHILDREN, &most) == 0);
    CHECK(most.ru_maxrss < 700'000);
  }
  CHECK(read_text_file(out + "/model.safetensors") == read_text_file(model + "/model.safetensors"));
}
#endif

TEST_CASE("a config.json that says what no model can be is refused in one line") {
  const TemporaryFolder folder;
  const fs::path model = copy_model(folder, "qwen3_moe");
  const std::string config = read_text_file(model / "config.json"), m = model.string();
  const auto check = [&](const std::string& text, const std::string& message) {
    write_text_file(model / "config.json", text);
    for (const std::string& command :
         {"inspect " + m, "eval --model " + m + " --data " + fixture("qwen3_moe") + "/tokens"}) {
      CAPTURE(command, text);
      const auto result = farskip_command(command);
      CHECK(result.status == 65);
      CHECK_THAT(result.err, ContainsSubstring(message) && !ContainsSubstring("no family is called"));
    }
  };
  check("[]", "config.json:1:1: a list stands here; allowed: a map");
  json object = test::parse_json(config);
  const auto vocab_size = object["vocab_size"].get<int>();
  object["eos_token_id"] = json::array({0, vocab_size});
  check(object.dump(), fmt::format("eos_token_id[1]: {} is out of range; allowed: integer, 0 to {}",
                                   vocab_size, vocab_size - 1));
  write_text_file(model / "generation_config.json", fmt::format("{{\"eos_token_id\": {}}}", vocab_size));
  write_text_file(model / "config.json", config);
  const auto convert = farskip_command("convert " + m + " " + (folder / "out").string());
  CHECK(convert.status == 65);
  CHECK_THAT(convert.err, ContainsSubstring("generation_config.json: eos_token_id: "));
}

TEST_CASE("a path with bytes that are not UTF-8 is no reason to fail") {
  const TemporaryFolder folder;
  const fs::path odd = folder / "caf\xe9";
  fs::copy(test::fixtures() / "qwen3_moe", odd);
  const auto result = farskip_command("inspect --json " + odd.string());
  REQUIRE(result.status == 0);
  CHECK_THAT(test::parse_json(result.out)["path"].get<std::string>(), ContainsSubstring("caf\xef\xbf\xbd"));
  const auto tensors = farskip_command("inspect --json " + (odd / "model.safetensors").string());
  REQUIRE(tensors.status == 0);
  const json listed = test::parse_json(tensors.out);
  CHECK(listed["tensors"].size() == SafetensorsFile(odd / "model.safetensors").tensors().size());
  CHECK(listed["tensors"][0]["shape"].is_array());
}

TEST_CASE("convert makes a model of equal experts of a dense one, with wiring and element type") {
  const TemporaryFolder folder;
  const std::string dense = fixture("qwen3"), tokens = dense + "/reference.safetensors";
  const auto logits = [&](const std::string& model, const std::string& wiring) {
    const std::string out = (folder / "out.safetensors").string();
    fs::remove(out);
    REQUIRE(farskip_command("forward --tokens " + tokens + " --out " + out + " --model " + model + wiring)
                .status == 0);
    const HostTensor values = SafetensorsFile(out).read("logits");
    return std::vector<float>(values.values<float>().begin(), values.values<float>().end());
  };
  const auto apart = [](const std::vector<float>& a, const std::vector<float>& b) {
    float most = 0, largest = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      most = std::max(most, std::abs(a[i] - b[i]));
      largest = std::max(largest, std::abs(a[i]));
    }
    return most / largest;
  };
  const std::string equal = (folder / "equal").string(), noisy = (folder / "noisy").string();
  REQUIRE(farskip_command("convert " + dense + " " + equal + " --upcycle 8,2 --farskip full").status == 0);
  const auto described = test::parse_json(farskip_command("inspect --json --verify " + equal).out);
  CHECK(described["family"] == "qwen3_moe");
  CHECK(described["experts"] == 8);
  CHECK(described["experts_per_token"] == 2);
  CHECK(described["farskip"] == "full");
  CHECK(apart(logits(dense, " --farskip full"), logits(equal, "")) < 2e-5F);
  REQUIRE(farskip_command("convert " + dense + " " + noisy +
                          " --upcycle 8,2 --upcycle-noise 0.1 --seed 3 --dtype bf16")
              .status == 0);
  const float noise = apart(logits(dense, ""), logits(noisy, ""));
  CHECK(noise > 1e-3F);
  CHECK(noise < 0.5F);
}

}  // namespace
}  // namespace farskip
