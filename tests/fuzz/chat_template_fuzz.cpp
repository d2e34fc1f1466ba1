// SPDX-License-Identifier: Apache-2.0
// A chat template, and what it makes of a conversation.
#include <nlohmann/json.hpp>

#include "fuzz.h"
#include "jinja/template.h"

using namespace farskip;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  static const nlohmann::ordered_json variables = {
      {"messages",
       {{{"role", "system"}, {"content", "Be brief."}},
        {{"role", "user"}, {"content", " \xc3\xa9 </think> a\n"}}}},
      {"add_generation_prompt", true},
      {"bos_token", "<s>"},
      {"eos_token", "</s>"}};
  fuzz::read_or_refuse(
      [&] { jinja::Template::parse(fuzz::as_text(bytes, size), "template").render(variables); });
  return 0;
}
