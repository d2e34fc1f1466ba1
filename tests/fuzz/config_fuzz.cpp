// SPDX-License-Identifier: Apache-2.0
// A run's configuration in YAML. What is read is written out in full and read again to the same.
#include "farskip/config/run_config.h"
#include "fuzz.h"

using namespace farskip;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  fuzz::read_or_refuse([&] {
    ErrorList errors;
    const ConfigNode tree = parse_yaml_text(fuzz::as_text(bytes, size), "fuzz", errors);
    const RunConfig config = read_run_config(tree, errors);
    errors.throw_if_any();
    ErrorList again;
    RunConfig same = read_run_config(
        parse_yaml_text(resolved_yaml(config, "version", "commit", "machine"), "resolved", again), again);
    again.throw_if_any();
    same.file = config.file;  // which file it was, and whether that gave the name, is not written
    same.named_by_file = config.named_by_file;
    fuzz::require(same == config);
  });
  return 0;
}
