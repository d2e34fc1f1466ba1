// SPDX-License-Identifier: Apache-2.0
#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "farskip/tensor/safetensors.h"
#include "support/catch.h"
#include "support/support.h"
#include "tensor/safetensors_writer.h"
#include "tensor/strict_json.h"

namespace farskip {
namespace {

using test::TemporaryFolder;

void write_shard(const fs::path& path, const std::vector<std::pair<std::string, float>>& values) {
  std::vector<HostTensor> tensors;
  std::map<std::string, TensorView> views;
  for (const auto& [name, value] : values) {
    tensors.emplace_back(DType::f32, Shape{2});
    tensors.back().values<float>()[0] = tensors.back().values<float>()[1] = value;
    views.emplace(name, tensors.back().view());
  }
  write_safetensors(path, views);
}

void write_index(const TemporaryFolder& folder, const std::map<std::string, std::string>& weight_map) {
  write_text_file(folder / "model.safetensors.index.json",
                  nlohmann::json{{"metadata", {{"total_size", 8}}}, {"weight_map", weight_map}}.dump());
}

}  // namespace

TEST_CASE("a model opens from a folder, from an index with shards, and from one file") {
  const TemporaryFolder folder;
  write_shard(folder / "model.safetensors", {{"a", 1}, {"b", 2}});
  for (const fs::path& path : {folder.path(), folder / "model.safetensors"}) {
    const SafetensorsFolder model(path);
    CHECK(model.tensors().size() == 2);
    CHECK(model.read("b").values<float>()[1] == 2);
  }
  write_shard(folder / "s1", {{"b", 3}, {"d", 4}});
  write_shard(folder / "s2", {{"a", 5}, {"c", 6}});
  write_index(folder, {{"a", "s2"}, {"b", "s1"}, {"c", "s2"}, {"d", "s1"}});
  const SafetensorsFolder model(folder.path());
  REQUIRE(model.tensors().size() == 4);
  CHECK(model.tensors()[0]->name == "a");
  CHECK(model.tensors()[3]->name == "d");
  CHECK(model.files().size() == 2);
  CHECK(model.file_of("c").path() == folder / "s2");
  CHECK(model.read("d").values<float>()[0] == 4);
  CHECK(model.read_rows("c", 1, 1).values<float>()[0] == 6);
  CHECK_FALSE(model.contains("e"));
  CHECK_THROWS_WITH(model.find("e"), ContainsSubstring("no tensor \"e\""));
}

TEST_CASE("an index that disagrees with its shards is refused, naming the tensor") {
  const TemporaryFolder folder;
  write_shard(folder / "s1", {{"a", 1}, {"b", 2}});
  write_shard(folder / "s2", {{"c", 3}});
  const auto refusal = [&](const std::map<std::string, std::string>& weight_map) {
    write_index(folder, weight_map);
    try {
      SafetensorsFolder model(folder.path());
    } catch (const UserError& error) {
      return std::string(error.what());
    }
    return std::string("(loaded)");
  };
  CHECK(refusal({{"a", "s1"}, {"b", "s1"}, {"c", "s2"}}) == "(loaded)");
  CHECK_THAT(refusal({{"a", "s1"}, {"b", "s1"}, {"c", "s2"}, {"x", "s1"}}),
             ContainsSubstring("\"x\" is not in s1"));
  CHECK_THAT(refusal({{"a", "s1"}, {"b", "s2"}, {"c", "s2"}}), ContainsSubstring("\"b\" is not in s2"));
  CHECK_THAT(refusal({{"a", "s1"}, {"c", "s2"}}), ContainsSubstring("\"b\" of s1 is not in the index"));
  CHECK_THAT(refusal({{"a", "s1"}, {"b", "s1"}, {"c", "s3"}}), ContainsSubstring("s3: no such file"));
  write_shard(folder / "s2", {{"c", 3}, {"model.layers.0.self_attn.rotary_emb.inv_freq", 1}});
  CHECK(refusal({{"a", "s1"}, {"b", "s1"}, {"c", "s2"}}) == "(loaded)");  // derived: no reader needs it
  write_shard(folder / "s2", {{"c", 3}, {"a", 1}});
  CHECK_THAT(refusal({{"a", "s1"}, {"b", "s1"}, {"c", "s2"}}),
             ContainsSubstring("\"a\" is in two files, s1 and s2"));
}

TEST_CASE("an index cannot name anything outside its folder") {
  const TemporaryFolder folder, outside;
  write_shard(outside / "s1", {{"a", 1}});
  write_shard(folder / "s1", {{"a", 1}});
  fs::create_directory(folder / "sub");
  write_shard(folder / "sub/s1", {{"a", 1}});
  fs::create_symlink(outside / "s1", folder / "link");
  REQUIRE(::mkfifo((folder / "fifo").c_str(), 0600) == 0);
  const std::string up = "../" + outside.path().filename().string() + "/s1";
  const std::vector<std::pair<std::string, std::string>> rows{
      {up, "not allowed as a file name"},
      {(outside / "s1").string(), "not allowed as a file name"},
      {"sub/s1", "not allowed as a file name"},
      {"./s1", "not allowed as a file name"},
      {std::string("s1\0x", 4), "\"s1\\x00x\" is not allowed as a file name"},
      {".", "not allowed as a file name"},
      {"..", "not allowed as a file name"},
      {"", "not allowed as a file name"},
      {std::string(256, 's'), "not allowed as a file name"},
      {"link", "is a symbolic link"},
      {"fifo", "not a regular file"},
      {"sub", "not a regular file"},
  };
  for (const auto& [name, message] : rows) {
    INFO(printable(name));
    write_index(folder, {{"a", name}});
    CHECK_THROWS_WITH(SafetensorsFolder(folder.path()), ContainsSubstring(message));
  }
  write_index(folder, {{"a", "s1"}});
  CHECK_NOTHROW(SafetensorsFolder(folder.path()));
}

TEST_CASE("a model file or an index that is itself a link is refused") {
  const TemporaryFolder folder, outside;
  write_shard(outside / "s1", {{"a", 1}});
  CHECK_THROWS_AS(SafetensorsFolder(folder.path()), MissingInputError);
  CHECK_THROWS_AS(SafetensorsFolder(folder / "absent.safetensors"), MissingInputError);
  fs::create_symlink(outside / "s1", folder / "model.safetensors");
  CHECK_THROWS_WITH(SafetensorsFolder(folder.path()), ContainsSubstring("is a symbolic link"));
  // A path that the user typed is followed.
  CHECK_NOTHROW(SafetensorsFolder(folder / "model.safetensors"));
  fs::create_symlink(folder / "dangling", folder / "model.safetensors.index.json");
  CHECK_THROWS_WITH(SafetensorsFolder(folder.path()), ContainsSubstring("is a symbolic link"));
}

TEST_CASE("a broken index is refused") {
  const TemporaryFolder folder;
  write_shard(folder / "s1", {{"a", 1}});
  const std::vector<std::pair<std::string, std::string>> rows{
      {"", "not valid JSON"},
      {std::string("{\"weight_map\":{\"a\":\"s1\"}}\0x", 27), "NUL byte"},
      {"[]", "an object `weight_map`"},
      {"{\"weight_map\":[]}", "an object `weight_map`"},
      {"{\"weight_map\":{\"a\":1}}", "file of tensor \"a\" is not a string"},
      {"{\"weight_map\":{\"a\":\"s1\",\"a\":\"s1\"}}", "key \"a\" given twice"},
      {"{\"weight_map\":{\"a\":\"s1\"}", "not valid JSON"},
      {"{\"weight_map\":" + std::string(1000, '[') + "}", "nested deeper than"},
      {"{\"weight_map\":{\"a\":\"\xff\"}}", "UTF-8"},
  };
  for (const auto& [text, message] : rows) {
    INFO(printable(text));
    write_text_file(folder / "model.safetensors.index.json", text);
    CHECK_THROWS_WITH(SafetensorsFolder(folder.path()), ContainsSubstring(message));
  }
}

TEST_CASE("strict JSON tells equal keys of one object from those of two") {
  CHECK(parse_strict_json("{\"a\":{\"x\":1},\"b\":[{\"x\":2},{\"x\":3}]}", "t")["b"][1]["x"] == 3);
  CHECK_THROWS_WITH(parse_strict_json("{\"a\":{\"x\":1,\"x\":2}}", "t"),
                    ContainsSubstring("key \"x\" given twice"));
  CHECK_NOTHROW(parse_strict_json("[[[0]]]", "t", 3));
  CHECK_THROWS_WITH(parse_strict_json("[[[[0]]]]", "t", 3), ContainsSubstring("deeper than 3"));
}

}  // namespace farskip
