// SPDX-License-Identifier: Apache-2.0
// Text that is made of the fields of a record.
#include "cli/record.h"

#include <cmath>

#include "support/catch.h"

namespace farskip {
namespace {

const Record kRecord{{"name", "step {1}"},
                     {"seconds", 0.0123456},
                     {"all", {0.5, 0.25, 0.125}},
                     {"count", std::uint64_t{18446744073709551615U}},
                     {"below", -3},
                     {"same", true},
                     {"nothing", std::nan("")},
                     {"memory", {{"weights", std::uint64_t{3} << 29}, {"rest", {{"scratch", 1 << 20}}}}}};

TEST_CASE("a form shows fields as they are, in other units, and of fields") {
  CHECK(text_of(kRecord, "nothing to fill") == "nothing to fill");
  CHECK(text_of(kRecord, "{name}|{name:>10}|{name:<9}|") == "step {1}|  step {1}|step {1} |");
  CHECK(text_of(kRecord, "{seconds:.4f} s, {seconds|ms:8.2f} ms, {seconds|us:.1f} us") ==
        "0.0123 s,    12.35 ms, 12345.6 us");
  CHECK(text_of(kRecord, "{count} {below} {below:4} {below:.1f} {same}") ==
        "18446744073709551615 -3   -3 -3.0 true");
  CHECK(text_of(kRecord, "{memory.weights|GiB:.2f} GiB, {memory.rest.scratch|KiB:.0f} KiB") ==
        "1.50 GiB, 1024 KiB");
  CHECK(text_of(kRecord, "{all|count} values, {nothing:.2f}, {nothing|%:.1f}%") == "3 values, nan, nan%");
}

TEST_CASE("a form divides one field by another") {
  CHECK(text_of(kRecord, "{memory.weights/seconds|GB:.1f} GB/s") ==
        fmt::format("{:.1f} GB/s", 1e-9 * 1610612736 / 0.0123456));
  CHECK(text_of(kRecord, "{below/seconds:.2f}") == fmt::format("{:.2f}", -3 / 0.0123456));
}

TEST_CASE("a form that does not fit its record is a bug that names the field") {
  CHECK_THROWS_WITH(text_of(kRecord, "{second}"), ContainsSubstring("no field second in"));
  CHECK_THROWS_WITH(text_of(kRecord, "{memory.weight|GiB:.2f}"), ContainsSubstring("no field memory.weight"));
  CHECK_THROWS_WITH(text_of(kRecord, "{seconds|h:.2f}"), ContainsSubstring("h is no unit"));
  CHECK_THROWS_WITH(text_of(kRecord, "{all}"), ContainsSubstring("field all"));
  CHECK_THROWS_WITH(text_of(kRecord, "{seconds"), ContainsSubstring("a brace is open"));
}

}  // namespace
}  // namespace farskip
