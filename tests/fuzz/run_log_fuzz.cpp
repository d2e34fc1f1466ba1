// SPDX-License-Identifier: Apache-2.0
// metrics.jsonl of a run, as `farskip report` reads it.
#include "fuzz.h"
#include "report/run_log.h"

using namespace farskip;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  static const fuzz::Folder folder;
  folder.write("metrics.jsonl", fuzz::as_text(bytes, size));
  fuzz::read_or_refuse([&] { read_run_log(folder.path()); });
  return 0;
}
