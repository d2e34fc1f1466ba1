// SPDX-License-Identifier: Apache-2.0
// config.json of a model folder. What is read is written and read again to the same.
#include "farskip/model/model_config.h"
#include "fuzz.h"

using namespace farskip;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  static const fuzz::Folder folder;
  fuzz::read_or_refuse([&] {
    folder.write("config.json", fuzz::as_text(bytes, size));
    const ModelConfig config = read_hub_config(folder.path());
    folder.write("config.json", hub_config_text(config));
    fuzz::require(read_hub_config(folder.path()) == config);
  });
  return 0;
}
