// SPDX-License-Identifier: Apache-2.0
// tokenizer.json, and texts that such a tokenizer encodes.
#include "data/tokenizer.h"
#include "fuzz.h"

using namespace farskip;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  fuzz::read_or_refuse([&] {
    const Tokenizer tokenizer = Tokenizer::from_json(std::string(fuzz::as_text(bytes, size)), "fuzz");
    for (const char* text :
         {"", "the model's  12345 tokens\n\n", "\xc3\x89t\xc3\xa9 \xe6\xa8\xa1\xe5\x9e\x8b <|endoftext|>"})
      fuzz::read_or_refuse([&] {
        const auto ids = tokenizer.encode_with_special_tokens(text);
        for (const std::int32_t id : ids) fuzz::require(id >= 0 && id < tokenizer.vocab_size());
        tokenizer.decode(ids);
      });
  });
  return 0;
}
