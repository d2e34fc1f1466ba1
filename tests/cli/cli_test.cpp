// SPDX-License-Identifier: Apache-2.0
// The program as a person uses it: whole commands, exit codes, messages.

#include <map>
#include <sstream>

#include "farskip/base/file.h"
#include "farskip/tensor/safetensors.h"
#include "support/catch.h"
#include "support/json.h"
#include "support/support.h"

namespace farskip {
namespace {

using test::run_command;

std::string fixture(const std::string& name) {
  return (test::fixtures() / name).string();
}
test::CommandResult farskip_command(const std::string& arguments) {
  return run_command(fmt::format("{} {}", FARSKIP_BINARY, arguments));
}

struct Mistake {
  std::string arguments;
  int status;
  std::string message;
};

TEST_CASE("mistakes end with one clear message and the documented exit code") {
  const test::TemporaryFolder folder;
  const std::string tmp = folder.path().string(), model = fixture("deepseek_v2"), dense = fixture("llama");
  write_text_file(folder / "broken.safetensors", "\x10");
  fs::create_symlink("loop", folder / "loop");
  write_text_file(folder / "latin1.txt", "caf\xe9");
  write_text_file(folder / "typo.yaml", "trian: {steps: 3}\n");
  write_text_file(folder / "run.yaml", "init: {from: " + model + "}\n");
  write_text_file(folder / "lr small.yaml", "init: {from: " + model + "}\n");
  write_text_file(folder / "text.txt", "some text\n");
  const std::string tokenizer = fixture("tokenizer_gpt2") + "/tokenizer.json",
                    tasks = fixture("tasks") + "/small.jsonl";
  write_text_file(
      folder / "data.yaml",
      "device: cpu\nmodel: {family: qwen3_moe, vocab_size: 2048, hidden_size: 32, num_hidden_layers: 1, "
      "num_attention_heads: 2, num_key_value_heads: 1, num_experts: 2, num_experts_per_tok: 1, "
      "moe_intermediate_size: 16}\nrun_dir: " +
          tmp + "/run\ntrain: {steps: 1, sequence_length: 8, global_batch: 1}\n");
  std::filesystem::create_directory(folder / "a run");
  write_text_file(folder / "a run" / "config.yaml", "");
  const std::vector<Mistake> mistakes{
      {"", 64, "subcommand"},
      {"trian", 64, "'trian' is not a command; allowed: train, distill"},
      {"data tokenise", 64, "not a command of data; allowed: train-tokenizer, tokenize"},
      {"train", 64, "CONFIG"},
      {"train " + tmp + "/none.yaml", 66, "none.yaml"},
      {"train " + tmp + "/typo.yaml", 64, "typo.yaml:1:1"},
      {"train " + tmp + "/typo.yaml", 64, "train"},
      {"inspect " + tmp + "/none", 66, "no such file"},
      {"inspect " + tmp + "/broken.safetensors", 65, "broken.safetensors"},
      {"inspect " + tmp + "/latin1.txt", 65, "not a model folder"},
      {"data train-tokenizer " + tmp + "/latin1.txt --out " + tmp + "/t.json", 65, "offset 3"},
      {"data train-tokenizer " + tmp + "/latin1.txt --vocab-size 12 --out " + tmp + "/t.json", 64, "257"},
      {"data info " + tmp + "/none", 66, "none"},
      {"eval --model " + model + " --data " + tmp + "/none", 66, "none"},
      {"eval --model " + tmp + "/nowhere --data x", 66, "nowhere"},
      {"eval --model " + model, 64, "give --data PREFIX, --tasks FILE, or both"},
      {"eval --model " + model + " --tasks " + tasks, 66,
       "holds no tokenizer.json; name one with --tokenizer"},
      {"eval --model " + model + " --tasks " + tmp + "/none.jsonl", 66, "none.jsonl"},
      {"eval --model " + model + " --tasks " + tasks + " " + tmp + "/text.txt", 65, "text.txt:1"},
      {"eval --model " + model + " --tasks " + tasks + " --tokenizer " + tokenizer, 65,
       "small.jsonl:1.choices[0]: token"},
      {"eval --model " + model + " --tasks " + tasks + " --max-sequences 3", 64,
       "--max-sequences requires --data"},
      {"eval --model " + model + " --data x --tokenizer y", 64, "--tokenizer requires --tasks"},
      {"eval --model " + model + " --data " + model + "/tokens --farskip sideways", 64, "attention"},
      {"convert " + model + " " + tmp + "/out --farskip delay", 64,
       "allowed: off, attention, mlp, full, ladder, parallel, shortcut, delay; mode delay with its number, "
       "delay:1 to delay:8"},
      {"eval --model " + model + " --data " + model + "/tokens --farskip full --layers 2-9", 64, "0 to 3"},
      {"eval --model " + model + " --data " + model + "/tokens --layers 2-3", 64, "--farskip"},
      {"eval --model " + model + " --data " + model + "/tokens --farskip full --layers 1,x", 64,
       "is not a list of layers"},
      {"forward --model " + model + " --tokens " + model + "/reference.safetensors --out /dev/null", 74,
       "is a device or pipe"},
      {"inspect " + model + " --json > /dev/full", 74, "standard output"},
      {"--version > /dev/full", 74, "standard output"},
      {"generate --model " + model + " --prompt x", 66, "tokenizer"},
      {"convert " + model + " " + tmp + "/out --dtype int4", 64, "bf16"},
      {"convert " + model + " " + model, 64, "holds a model already"},
      {"convert " + model + " " + tmp + "/out --upcycle 4,2", 64,
       "has experts already (deepseek_v2, 8 in a layer)"},
      {"convert " + dense + " " + tmp + "/out --upcycle 2,4", 64, "--upcycle \"2,4\": allowed: E,K"},
      {"convert " + dense + " " + tmp + "/out --upcycle 4", 64, "--upcycle \"4\": allowed: E,K"},
      {"convert " + dense + " " + tmp + "/out --upcycle 5000,2", 64, "1 to 4096"},
      {"convert " + dense + " " + tmp + "/out --upcycle 4,2,1", 64, "allowed: E,K"},
      {"convert " + dense + " " + tmp + "/out --upcycle 4,0", 64, "allowed: E,K"},
      {"convert " + dense + " " + tmp + "/out --upcycle-noise 0.1", 64, "--upcycle-noise requires --upcycle"},
      {"convert " + dense + " " + tmp + "/out --seed 2", 64, "--seed requires --upcycle"},
      {"convert " + dense + " " + tmp + "/out --upcycle 4,2 --upcycle-noise 2", 64, "out of range"},
      {"forward --model " + model + " --tokens " + model + "/model.safetensors --out " + tmp + "/o", 65,
       "tokens"},
      {"forward --device tpu --model " + model + " --tokens x --out y", 64, "allowed: auto, cpu, cuda"},
      {"forward --device cpu --precision bf16 --model " + model + " --tokens x --out y", 64,
       "the CPU computes in fp32"},
      {"bench step " + tmp + "/run.yaml --steps 010", 64,
       "--steps: \"010\" has a leading zero, which some read as octal; write 10; allowed: integer, 1 to "
       "1000000"},
      {"bench step " + tmp + "/run.yaml --steps 4294967297", 64, "--steps: \"4294967297\" is out of range"},
      {"plan " + tmp + "/run.yaml --ranks 2147483648", 64, "allowed: integer, 0 to 1048576"},
      {"generate --model x --prompt y --seed 99999999999999999999", 64, "does not fit into 64 bits"},
      {"generate --model x --prompt y --temperature nan", 64, "--temperature: \"nan\" is not finite"},
      {"generate --model x --prompt y --top-p 1.5", 64, "--top-p: \"1.5\" is out of range"},
      {"generate --model x --prompt y --min-p -0.1", 64, "--min-p: \"-0.1\" is out of range"},
      {"generate --model x --prompt y --repetition-penalty 0", 64, "allowed: number >= 0.01 and <= 100"},
      {"train " + tmp, 64, tmp + ": is a folder; a YAML file is expected\n"},
      {"train '" + tmp + "/a run'", 64, "a YAML file is expected, such as " + tmp + "/a run/config.yaml"},
      {"train " + tmp + "/data.yaml data.tokens=[x] train.steps 5", 64,
       "error: command line: train.steps 5: write train.steps=5\n"},
      {"train " + tmp + "/data.yaml data.tokens=[" + tmp + "/text.txt]", 66,
       "data.tokens: " + tmp + "/text.txt.bin: no such file, and " + tmp +
           "/text.txt is no token file; the key takes the PREFIX of token files, which 'farskip data "
           "tokenize "
           "TEXT --tokenizer tokenizer.json --out PREFIX' makes from text\n"},
      {"train " + tmp + "/data.yaml data.tokens=[" + model + "/tokens] data.validation=[" + tmp + "]", 66,
       "data.validation: " + tmp + ".bin: no such file, and " + tmp + " is no token file; the key takes"},
      {"train " + tmp + "/data.yaml data.text=[" + tmp + "/nope] data.tokenizer=" + tokenizer, 66,
       "data.text: " + tmp + "/nope: no such file or folder"},
      {"train " + tmp + "/data.yaml data.text=[" + tmp + "/text.txt] data.tokenizer=" + tmp + "/nope.json",
       66, "data.tokenizer: " + tmp + "/nope.json: no such file"},
      {"train " + tmp + "/data.yaml data.text=[" + tmp + "/text.txt] data.tokenizer=" + tmp + "/run.yaml", 65,
       "data.tokenizer: " + tmp +
           "/run.yaml: not a tokenizer.json: not valid JSON: parse error at line 1, column "},
      {"forward --model " + model + " --tokens " + model + "/tokens --out " + tmp + "/o", 65,
       "tokens: a token file, and --tokens takes a safetensors file with tensor tokens, [batch, sequence]"},
      {"forward --model " + model + " --tokens " + model + "/tokens.bin --out " + tmp + "/o", 65,
       "tokens.bin: a token file"},
      {"bench overlap " + tmp + "/data.yaml", 64, "bench overlap: one rank has no peer; use mpirun -np 2"},
      {"inspect " + model + "/config.json", 65, "config.json: not a tokenizer.json: \"model\" is missing"},
      {"train '~/run.yaml'", 64, "CONFIG: \"~/run.yaml\" begins with ~, which a shell expands"},
      {"train " + tmp + "/run.yaml 'run_dir=~/x'", 64, "run_dir: \"~/x\" begins with ~"},
      {"train " + tmp + "/run.yaml 'data.tokens=[$HOME/t]'", 64,
       "data.tokens[0]: \"$HOME/t\" names a variable"},
      {"eval --model '~' --data x", 64, "--model: \"~\" begins with ~"},
      {"data tokenize a '~/b' --tokenizer t --out x", 64, "TEXT: \"~/b\" begins with ~"},
      {"data tokenize a --tokenizer t --out '${DATA}/x'", 64, "--out: \"${DATA}/x\" names a variable"},
      {"convert '~/a' b", 64, "SRC: \"~/a\" begins with ~"},
      {"train '" + tmp + "/lr small.yaml'", 64,
       "name: \"lr small\", the name of this file without its ending"},
      {"convert " + model + " " + tmp + "/loop/out", 74, "cannot look into this folder: "},
      {"report", 64, "RUN_DIR"},
      {"report " + tmp + "/nowhere", 66, "nowhere"},
      {"report " + tmp, 66, "metrics.jsonl"},
  };
  for (const Mistake& m : mistakes) {
    CAPTURE(m.arguments);
    const auto result = farskip_command(m.arguments);
    CHECK(result.status == m.status);
    CHECK_THAT(result.err, ContainsSubstring(m.message));
    CHECK(result.out.empty());
  }
  CHECK_FALSE(std::filesystem::exists("~"));
  CHECK_FALSE(std::filesystem::exists(folder / "t.json"));
  CHECK_FALSE(std::filesystem::exists(folder / "out"));
}

TEST_CASE("an option that is given empty is refused by name, whatever it is for") {
  const test::TemporaryFolder folder;
  const std::string model = fixture("qwen3_moe"), tmp = folder.path().string();
  write_text_file(folder / "run.yaml", "init: {from: " + model + "}\n");
  const std::string eval = "eval --model " + model + " --data " + model + "/tokens ",
                    plan = "plan " + tmp + "/run.yaml ";
  const std::vector<std::pair<std::string, std::string>> commands{
      {eval, "--farskip"},
      {eval + "--farskip full ", "--layers"},
      {eval, "--device"},
      {"eval --data x ", "--model"},
      {"eval --model x ", "--data"},
      {plan, "--link"},
      {plan, "--costs"},
      {plan, "--gpu"},
      {plan, "--dump-graphs"},
      {"generate --prompt x --model " + model + " ", "--tokenizer"},
      {"report " + tmp + " ", "--out"},
      {"data train-tokenizer " + tmp + "/run.yaml ", "--out"},
  };
  for (const auto& [command, option] : commands) {
    const std::string space = command + option + " ''", equals = command + option + "=";
    for (const std::string& arguments : {space, equals}) {
      CAPTURE(arguments);
      const auto result = farskip_command(arguments);
      CHECK(result.status == 64);
      CHECK_THAT(result.err, ContainsSubstring(option));
      if (arguments == space)
        CHECK_THAT(result.err, ContainsSubstring("error: " + option + ": is empty; give"));
    }
  }
  const auto positional = farskip_command("convert " + model + " ''");
  CHECK(positional.status == 64);
  CHECK_THAT(positional.err, ContainsSubstring("DST: is empty"));
}

struct Surroundings {
  std::string before;  // the command, in a shell
  int status;
  std::string message;
};

TEST_CASE("what the environment asks for or forbids is said at the start") {
  const test::TemporaryFolder folder;
  const std::string model = fixture("qwen3_moe"), tmp = folder.path().string();
  write_text_file(folder / "run.yaml", "init: {from: " + model + "}\ndata: {tokens: [" + model +
                                           "/tokens]}\nrun_dir: " + tmp +
                                           "/run\ntrain: {steps: 1, sequence_length: 8, global_batch: 1}\n");
  const std::vector<Surroundings> all{
      {"OMP_NUM_THREADS=65536", 64, "OMP_NUM_THREADS is 65536, and at most 1024 threads compute"},
      {"FARSKIP_FAULT=ckpt.bgein", 64, "there is no failpoint ckpt.bgein; allowed: ckpt.begin, ckpt.shard"},
      {"FARSKIP_FAULT=ckpt.begin:x", 64, "expected name[:rank][:kill|stop|error|exit]"},
      {"ulimit -f 8;", 74, "File too large"},
      {"ulimit -f 8; trap '' XFSZ;", 74, "File too large"},
  };
  for (const Surroundings& s : all) {
    CAPTURE(s.before);
    const auto result = run_command(s.before + " " + FARSKIP_BINARY + " train " + tmp + "/run.yaml");
    CHECK(result.status == s.status);
    CHECK_THAT(result.err, ContainsSubstring(s.message));
    CHECK_FALSE(std::filesystem::exists(folder / "run" / "checkpoints" / "step-1"));
  }
  const auto many = run_command("OMP_NUM_THREADS=1000 " FARSKIP_BINARY " inspect " + model);
  CHECK(many.status == 0);
  CHECK_THAT(many.err, ContainsSubstring("its threads wait for each other"));
}

TEST_CASE("inspect shows how many tokens a tokenizer has and which one ends a document") {
  const auto shown = test::parse_json(
      farskip_command("inspect --json " + fixture("tokenizer_gpt2") + "/tokenizer.json").out);
  CHECK(shown["kind"] == "tokenizer");
  CHECK(shown["vocab_size"].get<int>() > 256);
  CHECK(shown["end_token"] == "<|endoftext|>");
  CHECK(shown["end_token_id"].get<int>() < shown["vocab_size"].get<int>());
}

TEST_CASE("a path of any bytes is read, and shown in JSON as far as it is text") {
  const test::TemporaryFolder folder;
  const std::filesystem::path odd = folder / "caf\xe9";
  std::filesystem::copy(test::fixtures() / "qwen3_moe", odd);
  const auto result = farskip_command("inspect --json '" + odd.string() + "'");
  CHECK(result.status == 0);
  CHECK(nlohmann::json::accept(result.out));
}

TEST_CASE("help and version answer on stdout with exit code 0") {
  CHECK_THAT(farskip_command("--version").out, ContainsSubstring("farskip 0."));
  for (const char* command : {"", "train", "forward", "eval", "generate", "convert", "inspect", "data",
                              "data tokenize", "bench step", "bench ops", "plan", "report", "doctor"}) {
    const auto result = farskip_command(std::string(command) + " --help");
    CAPTURE(command);
    CHECK(result.status == 0);
    CHECK_THAT(result.out, ContainsSubstring("--help"));
  }
}

TEST_CASE("report writes a page and, asked for, the comparison, and nothing where it cannot") {
  const test::TemporaryFolder folder;
  const std::string tmp = folder.path().string();
  write_text_file(folder / "metrics.jsonl", "{\"step\":1,\"loss\":2.5}\n{\"step\":2,\"lo");
  const auto result = farskip_command("report --json " + tmp);
  REQUIRE(result.status == 0);
  CHECK_THAT(result.err, ContainsSubstring("cut off"));
  const auto object = test::parse_json(result.out);
  CHECK(object["runs"][0]["loss"].get<double>() == 2.5);
  CHECK(object["page"] == tmp + "/report.html");
  CHECK_THAT(read_text_file(folder / "report.html"), ContainsSubstring("<!DOCTYPE html>"));
  CHECK(farskip_command("report " + tmp + " --out " + tmp + "/none/page.html").status == 74);
  CHECK(farskip_command("report " + tmp).status == 0);  // over its own page
  // Over nothing else: this costs a checkpoint, or the configuration of a run.
  std::filesystem::create_directories(folder / "checkpoints" / "step-5");
  for (const char* file : {"metrics.jsonl", "checkpoints/step-5/manifest.json", "my-run.yaml"}) {
    CAPTURE(file);
    if (!std::filesystem::exists(folder / file))
      write_text_file(folder / file, "something that is no page\n");
    const std::string before = read_text_file(folder / file);
    const auto refused = farskip_command("report " + tmp + " --out " + tmp + "/" + file);
    CHECK(refused.status == 64);
    CHECK_THAT(refused.err, ContainsSubstring("is no report page; name another file"));
    CHECK(read_text_file(folder / file) == before);
  }
  CHECK(farskip_command("report " + tmp + " " + tmp + "/nowhere --out " + tmp + "/b.html").status == 66);
  CHECK_FALSE(std::filesystem::exists(folder / "b.html"));
}

TEST_CASE("forward writes the reference's logits, loss and gradients under hub names") {
  const test::TemporaryFolder folder;
  const std::string model = fixture("qwen3_moe"), out = (folder / "out.safetensors").string();
  const auto result = farskip_command("forward --json --grads --farskip full --model " + model +
                                      " --tokens " + model + "/reference.safetensors --out " + out);
  REQUIRE(result.status == 0);
  const auto reference = test::parse_json(read_text_file(model + "/reference.json"));
  CHECK(test::parse_json(result.out)["loss"].get<double>() ==
        Catch::Approx(reference["loss.full"].get<double>()).epsilon(2e-6));
  const SafetensorsFile file(out), want(model + "/reference.safetensors"),
      weights(model + "/model.safetensors");
  CHECK(file.find("logits").shape == want.find("logits.full").shape);
  const HostTensor got_logits = file.read("logits"), want_logits = want.read("logits.full");
  for (std::size_t i = 0; i < got_logits.values<float>().size(); ++i)
    CHECK(got_logits.values<float>()[i] == Catch::Approx(want_logits.values<float>()[i]).margin(1e-5));
  for (const TensorInfo& info : weights.tensors()) CHECK(file.find("grad." + info.name).shape == info.shape);
}

TEST_CASE("bench ops times each op of a step, with products of experts that are right") {
  const auto result = farskip_command(
      "bench ops " FARSKIP_SOURCE_DIR
      "/configs/bench/cpu_moe.yaml --rounds 1 --json model.hidden_size=64 model.vocab_size=512 "
      "model.moe_intermediate_size=32 train.sequence_length=64 train.micro_batch=1 train.global_batch=1");
  REQUIRE(result.status == 0);
  std::map<std::string, nlohmann::json> results;
  std::istringstream lines(result.out);
  for (std::string line; std::getline(lines, line);) {
    const auto o = test::parse_json(line);
    if (o.contains("name")) results[o["name"]] = o;
  }
  CHECK(results.size() >= 50);
  int products = 0;
  for (const auto& [name, o] : results) {
    CAPTURE(name);
    CHECK(o["seconds"].get<double>() > 0);
    CHECK(o["of_ceiling"].get<double>() > 0);
    if (!o.contains("worst_error")) continue;
    CHECK(o["worst_error"].get<double>() < 1e-5);
    ++products;
  }
  CHECK(products == 12);  // up and down, each with two gradients, balanced and skewed
}

TEST_CASE("hub to hub conversion keeps every byte of the weights, and the wiring travels in the config") {
  const test::TemporaryFolder folder;
  const std::string model = fixture("deepseek_v2_yarn"), out = (folder / "out").string();
  REQUIRE(farskip_command("convert " + model + " " + out + " --farskip attention --layers 1-2").status == 0);
  const SafetensorsFile a(model + "/model.safetensors"), b(out + "/model.safetensors");
  REQUIRE(a.tensors().size() == b.tensors().size());
  for (const TensorInfo& info : a.tensors()) {
    const HostTensor x = a.read(info.name), y = b.read(info.name);
    CHECK(std::equal(x.bytes().begin(), x.bytes().end(), y.bytes().begin(), y.bytes().end()));
  }
  const auto described = test::parse_json(farskip_command("inspect --json --verify " + out).out);
  CHECK(described["farskip"] == "attention");
  CHECK(described["farskip_layers"] == "1-2");
}

TEST_CASE("a head beside a tied embedding must be that embedding, and a model has its weights") {
  const test::TemporaryFolder folder;
  std::filesystem::copy(fixture("qwen3_moe"), folder / "m", std::filesystem::copy_options::recursive);
  std::string config = read_text_file(folder / "m" / "config.json");
  const std::string untied = "\"tie_word_embeddings\": false";
  REQUIRE(config.find(untied) != std::string::npos);
  config.replace(config.find(untied), untied.size(), "\"tie_word_embeddings\": true");
  write_text_file(folder / "m" / "config.json", config);
  const std::string model = (folder / "m").string();
  const auto eval = farskip_command("eval --model " + model + " --data " + model + "/tokens");
  CHECK(eval.status == 65);
  CHECK_THAT(eval.err, ContainsSubstring("tie_word_embeddings"));
  std::filesystem::remove(folder / "m" / "model.safetensors");
  CHECK(farskip_command("inspect " + model).status == 66);
}

TEST_CASE("other wirings are asked for by name, travel in the config, and change what is computed") {
  const test::TemporaryFolder folder;
  const std::string model = fixture("qwen3_moe"), tokens = model + "/reference.safetensors";
  const auto logits = [&](const std::string& arguments) {
    const std::string out = (folder / "out.safetensors").string();
    std::filesystem::remove(out);
    REQUIRE(
        farskip_command("forward --tokens " + tokens + " --out " + out + " --model " + arguments).status ==
        0);
    const HostTensor values = SafetensorsFile(out).read("logits");
    return std::vector<float>(values.values<float>().begin(), values.values<float>().end());
  };
  std::vector<std::vector<float>> seen{logits(model)};
  for (const auto& wiring : std::vector<std::string>{"ladder", "shortcut", "delay:3"}) {
    const std::string out = (folder / wiring.substr(0, 5)).string();
    REQUIRE(farskip_command("convert " + model + " " + out + " --farskip " + wiring).status == 0);
    CHECK(test::parse_json(farskip_command("inspect --json " + out).out)["farskip"] == wiring);
    const std::vector<float> rewired = logits(out);
    CHECK(rewired == logits(model + " --farskip " + wiring));
    CHECK(std::find(seen.begin(), seen.end(), rewired) == seen.end());
    seen.push_back(rewired);
  }
}

TEST_CASE("train, eval, generate and convert work on one run directory from text") {
  const test::TemporaryFolder folder;
  const std::string tmp = folder.path().string();
  std::string text;
  for (int i = 0; i < 400; ++i) text += fmt::format("The value of item {} is {}.\n", i % 7, i % 5);
  write_text_file(folder / "corpus.txt", text);
  REQUIRE(
      farskip_command("data train-tokenizer " + tmp + "/corpus.txt --vocab-size 300 --out " + tmp + "/t.json")
          .status == 0);
  REQUIRE(farskip_command("data tokenize " + tmp + "/corpus.txt --tokenizer " + tmp + "/t.json --out " + tmp +
                          "/v")
              .status == 0);
  write_text_file(folder / "run.yaml", R"(
model: {family: qwen3_moe, vocab_size: 320, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2,
  num_attention_heads: 4, num_key_value_heads: 2, head_dim: 8, num_experts: 4, num_experts_per_tok: 2,
  moe_intermediate_size: 32, eos_token_id: 0}
farskip: {mode: off}
run_dir: )" + tmp + R"(/run
data: {text: [)" + tmp + R"(/corpus.txt], tokenizer: )" +
                                           tmp + R"(/t.json}
train: {steps: 40, sequence_length: 32, global_batch: 8, micro_batch: 8, learning_rate: {peak: 3.0e-3, warmup_steps: 4}}
)");
  const auto trained = farskip_command("train --json " + tmp + "/run.yaml");
  REQUIRE(trained.status == 0);
  CHECK(test::parse_json(trained.out)["step"] == 40);
  const auto eval =
      farskip_command("eval --json --sequence-length 32 --model " + tmp + "/run --data " + tmp + "/v");
  REQUIRE(eval.status == 0);
  CHECK(test::parse_json(eval.out)["loss"].get<double>() < 3.0);  // from ln 300 = 5.7
  const auto compared = farskip_command("eval --json --sequence-length 32 --model " + tmp +
                                        "/run --teacher " + tmp + "/run --data " + tmp + "/v");
  REQUIRE(compared.status == 0);
  CHECK(test::parse_json(compared.out)["kl"] == 0.0);
  const auto made = farskip_command("generate --max-tokens 8 --model " + tmp + "/run --prompt 'The value'");
  CHECK(made.status == 0);
  CHECK_THAT(made.out, ContainsSubstring("The value"));
  // Ids behind the tokenizer's are never drawn.
  CHECK(farskip_command("generate --max-tokens 60 --temperature 20 --model " + tmp + "/run --prompt 'The'")
            .status == 0);
  const auto with = [&](const std::string& options) {
    return farskip_command("generate --max-tokens 30 --model " + tmp + "/run --prompt 'The value' " + options)
        .out;
  };
  const std::string greedy = with(""), sampled = with("--temperature 1 --seed 2");
  CHECK(sampled != greedy);
  CHECK(with("--temperature 1 --seed 2") == sampled);
  CHECK(with("--temperature 1 --seed 3") != sampled);
  for (const char* narrow : {"--top-k 1", "--top-p 0", "--min-p 1"})
    CHECK(with(std::string("--temperature 1 --seed 2 ") + narrow) == greedy);
  CHECK(with("--repetition-penalty 5") != greedy);
  REQUIRE(
      farskip_command("convert " + tmp + "/run " + tmp + "/hub --dtype bf16 --farskip full --layers '[1]'")
          .status == 0);
  CHECK_THAT(farskip_command("inspect " + tmp + "/hub").out, ContainsSubstring("[1]"));
  const auto over = farskip_command("convert " + tmp + "/run " + tmp + "/run");
  CHECK(over.status == 64);
  CHECK_THAT(over.err, ContainsSubstring("is the folder of a run"));
  CHECK(test::parse_json(farskip_command("inspect --json " + tmp + "/hub").out)["parameters"].get<int>() >
        1000);
  // A checkpoint that is read is checked.
  const std::string newest = tmp + "/run/checkpoints/step-40/model.safetensors";
  std::string bytes = read_text_file(newest);
  bytes[bytes.size() - 5] ^= 1;
  write_text_file(newest, bytes);
  const auto flipped =
      farskip_command("eval --model " + tmp + "/run/checkpoints/step-40 --data " + tmp + "/v");
  CHECK(flipped.status == 65);
  CHECK_THAT(flipped.err, ContainsSubstring("model.safetensors"));
  // Out-of-vocabulary tokens are named, not run.
  const auto narrow =
      farskip_command("eval --model " + fixture("qwen3_moe") + " --data " + tmp + "/v --sequence-length 32");
  CHECK(narrow.status == 65);
  CHECK_THAT(narrow.err, ContainsSubstring("vocabulary"));
}

TEST_CASE("a full disk stops a save with the file's name and leaves the older checkpoints whole") {
  const test::TemporaryFolder folder;
  const std::string tmp = folder.path().string(), model = fixture("deepseek_v2");
  write_text_file(folder / "c.yaml", fmt::format(R"(
run_dir: {0}/run
init: {{from: {1}}}
farskip: {{mode: off}}
data: {{tokens: [{1}/tokens]}}
train: {{sequence_length: 32, global_batch: 2, micro_batch: 2}}
checkpoint: {{every: 1}}
)",
                                                 tmp, model));
  REQUIRE(farskip_command("train " + tmp + "/c.yaml train.steps=2").status == 0);
  // Files may grow to 50 KiB only; a checkpoint needs more. SIGXFSZ is ignored, so writes fail instead.
  const auto full = run_command("trap '' XFSZ; ulimit -f 100; " + std::string(FARSKIP_BINARY) + " train " +
                                tmp + "/c.yaml train.steps=4");
  CHECK(full.status == 74);
  CHECK_THAT(full.err, ContainsSubstring("safetensors"));
  CHECK_THAT(full.err, ContainsSubstring("write failed"));
  CHECK(farskip_command("inspect --verify " + tmp + "/run/checkpoints/step-2").status == 0);
  for (const auto& entry : std::filesystem::directory_iterator(tmp + "/run/checkpoints"))
    CHECK(entry.path().filename().string().find(".tmp") == std::string::npos);
}

}  // namespace
}  // namespace farskip
