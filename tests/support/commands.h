// SPDX-License-Identifier: Apache-2.0
#pragma once
// The program itself, and what it makes.

#include "farskip/base/file.h"
#include "support/catch.h"
#include "support/support.h"

namespace farskip::test {

inline CommandResult farskip_command(const std::string& arguments) {
  return run_command(std::string(FARSKIP_BINARY) + " " + arguments);
}

/// A run from scratch of a few steps with a byte-level tokenizer; its run directory.
inline fs::path train_small_run(const TemporaryFolder& folder, const std::string& overrides = "") {
  std::string text;
  for (int i = 0; i < 400; ++i) text += fmt::format("the model reads line {} of the text\n", i % 7);
  write_text_file(folder / "text.txt", text);
  const std::string tokenizer = (folder / "tokenizer.json").string();
  if (!fs::exists(tokenizer))
    REQUIRE(farskip_command("data train-tokenizer " + (folder / "text.txt").string() +
                            " --vocab-size 300 --out " + tokenizer)
                .status == 0);
  write_text_file(folder / "run.yaml", fmt::format(R"(
run_dir: {0}/run
model: {{family: qwen3_moe, vocab_size: 300, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2,
        num_attention_heads: 4, num_key_value_heads: 2, head_dim: 8, num_experts: 4, num_experts_per_tok: 2,
        moe_intermediate_size: 16, max_position_embeddings: 64}}
data: {{text: [{0}/text.txt], tokenizer: {0}/tokenizer.json}}
train: {{steps: 2, sequence_length: 32, global_batch: 2, micro_batch: 2}}
checkpoint: {{every: 1, keep: 5}}
)",
                                                   folder.path().string()));
  const auto result = farskip_command("train " + (folder / "run.yaml").string() + " " + overrides);
  INFO(result.err);
  REQUIRE(result.status == 0);
  return folder / "run";
}

}  // namespace farskip::test
