// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/checkpoint_files.h"
#include "checkpoint/training_state.h"
#include "cli/command_inputs.h"
#include "cli/record.h"
#include "data/token_file.h"
#include "data/tokenizer.h"
#include "farskip/tensor/safetensors.h"
#include "hub/companions.h"

namespace farskip {
namespace {

void print_facts(const Record& facts) {
  for (const auto& item : facts.items())
    fmt::print("{:20} {}\n", item.key(),
               item.value().is_string() ? item.value().get<std::string>() : item.value().dump());
}

Record describe_model(const fs::path& folder) {
  const ModelConfig config = read_hub_config(folder);
  const ParameterCounts counts = count_parameters(config);
  return {{"kind", "model"},
          {"family", config.family},
          {"parameters", counts.total},
          {"active_parameters", counts.active},
          {"layers", config.num_layers},
          {"hidden_size", config.hidden_size},
          {"experts", config.moe.num_experts},
          {"experts_per_token", config.moe.top_k},
          {"vocab_size", config.vocab_size},
          {"farskip", wiring_name(config.farskip)},
          {"farskip_layers", describe(config.farskip.layers)}};
}

// Headers and sizes alone.
void check_weights(const fs::path& folder) {
  const SafetensorsFolder weights(folder);
}

// Everything is read: hashes where there are any, every element of the weights, the files beside them.
void verify_model(const std::string& path, const Logger& logger) {
  const OpenedModel model(path, logger);
  refuse_not_finite(model);
  find_end_tokens(model.config, read_companions(model.folder));
}

Record describe_checkpoint(const fs::path& folder, bool verify, const Logger& logger) {
  if (verify) verify_model(folder.string(), logger);  // hashes too
  const Checkpoint checkpoint = open_checkpoint(folder, Verify::layout);
  if (verify) parse_state(checkpoint.state(), checkpoint.step(), (folder / "manifest.json").string());
  for (const std::string& stray : checkpoint.strays())
    logger.warning("{}: is no part of the checkpoint", (folder / printable(stray)).string());
  Record o = describe_model(folder);
  o["kind"] = "checkpoint";
  o["step"] = checkpoint.step();
  o["tensors"] = checkpoint.manifest().tensors.size();
  std::uint64_t bytes = 0;
  for (const auto& [name, file] : checkpoint.manifest().files) bytes += file.size;
  o["bytes"] = bytes;
  return o;
}

/// Tensor by tensor: a file may hold millions.
void print_tensors(const std::string& path, bool verify, bool as_json) {
  const SafetensorsFile file(path);
  Record o{{"kind", "safetensors"}, {"bytes", file.size()}, {"hash", file.hash()}, {"path", path}};
  if (verify) o["verified"] = true;
  if (!as_json) {
    print_facts(o);
    for (const TensorInfo& t : file.tensors())
      fmt::print("  {:60} {:5} {}\n", t.name, dtype_name(t.dtype), t.shape.text());
    return;
  }
  std::string text = json_text(o);
  text.back() = ',';  // instead of the closing brace
  fmt::print("{}\"tensors\":[", text);
  const char* separator = "";
  for (const TensorInfo& t : file.tensors()) {
    fmt::print("{}{}", separator,
               json_text({{"name", t.name}, {"dtype", dtype_name(t.dtype)}, {"shape", t.shape.dims()}}));
    separator = ",";
  }
  fmt::print("]}}\n");
}

Record describe_tokens(const std::string& prefix, bool verify) {
  const TokenFile file(prefix);
  if (verify) file.check_token_range(std::int64_t{1} << 31);
  return {{"kind", "tokens"},
          {"documents", file.num_documents()},
          {"tokens", file.num_tokens()},
          {"dtype", std::string(token_type_name(file.type()))}};
}

Record describe_tokenizer(const std::string& path) {
  const Tokenizer tokenizer = Tokenizer::load(path);
  Record o{{"kind", "tokenizer"}, {"vocab_size", tokenizer.vocab_size()}};
  o["end_token"] = nullptr;
  if (const std::optional<std::int32_t> end = tokenizer.eos()) {
    o["end_token"] = tokenizer.token_bytes(*end);
    o["end_token_id"] = *end;
  }
  o["bytes_without_token"] = tokenizer.bytes_without_token();
  return o;
}

Record describe(const std::string& path, bool verify, const Logger& logger) {
  const fs::path p(path);
  if (fs::is_directory(p) && is_checkpoint(p)) return describe_checkpoint(p, verify, logger);
  if (fs::is_directory(p)) {
    const fs::path folder = resolve_model_folder(path, logger);
    if (is_checkpoint(folder)) return describe_checkpoint(folder, verify, logger);
    if (verify)
      verify_model(path, logger);
    else
      check_weights(folder);
    return describe_model(folder);
  }
  const bool suffixed = p.extension() == ".bin" || p.extension() == ".idx";
  const std::string prefix = suffixed ? fs::path(p).replace_extension().string() : path;
  if (fs::exists(prefix + ".idx") || suffixed) return describe_tokens(prefix, verify);
  if (!fs::exists(p)) throw MissingInputError(fmt::format("{}: no such file or folder", path));
  if (p.extension() == ".json") return describe_tokenizer(path);
  throw DataError(
      fmt::format("{}: not a model folder, checkpoint, tokenizer.json, .safetensors or token file", path));
}

ExitCode run(const std::string& path, bool verify, const CommonOptions& common) {
  if (fs::path(path).extension() == ".safetensors" && !fs::is_directory(path)) {
    print_tensors(path, verify, common.json);
    return ExitCode::ok;
  }
  Record o = describe(path, verify, common.logger());
  o["path"] = path;
  if (verify) o["verified"] = true;
  print_result(o, print_facts, common);
  return ExitCode::ok;
}

}  // namespace

void add_inspect(Subcommand& root) {
  struct Options {
    std::string path;
    bool verify = false;
  };
  auto o = std::make_shared<Options>();
  Subcommand sub =
      root.add("inspect", "Show what a checkpoint, model, tokenizer, safetensors or token file holds");
  sub.positional("PATH", o->path, "File, folder or token file prefix");
  sub.flag("--verify", o->verify, "Read everything and check hashes and values");
  sub.run([o](const CommonOptions& common) { return run(o->path, o->verify, common); });
}

}  // namespace farskip
