// SPDX-License-Identifier: Apache-2.0
// A table of measured costs, as runs keep it.
#include "farskip/schedule/costs.h"
#include "fuzz.h"

using namespace farskip;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  fuzz::read_or_refuse([&] { CostTable::parse(CostTable::parse(fuzz::as_text(bytes, size)).text()); });
  return 0;
}
