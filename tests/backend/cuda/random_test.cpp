// SPDX-License-Identifier: Apache-2.0
// Random numbers made on a GPU are those of the host, but for the last bit of what the logarithm gives.
#include <cmath>

#include "farskip/backend/device.h"
#include "support/catch.h"
#include "support/skip.h"

namespace farskip::test {
namespace {

HostTensor filled(Device& device, DType dtype, std::int64_t n, const NormalNumbers& numbers) {
  HostTensor out(dtype, Shape{n});
  const auto memory = device.allocate(out.view().num_bytes());
  device.fill_normal({memory.get(), dtype, Shape{n}}, numbers);
  device.copy_out(out.bytes().data(), memory.get(), out.view().num_bytes());
  return convert_dtype(out, DType::f32);
}

TEST_CASE("normal numbers of a GPU are those of the host to one rounding, almost all to the bit") {
  if (const std::string why = why_no_cuda_device(); !why.empty()) skip(why);
  const auto gpu = make_cuda_device(), cpu = make_cpu_device();
  for (const auto& [dtype, rounding] : {std::pair{DType::f32, 0x1p-23}, {DType::bf16, 0x1p-7}})
    for (const std::int64_t n : {0, 1, 2, 3, 257, 1 << 20})
      for (const std::uint64_t first : {std::uint64_t{0}, std::uint64_t{1}, (std::uint64_t{1} << 40) + 5}) {
        CAPTURE(dtype_name(dtype), n, first);
        const NormalNumbers numbers{.seed = 3, .stream = stream_id("w"), .first = first, .stddev = 0.02};
        const HostTensor ours = filled(*gpu, dtype, n, numbers), host = filled(*cpu, dtype, n, numbers);
        std::int64_t different = 0;
        for (std::int64_t i = 0; i < n; ++i) {
          const float a = ours.view().as<float>()[i], b = host.view().as<float>()[i];
          REQUIRE(std::abs(a - b) <= rounding * std::abs(b));
          different += a != b ? 1 : 0;
        }
        CHECK(different <= n / 1000);
      }
}

}  // namespace
}  // namespace farskip::test
