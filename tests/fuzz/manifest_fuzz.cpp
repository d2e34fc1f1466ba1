// SPDX-License-Identifier: Apache-2.0
// manifest.json of a checkpoint, below its first line: that holds the hash of the rest, which is made to fit.
#include <nlohmann/json.hpp>

#include "checkpoint/checkpoint_files.h"
#include "fuzz.h"
#include "tensor/hash.h"

using namespace farskip;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  const std::string rest(fuzz::as_text(bytes, size));
  fuzz::read_or_refuse([&] {
    nlohmann::json state;
    const std::string text = "{\"manifest_xxh3_128\": \"" + hash_text(rest) + "\",\n" + rest;
    const CheckpointManifest manifest = parse_manifest(text, "fuzz", state);
    nlohmann::json again;
    fuzz::require(parse_manifest(print_manifest(manifest, state), "fuzz", again).tensors.size() ==
                  manifest.tensors.size());
    fuzz::require(again == state);
  });
  return 0;
}
