// SPDX-License-Identifier: Apache-2.0
// Model folders that leave: the files beside the weights, hashes, values that must not be written.

#include "hub/hub_folder.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "checkpoint/training_checkpoint.h"
#include "farskip/comm/communicator.h"
#include "support/catch.h"
#include "support/json.h"
#include "support/models.h"
#include "support/states.h"
#include "support/support.h"

namespace farskip {
namespace {

using test::TemporaryFolder;

struct Model {
  explicit Model(const std::string& fixture) : config(read_hub_config(test::fixtures() / fixture)) {
    states = test::load_weights(test::fixtures() / fixture);
  }
  ModelConfig config;
  std::shared_ptr<States> states;
};

std::string tokenizer_text(const std::string& fixture) {
  return read_text_file(test::fixtures() / fixture / "tokenizer.json");
}

void flip_byte(const fs::path& path, std::size_t at) {
  std::string bytes = read_text_file(path);
  bytes[at] = static_cast<char>(bytes[at] ^ 1);
  write_text_file(path, bytes);
}

TEST_CASE(
    "what a process that died has left of a model folder is gone after the next one, and nothing else") {
  const TemporaryFolder to;
  const std::string dead = ".tmp-" + std::to_string(std::stoi(test::run_command("echo $$").out));
  const fs::path left = to / ("unfinished" + dead + "-0badc0de");
  fs::create_directory(left);
  write_text_file(left / "model-00002-of-00003.safetensors", "half");
  write_text_file(to / ("README.md" + dead), "another program's");
  const Model model("qwen3_moe");
  Companions companions;
  companions.texts["merges.txt"] = "#version: 0.2\n";
  write_hub_folder(to.path(), model.config, hub_sources(*model.states), DType::f32, companions);
  for (const char* name : {"config.json", "model.safetensors", "model.manifest.json", "merges.txt"})
    CHECK(fs::exists(to / name));
  CHECK_FALSE(fs::exists(left));
  CHECK(fs::exists(to / ("README.md" + dead)));
}

TEST_CASE("the files beside the weights travel as they are, and the others are named") {
  const TemporaryFolder from, to;
  const std::map<std::string, std::string> texts{{"tokenizer.json", tokenizer_text("tokenizer_qwen")},
                                                 {"tokenizer_config.json", "{\"model_max_length\": 64}"},
                                                 {"special_tokens_map.json", "{}"},
                                                 {"generation_config.json", "{\"eos_token_id\": [1, 2]}"},
                                                 {"chat_template.jinja", "{{ messages }}\n"}};
  for (const auto& [name, text] : texts) write_text_file(from / name, text);
  for (const char* name : {"README.md", "modeling.py", "optimizer.safetensors"})
    write_text_file(from / name, "x");
  for (const char* name : {"config.json", "model.safetensors", "model-00001-of-00002.safetensors",
                           "model.safetensors.index.json", "manifest.json", ".gitattributes"})
    write_text_file(from / name, "x");
  const Companions companions = read_companions(from.path());
  CHECK(companions.texts == texts);
  CHECK(companions.tokenizer.has_value());
  CHECK(companions.left_behind ==
        std::vector<std::string>{"README.md", "modeling.py", "optimizer.safetensors"});
  const Model model("qwen3_moe");
  write_hub_folder(to / "model", model.config, hub_sources(*model.states), DType::f32, companions);
  for (const auto& [name, text] : texts) CHECK(read_text_file(to / "model" / name) == text);
}

TEST_CASE("a file that travels must be what its name says, and no link") {
  const TemporaryFolder outside;
  write_text_file(outside / "secret", "root:x:0:0");
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                           "generation_config.json", "chat_template.jinja", "merges.txt"}) {
    CAPTURE(name);
    const TemporaryFolder folder;
    fs::create_symlink(outside / "secret", folder / name);
    CHECK_THROWS_WITH(read_companions(folder.path()),
                      ContainsSubstring(name) && ContainsSubstring("is a symbolic link"));
    fs::remove(folder / name);
    fs::create_directory(folder / name);
    CHECK_THROWS_AS(read_companions(folder.path()), IoError);
    fs::remove(folder / name);
    REQUIRE(::mkfifo((folder / name).c_str(), 0600) == 0);
    CHECK_THROWS_AS(read_companions(folder.path()), IoError);
    fs::remove(folder / name);
    write_text_file(folder / name, "caf\xe9");
    CHECK_THROWS_AS(read_companions(folder.path()), DataError);
    if (std::string(name).ends_with(".json")) {
      write_text_file(folder / name, "[1, 2]");
      CHECK_THROWS_WITH(read_companions(folder.path()), ContainsSubstring("an object is expected"));
    }
  }
  const TemporaryFolder folder;
  write_text_file(folder / "tokenizer.json", "{\"password\": \"x\"}");
  CHECK_THROWS_AS(read_companions(folder.path()), DataError);
}

TEST_CASE("a tokenizer of a kind that is not built travels, and says why it cannot be used") {
  const TemporaryFolder folder;
  const std::string text = R"({"version": "1.0", "model": {"type": "Unigram", "vocab": []}})";
  write_text_file(folder / "tokenizer.json", text);
  const Companions companions = read_companions(folder.path());
  CHECK(companions.texts.at("tokenizer.json") == text);
  CHECK_FALSE(companions.tokenizer.has_value());
  CHECK_THAT(companions.tokenizer_fault, ContainsSubstring("tokenizer.json") && ContainsSubstring("Unigram"));
}

TEST_CASE("with another tokenizer the files that describe the folder's own stay behind") {
  const TemporaryFolder folder;
  write_text_file(folder / "tokenizer.json", tokenizer_text("tokenizer_qwen"));
  write_text_file(folder / "chat_template.jinja", "{{ messages }}");
  const auto load = [](const char* name) {
    return Tokenizer::load(test::fixtures() / name / "tokenizer.json");
  };
  CHECK(read_companions(folder.path(), load("tokenizer_qwen")).texts.size() == 2);
  const Companions other = read_companions(folder.path(), load("tokenizer_llama3"));
  CHECK(other.texts.size() == 1);
  CHECK(other.tokenizer->json() == tokenizer_text("tokenizer_llama3"));
}

TEST_CASE(
    "texts end with what config.json and generation_config.json say, else with what the tokenizer says") {
  using Ids = std::vector<std::int64_t>;
  ModelConfig config;
  Companions companions;
  const auto generation = [&](const std::string& ids) {
    companions.texts["generation_config.json"] = "{\"eos_token_id\": " + ids + "}";
  };
  CHECK(find_end_tokens(config, companions).empty());
  companions.tokenizer = Tokenizer::load(test::fixtures() / "tokenizer_gpt2" / "tokenizer.json");
  const auto own = static_cast<std::int64_t>(companions.tokenizer->eos().value());
  CHECK(find_end_tokens(config, companions) == Ids{own});
  generation("null");
  CHECK(find_end_tokens(config, companions) == Ids{own});
  generation("[5, 7]");
  CHECK(find_end_tokens(config, companions) == Ids{5, 7});
  config.eos_tokens = {5};
  CHECK(find_end_tokens(config, companions) == Ids{5, 7});
  generation("5");
  config.eos_tokens = {5, 9};
  CHECK(find_end_tokens(config, companions) == Ids{5, 9});
  generation("7");
  CHECK_THROWS_WITH(find_end_tokens(config, companions),
                    ContainsSubstring("[5, 9] in config.json and [7] in generation_config.json"));
  config = {};
  config.vocab_size = 8;
  generation("[5, 8]");
  CHECK_THROWS_WITH(
      find_end_tokens(config, companions),
      ContainsSubstring("generation_config.json: eos_token_id: 8 is out of range; allowed: 0 to 7"));
  config.family = "olmoe";
  generation("50279");  // its config class has that, and this vocabulary has it not
  CHECK(find_end_tokens(config, companions) == Ids{own});
  config.family.clear();
  generation("null");
  CHECK(find_end_tokens(config, companions) == Ids{own});
  nlohmann::json file = test::parse_json(tokenizer_text("tokenizer_gpt2"));
  file["model"]["vocab"].erase("<|endoftext|>");
  file["added_tokens"] = {file["added_tokens"][0]};
  file["added_tokens"][0]["id"] = 5000;
  companions.tokenizer = Tokenizer::from_json(file.dump(), "far");
  CHECK(find_end_tokens({}, companions) == Ids{5000});  // the model below has no such token
  CHECK(find_end_tokens(config, companions).empty());
  for (const char* bad : {"-1", "\"5\"", "[1.5]", "{}", "99999999999"}) {
    CAPTURE(bad);
    generation(bad);
    CHECK_THROWS_WITH(find_end_tokens(config, companions), ContainsSubstring("is no token id"));
  }
}

TEST_CASE("what stands for an empty context is bos_token, else eos_token, else the end of a document") {
  Companions companions;
  companions.tokenizer = Tokenizer::load(test::fixtures() / "tokenizer_gpt2" / "tokenizer.json");
  const auto found = [&](const std::string& config) {
    companions.texts["tokenizer_config.json"] = config;
    return find_prefix_token(companions);
  };
  const auto id = [&](const char* token) { return companions.tokenizer->token_id(token); };
  REQUIRE(id("<|im_start|>"));
  CHECK(find_prefix_token(companions) == id("<|endoftext|>"));
  CHECK(found(R"({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})") == id("<|im_start|>"));
  CHECK(found(R"({"bos_token": {"content": "<|im_start|>", "lstrip": false}})") == id("<|im_start|>"));
  CHECK(found(R"({"bos_token": null, "eos_token": "<|im_end|>"})") == id("<|im_end|>"));
  CHECK(found(R"({"bos_token": "<s>"})") == id("<|endoftext|>"));  // which this tokenizer lacks
  CHECK_THROWS_AS(found("[]"), DataError);
}

TEST_CASE("a model that we wrote is read back only as it was written") {
  const Model model("deepseek_v2");
  Companions companions;
  companions.texts["chat_template.jinja"] = "{{ messages }}";
  for (const char* name :
       {"model.safetensors", "config.json", "chat_template.jinja", "model.manifest.json"}) {
    CAPTURE(name);
    const TemporaryFolder folder;
    const fs::path path = folder / "model";
    write_hub_folder(path, model.config, hub_sources(*model.states), DType::bf16, companions);
    CHECK(read_hub_config(path) == model.config);
    verify_hub_folder(path);
    verify_model_folder(path, make_self_communicator());
    write_text_file(path / "more.txt", "files of others do not matter");
    verify_hub_folder(path);
    flip_byte(path / name, fs::file_size(path / name) / 2);
    CHECK_THROWS_WITH(verify_hub_folder(path), ContainsSubstring(name));
    CHECK_THROWS_AS(verify_model_folder(path, make_self_communicator()), DataError);
    fs::remove(path / name);
    if (std::string(name) == "model.manifest.json")
      verify_hub_folder(path);
    else
      CHECK_THROWS_AS(verify_hub_folder(path), MissingInputError);
  }
}

TEST_CASE("biases that choose experts are not rounded where weights are") {
  const Model model("deepseek_v3");
  const std::string bias = "model.layers.1.mlp.gate.e_score_correction_bias";
  const TemporaryFolder folder;
  write_hub_folder(folder / "model", model.config, hub_sources(*model.states), DType::bf16, {});
  const SafetensorsFolder written(folder / "model");
  CHECK(written.find("model.layers.1.mlp.gate.weight").dtype == DType::bf16);
  REQUIRE(written.find(bias).dtype == DType::f32);
  const HostTensor ours = written.read(bias),
                   theirs = SafetensorsFolder(test::fixtures() / "deepseek_v3").read(bias);
  CHECK(std::memcmp(ours.bytes().data(), theirs.bytes().data(), ours.bytes().size()) == 0);
}

TEST_CASE("a rewired model brings the file by which transformers computes it, and a standard one does not") {
  Model model("qwen3_moe");
  const TemporaryFolder folder;
  write_hub_folder(folder / "standard", model.config, hub_sources(*model.states), DType::f32, {});
  CHECK_FALSE(fs::exists(folder / "standard" / "modeling_farskip.py"));
  for (const FarSkipMode mode : {FarSkipMode::full, FarSkipMode::ladder}) {
    const fs::path path = folder / std::string(name_of(farskip_mode_names, mode));
    model.config.farskip.mode = mode;
    write_hub_folder(path, model.config, hub_sources(*model.states), DType::f32, {});
    CHECK_THAT(read_text_file(path / "modeling_farskip.py"), ContainsSubstring("class FarSkipForCausalLM"));
    CHECK_THAT(read_text_file(path / "config.json"), ContainsSubstring("modeling_farskip.FarSkipConfig"));
    CHECK(read_hub_config(path) == model.config);
    CHECK_NOTHROW(verify_hub_folder(path));
    fs::remove(path / "modeling_farskip.py");
    CHECK_THROWS_AS(verify_hub_folder(path), MissingInputError);
  }
  Model unknown("instella_moe");  // a family that transformers does not have, whatever the wiring
  unknown.config.farskip.mode = FarSkipMode::off;
  write_hub_folder(folder / "instella", unknown.config, hub_sources(*unknown.states), DType::f32, {});
  CHECK(fs::exists(folder / "instella" / "modeling_farskip.py"));
  CHECK_THAT(read_text_file(folder / "instella" / "config.json"), ContainsSubstring("modeling_farskip"));
}

std::vector<HubSource> sources_of(const std::vector<ParameterSpec>& model, const ModelFolder& folder) {
  return hub_sources(model, rows_of(folder), [&](const ParameterSpec& spec, const std::string& tensor) {
    return stored_place(folder, spec, tensor);
  });
}

void check_same_tensors(const fs::path& written, const std::vector<ParameterSpec>& model,
                        const SafetensorsFolder& expected) {
  const SafetensorsFolder files(written);
  std::size_t count = 0;
  for (const ParameterSpec& spec : model) {
    std::vector<std::string> names;
    for (const HubPiece& piece : spec.pieces) names.push_back(piece.name);
    if (!spec.packed_transposed.empty()) names = {spec.packed_transposed};
    for (const std::string& name : names) {
      CAPTURE(name);
      CHECK(test::same_bits(files.read(name).view(), convert_dtype(expected.read(name), DType::f32).view()));
    }
    count += names.size();
  }
  CHECK(files.tensors().size() == count);
}

TEST_CASE("weights go from folder to folder without a change, in one file or in shards, packed or not") {
  for (const std::string& name : test::model_fixtures()) {
    CAPTURE(name);
    const Model model(name);
    const std::vector<ParameterSpec> specs = list_parameters(model.config);
    const SafetensorsFolder files(test::fixtures() / name);
    const ModelFolder source(files, specs);
    const TemporaryFolder folder;
    constexpr std::uint64_t most = 20'000;
    write_hub_folder(folder / "one", model.config, sources_of(specs, source), DType::f32, {});
    write_hub_folder(folder / "shards", model.config, sources_of(specs, source), DType::f32, {}, most);
    write_hub_folder(folder / "memory", model.config, hub_sources(*model.states), DType::f32, {});
    CHECK(read_text_file(folder / "memory" / "model.safetensors") ==
          read_text_file(folder / "one" / "model.safetensors"));
    std::vector<HubSource> packed;
    for (const StateSpec& state : model.states->specs())
      packed.push_back(test::source_of(state.name, model.states->at(state.name)));
    write_tensors(folder / "packed.safetensors", packed, DType::f32);
    const SafetensorsFolder packed_files(folder / "packed.safetensors");
    const ModelFolder packed_source(packed_files, specs);
    write_hub_folder(folder / "unpacked", model.config, sources_of(specs, packed_source), DType::f32, {});
    for (const char* written : {"one", "shards", "unpacked"}) {
      CAPTURE(written);
      check_same_tensors(folder / written, specs, files);
      CHECK(read_hub_config(folder / written) == model.config);
      verify_hub_folder(folder / written);
    }
    const SafetensorsFolder shards(folder / "shards");
    CHECK(shards.files().size() > 1);
    std::uint64_t total = 0;
    for (const SafetensorsFile& file : shards.files()) {
      std::uint64_t bytes = 0;
      for (const TensorInfo& info : file.tensors()) bytes += info.num_bytes;
      CHECK((bytes <= most || file.tensors().size() == 1));
      total += bytes;
    }
    const auto index = test::parse_json(read_text_file(folder / "shards" / "model.safetensors.index.json"));
    CHECK(index["metadata"]["total_size"] == total);
    CHECK(index["weight_map"].size() == shards.tensors().size());
  }
}

TEST_CASE("shards are hashed, in the way of another model, and gone after a failure") {
  Model model("qwen3_moe");
  const TemporaryFolder folder;
  const auto write = [&](const char* name) {
    write_hub_folder(folder / name, model.config, hub_sources(*model.states), DType::bf16, {}, 20'000);
  };
  write("model");
  const std::string second = SafetensorsFolder(folder / "model").files()[1].path().filename().string();
  CHECK(second.starts_with("model-00002-of-000"));
  fs::create_directory(folder / "other");
  fs::copy_file(folder / "model" / second, folder / "other" / second);
  CHECK_THROWS_WITH(write("other"), ContainsSubstring("holds a model already (" + second + ")"));
  flip_byte(folder / "model" / second, fs::file_size(folder / "model" / second) / 2);
  CHECK_THROWS_WITH(verify_hub_folder(folder / "model"), ContainsSubstring(second));
  test::values_of(*model.states, "model.norm.weight")[0] = std::nanf("");  // in the last shard
  CHECK_THROWS_WITH(write("bad"), ContainsSubstring("model.norm.weight"));
  CHECK_FALSE(fs::exists(folder / "bad"));
}

TEST_CASE("a hash file cannot name anything outside of its folder") {
  const Model model("qwen3_moe");
  const TemporaryFolder folder;
  const fs::path path = folder / "model";
  write_hub_folder(path, model.config, hub_sources(*model.states), DType::f32, {});
  fs::rename(path / "model.safetensors", folder / "moved");
  fs::create_symlink(folder / "moved", path / "model.safetensors");
  CHECK_THROWS_WITH(verify_hub_folder(path), ContainsSubstring("is a symbolic link"));
}

TEST_CASE("values that are not finite are not written, in whatever type") {
  const TemporaryFolder folder;
  Model model("qwen3_moe");
  float& value = test::values_of(*model.states, "model.norm.weight")[3];
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    value = bad;
    CHECK_THROWS_WITH(
        write_hub_folder(folder / "model", model.config, hub_sources(*model.states), DType::f32, {}),
        ContainsSubstring("model.norm.weight") && ContainsSubstring("not finite"));
    CHECK_FALSE(fs::exists(folder / "model"));
  }
  value = 3.4e38F;  // rounds to infinity
  CHECK_THROWS_WITH(
      write_hub_folder(folder / "bf16", model.config, hub_sources(*model.states), DType::bf16, {}),
      ContainsSubstring("beyond the range of bf16"));
  CHECK_FALSE(fs::exists(folder / "bf16" / "model.safetensors"));
  write_hub_folder(folder / "f32", model.config, hub_sources(*model.states), DType::f32, {});
}

TEST_CASE("a folder that could not be written whole keeps what it had, and nothing else") {
  const Model model("qwen3_moe");
  const TemporaryFolder folder;
  Companions companions;
  companions.texts["merges.txt"] = "#version: 0.2\n";
  companions.texts["none/vocab.json"] = "{}";  // in a folder that is not there: after the weights
  fs::create_directory(folder / "old");
  write_text_file(folder / "old" / "notes.txt", "mine");
  for (const char* name : {"old", "new/inner", "new/inner/"}) {
    CAPTURE(name);
    CHECK_THROWS_AS(
        write_hub_folder(folder / name, model.config, hub_sources(*model.states), DType::f32, companions),
        IoError);
  }
  CHECK_FALSE(fs::exists(folder / "new"));
  CHECK(std::distance(fs::directory_iterator(folder / "old"), fs::directory_iterator()) == 1);
  companions.texts.erase("none/vocab.json");
  write_hub_folder(folder / "old", model.config, hub_sources(*model.states), DType::f32, companions);
  verify_hub_folder(folder / "old");
}

TEST_CASE("a folder that cannot be looked into is no model") {
  const Model model("qwen3_moe");
  const TemporaryFolder folder;
  fs::create_symlink("loop", folder / "loop");
  CHECK_THROWS_AS(
      write_hub_folder(folder / "loop/out", model.config, hub_sources(*model.states), DType::f32, {}),
      IoError);
  fs::create_directory(folder / "closed");
  fs::permissions(folder / "closed", fs::perms::none);
  fs::permissions(folder.path(), fs::perms::all);
  const bool is_root = ::geteuid() == 0;  // who may look into every folder
  if (is_root) REQUIRE(::seteuid(65534) == 0);
  CHECK_THROWS_WITH(
      write_hub_folder(folder / "closed/out", model.config, hub_sources(*model.states), DType::f32, {}),
      ContainsSubstring("cannot look into this folder: Permission denied"));
  if (is_root) REQUIRE(::seteuid(0) == 0);
  fs::permissions(folder / "closed", fs::perms::owner_all);
}

TEST_CASE("a folder that holds any file of a model is not written to") {
  const Model model("qwen3_moe");
  Companions companions;
  companions.texts["chat_template.jinja"] = "{{ messages }}";
  for (const char* name : {"config.json", "model.safetensors", "model.safetensors.index.json",
                           "model.manifest.json", "chat_template.jinja", "metrics.jsonl", "checkpoints"}) {
    CAPTURE(name);
    const TemporaryFolder folder;
    fs::create_symlink("/nowhere", folder / name);
    CHECK_THROWS_AS(
        write_hub_folder(folder.path(), model.config, hub_sources(*model.states), DType::f32, companions),
        UsageError);
  }
}

TEST_CASE("a checkpoint without its manifest is no plain model, whatever way leads to it") {
  const TemporaryFolder folder;
  const Model model("qwen3_moe");
  for (const char* name : {"step-20", "step-20.tmp-1-ab", "step-0.damaged-1", "step-7.replaced-x"}) {
    CAPTURE(name);
    write_hub_folder(folder / name, model.config, hub_sources(*model.states), DType::f32, {});
    CHECK_THROWS_WITH(refuse_bare_checkpoint(folder / name), ContainsSubstring("without its manifest.json"));
    CHECK_THROWS_AS(verify_model_folder(folder / name, make_self_communicator()), DataError);
    fs::create_directory_symlink(folder / name, folder / (std::string("link-") + name));
    CHECK_THROWS_AS(refuse_bare_checkpoint(folder / (std::string("link-") + name)), DataError);
    CHECK_THROWS_AS(refuse_bare_checkpoint(folder.path() / name / "."), DataError);
  }
  for (const char* name : {"step-3.5-flash", "steps", "step-x", "model-step-20"}) {
    CAPTURE(name);
    fs::create_directory(folder / name);
    refuse_bare_checkpoint(folder / name);
  }
}

}  // namespace
}  // namespace farskip
