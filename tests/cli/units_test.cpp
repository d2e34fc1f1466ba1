// SPDX-License-Identifier: Apache-2.0
// Rates and times that options give with their units.
#include "cli/units.h"

#include "farskip/base/error.h"
#include "support/catch.h"

namespace farskip {
namespace {

TEST_CASE("link rates, times and device rates are numbers with units") {
  CHECK(parse_link_rate("--link", "48GB/s") == Catch::Approx(48e9));
  CHECK(parse_link_rate("--link", "400Gb/s") == Catch::Approx(50e9));
  CHECK(parse_link_rate("--link", "12.5 MB/s") == Catch::Approx(12.5e6));
  CHECK(parse_link_rate("--link", "100Mb/s") == Catch::Approx(12.5e6));
  CHECK(parse_duration("--latency", "5us") == Catch::Approx(5e-6));
  CHECK(parse_duration("--latency", "0s") == 0);
  CHECK(parse_duration("--latency", "1.5ms") == Catch::Approx(1.5e-3));
  const DeviceRates rates = parse_device_rates("--device-rate", "400TFLOP/s,3TB/s");
  CHECK(rates.flops_per_second == Catch::Approx(400e12));
  CHECK(rates.bytes_per_second == Catch::Approx(3e12));
  for (const char* wrong : {"", "48", "GB/s", "48GiB/s", "48gb/s", "-1GB/s", "0GB/s", "nanGB/s", "infGB/s",
                            "1e400GB/s", "48GB/s each", "0x10GB/s"}) {
    CAPTURE(wrong);
    CHECK_THROWS_AS(parse_link_rate("--link", wrong), UsageError);
  }
  for (const char* wrong : {"", "5", "5 minutes", "-5us"})
    CHECK_THROWS_AS(parse_duration("--latency", wrong), UsageError);
  for (const char* wrong :
       {"", "400TFLOP/s", "400TFLOP/s,", "3TB/s,400TFLOP/s", "0TFLOP/s,3TB/s", "400TFLOP/s,3TB/s,1"})
    CHECK_THROWS_AS(parse_device_rates("--device-rate", wrong), UsageError);
}

}  // namespace
}  // namespace farskip
