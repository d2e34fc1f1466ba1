// SPDX-License-Identifier: Apache-2.0
#pragma once
// Quantities with units on the command line. UsageError naming the option, its text and the units otherwise.

#include <cstdint>
#include <string>
#include <vector>

#include "farskip/schedule/costs.h"

namespace farskip {

/// Bytes a second of "48GB/s" or "400Gb/s" (GB/s, MB/s, Gb/s, Mb/s; decimal); more than 0.
double parse_link_rate(const std::string& option, const std::string& text);
/// Seconds of "5us" (us, ms, s); 0 or more.
double parse_duration(const std::string& option, const std::string& text);
/// "1,8,64": integers from 1 to `most`.
std::vector<std::int64_t> parse_list(const std::string& option, const std::string& text, std::int64_t most);
/// "400TFLOP/s,3TB/s": matrix products (GFLOP/s, TFLOP/s), memory (GB/s, TB/s).
DeviceRates parse_device_rates(const std::string& option, const std::string& text);

}  // namespace farskip
