// SPDX-License-Identifier: Apache-2.0
#include "farskip/infer/generate.h"

#include <algorithm>

#include "farskip/backend/kernel.h"
#include "farskip/ops/inference_ops.h"

namespace farskip {
namespace {

/// Chooses tokens of one text by the op's kernel on the host.
class Chooser {
 public:
  Chooser(const SamplingOptions& options, std::int64_t vocab_size, std::int64_t num_ids,
          std::span<const std::int32_t> prompt)
      : options_(options),
        attributes_(Attributes::of(ops::Sample{num_ids})),
        seen_(DType::i32, {1, seen_words(vocab_size)}) {
    std::fill(seen_.bytes().begin(), seen_.bytes().end(), std::byte{0});
    mark_seen(seen_.values<std::int32_t>(), prompt);
  }

  /// The token after `counter` others, by logits f32[1, V].
  std::int32_t choose(const TensorView& logits, std::int64_t counter) {
    SamplingRow row = sampling_row(options_, counter);
    std::int32_t id = -1;
    const TensorView inputs[] = {logits,
                                 {row.real.data(), DType::f32, Shape{1, 4}},
                                 {row.whole.data(), DType::i32, Shape{1, 4}},
                                 options_.needs_seen() ? seen_.view() : TensorView{}};
    const TensorView outputs[] = {{&id, DType::i32, Shape{1}}, seen_.view()};
    cpu_kernel_table()
        .at("sample", DType::f32, DeviceKind::cpu)
        .run({.attributes = attributes_, .inputs = inputs, .outputs = outputs, .workspace = {}});
    if (id < 0) throw DataError("the model computes logits that are no finite numbers; look at its weights");
    return id;
  }

 private:
  SamplingOptions options_;
  Attributes attributes_;
  HostTensor seen_;
};

}  // namespace

Generated generate(InferenceEngine& engine, std::vector<std::int32_t> prompt, const GenerateOptions& options,
                   const std::function<void(std::int32_t)>& use) {
  const ModelConfig& config = engine.config();
  FARSKIP_CHECK(!prompt.empty(), "an empty prompt");
  const std::int64_t num_ids =
      options.num_ids == 0 ? config.vocab_size : std::min(options.num_ids, config.vocab_size);
  if (static_cast<std::int64_t>(prompt.size()) >= config.max_positions)
    throw UsageError(
        fmt::format("the prompt has {} tokens and the model's max_position_embeddings is {}, so there is no "
                    "room for a new token; shorten the prompt",
                    prompt.size(), config.max_positions));
  Chooser chooser(options.sampling, config.vocab_size, num_ids, prompt);
  Generated made;
  for (std::int64_t n = 0; n < options.max_tokens; ++n) {
    const auto length = static_cast<std::int64_t>(prompt.size());
    if (length >= config.max_positions) {
      made.end = GenerationEnd::context;
      return made;
    }
    // Attention is causal: what stands behind the last token does not change its logits, so lengths are
    // rounded up and few plans are made.
    std::vector<std::int32_t> padded = prompt;
    padded.resize(static_cast<std::size_t>(std::min((length + 63) / 64 * 64, config.max_positions)),
                  prompt.back());
    const TensorView logits = engine.logits(padded, static_cast<std::int64_t>(padded.size()));
    float* row = logits.as<float>() + (length - 1) * config.vocab_size;
    const std::int32_t id = chooser.choose({row, DType::f32, Shape{1, config.vocab_size}}, n);
    if (std::find(config.eos_tokens.begin(), config.eos_tokens.end(), id) != config.eos_tokens.end()) {
      made.end = GenerationEnd::end_token;
      return made;
    }
    prompt.push_back(id);
    made.ids.push_back(id);
    use(id);
  }
  return made;
}

}  // namespace farskip
